"""The six processes of a site, as `hmtl.node` runs them: on one machine, and each in a network of its own."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection
from importlib import import_module
from pathlib import Path

import commands
import numpy as np
import pytest
import yaml
from cells import has_multicast
from commands import Command
from garbled import OFTEN, RUNS, Truth, garble_post, noted, write_uneven

from hmtl.communication import TIERS
from hmtl.communication.messages import ATTENDANCE, IVS, MODELS, REPORT
from hmtl.distributed.deployment import Deployment
from hmtl.distributed.identity import serial_of
from hmtl.distributed.launching import free_port

NETWORK = Path(__file__).parent.parent.parent / "experiments" / "network"
TRAINING = ("K=10", "H=3", "r=2", "topology=any_r", "dataset.rows_per_user=10", "engine.seconds=60")
RELAYS, HOSTS = ("relay-0", "relay-1", "relay-2"), ("host-0", "host-1")
NAMES = ("server", *RELAYS, *HOSTS)
NEWNET = 0x40000000


def enter(namespace: str) -> None:
    """Move this process to a network namespace."""
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(handle, NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(handle)


class Site:
    """A site in a folder: its file, its certificates, and its nodes, each with a folder of its own."""

    def __init__(self, folder: Path, addresses: Sequence[str], training: Sequence[str], namespaces: Mapping[str, str]):
        self.folder, self._namespaces = folder, namespaces
        nodes = [{"name": name, "address": each} for name, each in zip(NAMES, addresses, strict=False)]
        hosts = [{"name": "host-0", "users": "0-2, 5, 9"}, {"name": "host-1", "users": [3, 4, "6-8"]}]
        self.content = {"server": nodes[0], "relays": nodes[1:], "hosts": hosts, "training": [*training]}
        self.file = folder / "site.yaml"
        self.file.write_text(yaml.safe_dump(self.content))
        assert commands.here("hmtl.certificates", f"deployment={self.file}").returncode == 0

    def start(self, name: str, *words: str) -> Command:
        (place := self.folder / name).mkdir(exist_ok=True)
        prepare: Callable[[], object] = partial(enter, self._namespaces[name]) if self._namespaces else bool
        return Command("hmtl.node", f"name={name}", f"deployment={self.file}", *words, cwd=place, prepare=prepare)

    @contextmanager
    def running(self, *of_server: str) -> Iterator[dict[str, Command]]:
        """All nodes, which are killed at the end."""
        with ExitStack() as stack:
            words = {"server": of_server}
            yield {name: stack.enter_context(self.start(name, *words.get(name, ()))) for name in NAMES}

    @property
    def results(self) -> Path:
        return self.folder / "server" / "runs" / "server"


def local_site(folder: Path, *training: str) -> Site:
    return Site(folder, [f"127.0.0.1:{free_port()}" for _ in range(4)], (*TRAINING, *training), {})


def alone(folder: Path, *training: str) -> Path:
    """The folder of the same run in one process."""
    words = [word for word in (*TRAINING, *training) if not word.startswith("engine")]
    assert commands.run("hmtl.train", *words, "logger=none", f"hydra.run.dir={folder}").returncode == 0
    return folder


def check_equal(folder: Path, expected: Path) -> None:
    """Models are equal in every bit, and so are each user's errors."""
    models, theirs = (dict(np.load(each / "models.npz")) for each in (folder, expected))
    assert models.keys() == theirs.keys()
    assert all(models[key].tobytes() == theirs[key].tobytes() for key in models)
    assert (folder / "users.csv").read_bytes() == (expected / "users.csv").read_bytes()


