"""The examples in deploy/: they name nodes, ports and files that are there, and Docker runs what it can run."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hmtl.config.build import CHANGEABLE, compose
from hmtl.config.schema import flat
from hmtl.distributed.deployment import Deployment
from hmtl.node import COMMAND, _words

DEPLOY = Path(__file__).parent.parent / "deploy"
SITE = Deployment.read(DEPLOY / "site.yaml")
NAMES = [node.name for node in SITE.nodes.values()]
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def words(command: list[str]) -> list[str]:
    """The command line of hmtl.train for the command of a node."""
    given = {key: value for key, _, value in (word.partition("=") for word in command)}
    assert set(given) <= set(COMMAND)
    return _words({**given, "deployment": str(DEPLOY / "site.yaml")}, [])


def test_compose_has_each_node_with_its_own_key_alone() -> None:
    assert list(COMPOSE) == NAMES
    addresses = {node.name: node.address for node in (SITE.server, *SITE.relays)}
    assert addresses == {name: f"{name}:4700" for name in addresses}, "services are hosts in Compose's network"
    for name, service in COMPOSE.items():
        assert f"name={name}" in service["command"]
        assert "engine=site" in words(service["command"])
        keys = {Path(volume.split(":")[0]).name for volume in service["volumes"] if "certs" in volume}
        assert keys == {"ca.pem", f"{name}.pem", f"{name}.key"}
    assert [name for name in NAMES if "runs:/hmtl/runs" in COMPOSE[name]["volumes"]] == ["server"]


def test_all_share_a_configuration_that_composes() -> None:
    cfgs = [compose(*words([f"name={name}"]), "output_dir=.") for name in NAMES]
    assert {(cfg.K, cfg.H, cfg.rounds) for cfg in cfgs} == {(20, 3, 200)}
    assert [home.tolist() for home in SITE.homes(20).values()] == [list(range(10)), list(range(10, 20))]


def test_a_checkpoint_fits_wherever_the_file_of_the_site_is(tmp_path: Path) -> None:
    files = [DEPLOY / "site.yaml", Path(shutil.copy(DEPLOY / "site.yaml", tmp_path / "moved.yaml"))]
    cfgs = [compose(*_words({"name": "server", "deployment": str(file)}, []), "output_dir=.") for file in files]
    assert flat(cfgs[0], CHANGEABLE) == flat(cfgs[1], CHANGEABLE)


def test_systemd_runs_nodes_as_the_command_takes_them() -> None:
    unit = (DEPLOY / "hmtl-node@.service").read_text()
    command = re.search("^ExecStart=.*-m hmtl.node (.*)$", unit, re.MULTILINE)
    assert command
    assert "UMask=0077" in unit, "state and results are for the service alone"
    assert "engine=site" in words(command[1].replace("%i", "relay-0").replace(" $SETTINGS", "").split())


@pytest.mark.slow
def test_compose_plays_a_run(tmp_path: Path) -> None:
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "ls"], capture_output=True).returncode:
        pytest.skip("Docker with Compose does not run here")
    shutil.copytree(DEPLOY.parent, tmp_path / "hmtl", ignore=shutil.ignore_patterns(".git", ".venv"))
    deploy = tmp_path / "hmtl" / "deploy"
    site = (deploy / "site.yaml").read_text()
    (deploy / "site.yaml").write_text(site.replace("rounds=200", "rounds=3"))
    subprocess.run(["python", "-m", "hmtl.certificates", f"deployment={deploy / 'site.yaml'}"], check=True)
    for key in (deploy / "certs").glob("*.key"):
        shutil.chown(key, 1000)
    words = ["docker", "compose", "--file", str(deploy / "compose.yaml"), "--project-name", "hmtl-test"]
    try:
        subprocess.run([*words, "up", "--build", "--abort-on-container-failure"], check=True, timeout=1800)
        listed = [*words, "run", "--rm", "--entrypoint", "ls", "server", "runs/server"]
        assert "summary.json" in subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run([*words, "down", "--volumes"], check=False)