def wait_for(condition: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def metrics(port: int) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def rounds(site: Site) -> int:
    file = site.results / "metrics.csv"
    return max(0, len(file.read_text().splitlines()) - 1) if file.exists() else 0


@pytest.mark.slow
def test_six_processes_learn_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    site = local_site(tmp_path / "site", "rounds=4")
    with site.running() as nodes:
        done = {name: node.done() for name, node in nodes.items()}
        assert {name: node.returncode for name, node in done.items()} == dict.fromkeys(NAMES, 0), done["server"].stderr
        assert all(f"{name}: round 4 of 4" in done[name].stderr for name in NAMES)
    check_equal(site.results, alone(tmp_path / "alone", "rounds=4"))
    assert not [path for name in (*RELAYS, *HOSTS) for path in (site.folder / name).iterdir()]
    with site.start("server") as again:
        assert again.done().returncode == 0
        assert "has finished" in again.stdout


class GarblingSite(Site):
    """A site whose nodes garble what they send, as `often` as it says for each kind."""

    often: Mapping[str, float] = OFTEN

    def start(self, name: str, *words: str) -> Command:
        (place := self.folder / name).mkdir(exist_ok=True)
        prepare = partial(garble_post, self.folder, self.often)
        return Command("hmtl.node", f"name={name}", f"deployment={self.file}", *words, cwd=place, prepare=prepare)


def play_garbled(
    folder: Path, name: str, rounds: int, often: Mapping[str, float] = OFTEN
) -> tuple[Counter[str], Truth, dict[str, str]]:
    """Play rounds in which messages of each kind are garbled, of which all nodes see the end.

    Return how many of each kind were, what is true, and what nodes wrote.
    """
    words = [word for word in TRAINING if not word.startswith(("K=", "H=", "r=", "topology="))]
    training = (*words, *write_uneven(folder, 3), *RUNS[name], f"rounds={rounds}", f"evaluate_every={rounds - 1}")
    site = GarblingSite(folder, [f"127.0.0.1:{free_port()}" for _ in range(4)], training, {})
    site.often = often
    with site.running() as nodes:
        if nodes["server"].done(900).returncode == 0:  # otherwise the others wait for another one
            assert {node.done().returncode for node in nodes.values()} == {0}
        said = {each: node.stdout + node.stderr for each, node in nodes.items()}
    assert nodes["server"].returncode == 0, said
    return *noted(folder), said


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_site_goes_on_whatever_arrives(tmp_path: Path, name: str) -> None:
    """Messages of each kind are garbled on their way over TLS, and more rounds than the first one count."""
    spoiled, truth, said = play_garbled(tmp_path, name, 30)
    assert sum(spoiled[kind] for kind in (IVS, REPORT, ATTENDANCE, MODELS)) >= 5
    assert not [each for each, text in said.items() if "Traceback" in text]
    assert truth.check() > 2


@pytest.mark.slow
def test_a_site_goes_on_when_nodes_leave_and_come_back(tmp_path: Path) -> None:
    """Two nodes whose certificates are revoked get others, a host leaves, and the server stops and starts again.

    Other nodes play on, and are not started again.
    """
    site = local_site(tmp_path, "rounds=3000", "checkpoint_every=1000")
    port = free_port()
    with site.running(f"metrics={port}") as nodes:
        wait_for(lambda: rounds(site) > 3)
        serials = {name: serial_of((tmp_path / "certs" / f"{name}.pem").read_bytes()) for name in ("host-1", "relay-1")}
        site.file.write_text(yaml.safe_dump(site.content | {"revoked": [f"{each:X}" for each in serials.values()]}))
        for name in serials:
            wait_for(lambda name=name: f"{name} is lost: its certificate is revoked" in nodes["server"].stderr)
        wait_for(lambda: "refused relay-1: its certificate is revoked" in nodes["host-0"].stderr)
        played = rounds(site)
        wait_for(lambda: rounds(site) > played + 3)
        assert commands.here("hmtl.certificates", f"deployment={site.file}").stdout.count("made") == 2
        for name in serials:
            wait_for(lambda name=name: f"{name} is back" in nodes["server"].stderr)
        assert {node.poll() for node in nodes.values()} == {None}

        assert f'hmtl_node_missing{{node="host-1"}} {0.0}' in metrics(port)
        nodes["host-1"].send_signal(signal.SIGTERM)
        assert nodes["host-1"].done().returncode == 128 + signal.SIGTERM
        wait_for(lambda: "lost: it has left" in nodes["server"].stderr)
        played = rounds(site)
        wait_for(lambda: rounds(site) > played)
        assert f'hmtl_node_missing{{node="host-1"}} {1.0}' in metrics(port)
        nodes["server"].send_signal(signal.SIGTERM)
        assert nodes["server"].done().returncode == 128 + signal.SIGTERM
        assert "start the server again" in nodes["server"].stdout
        stopped = rounds(site)
        with site.start("server"), site.start("host-1"):
            wait_for(lambda: rounds(site) > stopped)
            assert [name for name in NAMES if nodes[name].poll() is None] == [*RELAYS, "host-0"]


@pytest.mark.slow
def test_a_relay_comes_back_to_a_multicast_group(tmp_path: Path) -> None:
    """It takes part with what the server sends to the group, and the run ends as one without losses."""
    if not has_multicast():
        pytest.skip("this machine has no multicast")
    group = (f"engine.multicast=239.255.71.84:{free_port()}", "engine.interface=127.0.0.1")
    site = local_site(tmp_path, "rounds=1000", "checkpoint_every=1000", "network.medium=broadcast", *group)
    with site.running() as nodes:
        wait_for(lambda: rounds(site) > 3)
        nodes["relay-1"].send_signal(signal.SIGKILL)
        wait_for(lambda: "relay-1 is lost" in nodes["server"].stderr)
        with site.start("relay-1"):
            wait_for(lambda: "relay-1 is back" in nodes["server"].stderr)
            played = rounds(site)
            wait_for(lambda: rounds(site) > played + 3)
            nodes["server"].send_signal(signal.SIGTERM)
            assert nodes["server"].done().returncode == 128 + signal.SIGTERM
        assert nodes["server"].stderr.count("is lost") == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["name=relay-9"], "relay-0"),
        (["deployment=site.yaml"], "name is not set"),
        (["name=server", "rounds=5"], "training"),
        (["name=server", "metrics=http"], "metrics=http"),
        (["name=server", "dataset.rows_per_user=5"], "training"),
    ],
)
def test_mistakes_end_before_anything_begins(tmp_path: Path, words: list[str], named: str) -> None:
    site = local_site(tmp_path, "rounds=1")
    given = [word for word in words if not word.startswith("deployment")]
    done = commands.here("hmtl.node", f"deployment={site.file}", *given)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert named in done.stderr


@pytest.mark.slow
def test_a_node_with_other_settings_is_refused(tmp_path: Path) -> None:
    site = local_site(tmp_path, "rounds=1", "engine.patience=8")
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(site.content | {"training": [*site.content["training"], "lam=0.5"]}))
    with site.start("server") as server, site.start("relay-0", f"deployment={other}") as relay:
        assert (server.done().returncode, relay.done().returncode) == (2, 2)
        assert "another configuration" in relay.stderr


def test_nodes_are_called_by_their_names(tmp_path: Path) -> None:
    content = local_site(tmp_path, "rounds=1").content
    content["relays"][1]["name"] = "mast"  # type: ignore[index]
    site = Deployment.model_validate(content)
    assert site.named("relay 1, relay 11 and host 0 miss relay 1") == "mast, relay 11 and host-0 miss mast"


@pytest.fixture
def namespaces() -> Iterator[dict[str, str]]:
    """The namespace of each node, with links of 100 Mbit/s between them."""
    sys.path.insert(0, str(NETWORK))
    try:
        lab = import_module("lab")
    finally:
        sys.path.pop(0)
    try:
        with lab.Lab(relays=3, workers=2, copies=2) as network:
            yield dict(zip(NAMES, network.names, strict=True))
    except lab.LabError as error:
        pytest.skip(str(error))


def remote_site(folder: Path, namespaces: Mapping[str, str], *training: str) -> Site:
    addresses = ["10.83.2.1:4700", *(f"10.83.2.{10 + i}:4700" for i in range(3))]
    return Site(folder, addresses, (*TRAINING, *training), namespaces)


@pytest.mark.slow
def test_six_networks_learn_what_one_process_does(tmp_path: Path, namespaces: dict[str, str]) -> None:
    """Models are equal, and what was sent as payload."""
    training = ("communicator=sums", "regularizer=mean")
    (tmp_path / "site").mkdir()
    site = remote_site(tmp_path / "site", namespaces, "rounds=3", *training)
    with site.running() as nodes:
        assert {node.done().returncode for node in nodes.values()} == {0}, nodes["server"].stderr
    expected = alone(tmp_path / "alone", "rounds=3", *training)
    check_equal(site.results, expected)
    loads = [yaml.safe_load((folder / "summary.json").read_text())["loads"] for folder in (site.results, expected)]
    assert loads[0] == loads[1]
    assert loads[0].keys() == set(TIERS)


@pytest.mark.slow
def test_a_cable_is_pulled_and_put_back(tmp_path: Path, namespaces: dict[str, str]) -> None:
    """The others go on without a relay, which is back as soon as its cable is."""

    def cable(state: str) -> None:
        for device in ("hop1", "hop2"):
            words = ["ip", "-n", namespaces["relay-0"], "link", "set", device, state]
            subprocess.run(words, check=True)

    site = remote_site(tmp_path, namespaces, "rounds=100000", "engine.seconds=4", "checkpoint_every=20")
    with site.running() as nodes:

        def said(sentence: str) -> bool:
            return any(sentence in line and "relay-0" in line for line in nodes["server"].stderr.splitlines())

        wait_for(lambda: rounds(site) > 3)
        cable("down")
        wait_for(lambda: said("no answer") or said("lost"))
        played = rounds(site)
        wait_for(lambda: rounds(site) > played)
        cable("up")
        wait_for(lambda: said("answers again") or said("is back"))
        played = rounds(site)
        wait_for(lambda: rounds(site) > played + 3)
        assert {node.poll() for node in nodes.values()} == {None}
