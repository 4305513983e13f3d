"""Training over processes gives the results of one process."""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import commands
import numpy as np
import pytest
import torch
from mixed_tables import SETTINGS, mixed_table
from omegaconf import DictConfig
from thread_runs import PROCESSES, SMALL, kill, train, train_in_threads, without_clocks
from threads import Killed

from hmtl.communication.messages import SERVER, SHARED, UNMASK
from hmtl.config.build import build
from hmtl.distributed.control import from_bytes
from hmtl.distributed.engine import TorchDistributed
from hmtl.distributed.exchange import ProcessExchange
from hmtl.distributed.frames import CONTROL
from hmtl.distributed.peers import PER_NUMBER, Peers
from hmtl.errors import CheckpointError, ConfigError, EngineError, Finished, ProcessLost
from hmtl.training.checkpoint import load_checkpoint

FEW_BITS = ("regularizer=mean", "communicator=sums", "wire=int4", "participation.dropout=0.3")
LOSSES = ("participation.dropout=0.3", "participation.relays=0.3", "rounds=5")


def check_equal(
    results: dict[str, Any], expected: tuple[torch.Tensor, list[dict[str, float]]], rtol: float = 0
) -> None:
    models, history = results["server"]
    torch.testing.assert_close(models, expected[0], rtol=rtol, atol=rtol)
    assert history == (expected[1] if not rtol else [pytest.approx(row, rel=rtol) for row in expected[1]])


@pytest.mark.parametrize(
    "words",
    [
        ("participation.dropout=0.2", "participation.relays=0.2", "aggregators=all", "algorithm.omega_every=2"),
        (
            "aggregators=[server,0,1]",
            "participation.dropout=0.2",
            "participation.relays=0.3",
            "algorithm.omega_every=2",
            "network.medium=unicast",
        ),
        pytest.param(
            (
                "regularizer=mean",
                "communicator=sums",
                "network.medium=unicast",
                "network.last_hop=unicast",
                "sums=coded",
            ),
            marks=pytest.mark.slow,
        ),
        (*FEW_BITS, "participation.relays=0.3", "rounds=6", "aggregators=all"),
        pytest.param((*FEW_BITS, "participation.relays=0.3", "rounds=6", "aggregators=server"), marks=pytest.mark.slow),
        pytest.param(
            (
                "wire=int4",
                "participation.dropout=0.2",
                "participation.relays=0.3",
                "aggregators=all",
                "algorithm.omega_every=2",
                "rounds=6",
            ),
            marks=pytest.mark.slow,
        ),
        ("rounds=4", "algorithm.rounds=null", "algorithm.omega_every=4"),  # the best models are not the last
        ("algorithm=fedu", "regularizer.neighbors=2", "dataset.standardize=all", "evaluate_every=3"),
        ("algorithm=own", "algorithm.learner._target_=thread_runs.Momentum", *LOSSES, "aggregators=all"),
        pytest.param(
            ("algorithm=own", "algorithm.learner._target_=thread_runs.Momentum", *LOSSES, "communicator=sums"),
            marks=pytest.mark.slow,
        ),
        pytest.param(("algorithm=local", "participation.dropout=0.3"), marks=pytest.mark.slow),
        pytest.param(("algorithm=local_networks",), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_models_measurements_and_setup_are_those_of_one_process(
    configure: Callable[..., DictConfig], tmp_path: Path, words: tuple[str, ...]
) -> None:
    cfg = configure(*SMALL, *words)
    results = train_in_threads(cfg)
    cfg.output_dir += "/alone"
    inexact = {"algorithm=own", "algorithm=fedu", "algorithm=local_networks"} & set(words)
    check_equal(results, train(cfg), rtol=1e-6 if inexact else 0)
    checkpoints = [load_checkpoint(folder) for folder in (tmp_path, tmp_path / "alone")]
    assert checkpoints[0]["best"] == checkpoints[1]["best"]
    assert checkpoints[0]["best"] == 2 or "algorithm.omega_every=4" not in words
    setups = [checkpoint["communicator"]["ledger"]["setup"] for checkpoint in checkpoints]
    many, alone = (counts[1:5, 1].tolist() for counts in setups)  # links of users, without the first of a frame
    assert many == alone


SECURE = ("algorithm=cocoa", "communicator=sums", "aggregators=server", "participation.dropout=0.2")


def test_secure_sums_give_the_models_of_plain_sums(configure: Callable[..., DictConfig]) -> None:
    """Over processes, beside plain sums in one process, with users and relays that are absent."""
    words = (*SMALL, *SECURE, "participation.relays=0.2", "rounds=5")
    results, alone = train_in_threads(configure(*words, "secure=true")), configure(*words)
    alone.output_dir += "/alone"
    check_equal(results, train(alone))


@pytest.mark.parametrize("step", [UNMASK, SHARED])
def test_secure_sums_do_without_a_relay_that_ends(configure: Callable[..., DictConfig], step: str) -> None:
    """When it would send its part of the seeds, or say whose shares its users read, all users count as in plain sums.

    Wrong masks would give random numbers.
    """
    sent = 0

    def end(peers: Peers, rank: int) -> None:
        send = peers.send

        def send_or_end(to: str, frame: Any, *cast: Any) -> None:
            nonlocal sent
            sent += (peers.name, peers.round // PER_NUMBER, frame.kind, to) == ("relay 0", 1, step, SERVER)
            if peers.name == "relay 0" and sent == (2 if step == UNMASK else 1):
                raise Killed
            send(to, frame, *cast)

        peers.send = send_or_end  # type: ignore[method-assign]

    words = (*SMALL, "algorithm=cocoa", "communicator=sums", "aggregators=server")
    _, history = train_in_threads(configure(*words, "secure=true"), prepare=end)["server"]
    _, plain = train(configure(*words))
    assert [row["users"] for row in history[:2]] == [10, 10]
    assert [row["primal"] for row in history[:2]] == [row["primal"] for row in plain[:2]]
    assert all(0 <= row["gap"] <= history[0]["gap"] for row in history)


@pytest.mark.parametrize("randomness", [pytest.param("seed", marks=pytest.mark.slow), "system"])
def test_each_host_learns_which_of_its_own_users_are_sampled(
    configure: Callable[..., DictConfig], randomness: str
) -> None:
    private = ("privacy.clip=0.5", "privacy.noise=4", f"privacy.randomness={randomness}", "participation=fraction")
    words = ("algorithm=fedavg", "communicator=sums", "aggregators=server", "participation.fraction=0.5")
    cfg = configure(*SMALL, *words, *private)
    told: dict[str, list[list[int]]] = defaultdict(list)

    def prepare(peers: Peers, rank: int) -> None:
        send = peers.send

        def send_and_note(to: str, frame: Any, *cast: Any) -> None:
            values = from_bytes(frame.payload.numpy()[0].data) if frame.kind == CONTROL else {}
            if "sample" in values:
                told[to].append(values["sample"].tolist())
            send(to, frame, *cast)

        peers.send = send_and_note  # type: ignore[method-assign]

    results = train_in_threads(cfg, prepare=prepare)
    history = results["server"][1]
    assert {len(samples) for samples in told.values()} == {cfg.rounds}
    homes = {"host 0": range(5), "host 1": range(5, 10)}
    assert all(set(sample) <= set(homes.get(name, ())) for name, samples in told.items() for sample in samples)
    together = [len(own) + len(others) for own, others in zip(told["host 0"], told["host 1"], strict=True)]
    assert together == [row["users"] for row in history] == [5] * cfg.rounds
    if randomness == "seed":
        cfg.output_dir += "/alone"
        check_equal(results, train(cfg), rtol=1e-6)


def test_features_of_raw_tables_are_those_of_one_process(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Models and set-up; and the answers of an aggregator are what the features were fitted to."""
    mixed_table(0, n=12).to_csv(tmp_path / "own.csv", index=False)
    where = (f"dataset.path={tmp_path}/own.csv", "topology=any_r", "H=3", "r=2", "rounds=2", "logger=none")
    cfg = configure("dataset=files", *where, *SETTINGS)
    cfg.K = 12
    results = train_in_threads(cfg)
    cfg.output_dir += "/alone"
    check_equal(results, train(cfg))
    checkpoints = [load_checkpoint(folder) for folder in (tmp_path, tmp_path / "alone")]
    setups = [checkpoint["communicator"]["ledger"]["setup"] for checkpoint in checkpoints]
    many, alone = (counts[1:5, 1].tolist() for counts in setups)
    assert many == alone
    assert alone[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("participation.dropout=0.3", "algorithm.omega_every=2", "algorithm.rounds=3"),
        ("participation.relays=0.5", "aggregators=[server,0,1]", "wire=int4"),
        FEW_BITS,
    ],
    ids=" ".join,
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    configure: Callable[..., DictConfig], tmp_path: Path, more: tuple[str, ...]
) -> None:
    words = (*SMALL, *more)
    train_in_threads(configure(*words, "rounds=2"))
    resumed = configure(*words, f"resume={tmp_path}")
    results = train_in_threads(resumed)
    cfg = configure(*words)
    cfg.output_dir += "/whole"
    check_equal(results, train(cfg))
    with pytest.raises((CheckpointError, EngineError), match=r"6 processes|lost"):
        train_in_threads(resumed, size=5)


def wait_for_all(peers: Peers, round: int) -> None:
    """Begin a round only once the processes that have ended are back, however slow the machine is."""
    begin = peers.begin

    def wait_and_begin(number: int) -> None:
        while number == PER_NUMBER * round and not all(each.alive or each.ready for each in peers.connections.values()):
            time.sleep(0.01)
        begin(number)

    peers.begin = wait_and_begin  # type: ignore[method-assign]


def test_a_run_continues_without_a_host_and_reports_its_users_as_last_saved(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    results = train_in_threads(configure(*SMALL), prepare=kill("host 1", round=1))
    models, history = results["server"]
    assert [row["users"] for row in history][-1] == 5
    assert models.isfinite().all()
    assert len(list(commands.saved_rows(tmp_path))) == 3


def test_a_run_goes_back_to_the_last_checkpoint_when_the_only_aggregator_is_lost(
    configure: Callable[..., DictConfig],
) -> None:
    results = train_in_threads(configure(*SMALL, "aggregators=[0]"), prepare=kill("relay 0", round=1))
    models, history = results["server"]
    assert [row["round"] for row in history] == [0, 1, 2]
    assert [row["empty"] for row in history] == [0, 0, 0]
    assert models.isfinite().all()


@pytest.mark.parametrize("lost", ["host", "relay"])
def test_a_run_ends_with_a_checkpoint_when_nobody_is_left(
    configure: Callable[..., DictConfig], tmp_path: Path, lost: str
) -> None:
    def prepare(peers: Peers, rank: int) -> None:
        if peers.name.startswith(lost):
            kill(peers.name, round=1)(peers, rank)

    with pytest.raises(EngineError, match="patience"):
        train_in_threads(configure(*SMALL), prepare=prepare, patience=0.2)
    assert load_checkpoint(tmp_path)["history"]["rounds"] == 0


def test_a_node_that_loses_the_server_in_a_restart_says_so(configure: Callable[..., DictConfig]) -> None:
    """It has no checkpoint to fall back on, and `hmtl.node` begins again after this error only."""
    run = build(configure(*SMALL))

    def lose(*sides: object) -> None:
        raise ProcessLost("the server is lost.", "")

    run.exchange.leads, run.exchange.gather_state = False, lose  # type: ignore[method-assign]
    run.exchange.waiting = lambda stop: True  # type: ignore[method-assign]
    with pytest.raises(ProcessLost):
        run.trainer.fit()


def test_a_server_that_waits_for_hosts_stops_at_a_signal(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(peers: Peers, rank: int) -> None:
        if peers.name.startswith("host"):
            kill(peers.name, round=1)(peers, rank)

    signals: list[int] = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: signals.append(15))
    monkeypatch.setattr("hmtl.training.trainer.catch_signals", lambda: nullcontext(signals))
    monkeypatch.setattr("hmtl.distributed.exchange.time", clock)
    train_in_threads(configure(*SMALL, "rounds=50"), prepare=prepare)
    assert load_checkpoint(tmp_path)["history"]["rounds"] < 50


RETURNS = [
    ("communicator=coded", "aggregators=all", "algorithm.omega_every=0"),
    *(
        pytest.param(words, marks=pytest.mark.slow)
        for words in (
            ("communicator=coded", "aggregators=[0]", "algorithm.omega_every=0"),
            ("regularizer=mean", "communicator=sums", "wire=int4", "aggregators=all"),
            ("communicator=uncoded", "wire=int4", "algorithm.omega_every=0"),
            ("aggregators=[server,0,1]", "algorithm.omega_every=3"),
            ("algorithm=cocoa", "communicator=sums", "checkpoint_every=3"),
            ("algorithm=cocoa", "communicator=sums", "secure=true"),
            ("algorithm=scaffold", "communicator=sums"),
            ("algorithm=fedu", "regularizer.neighbors=2", "dataset.standardize=all"),
        )
    ),
]


@pytest.mark.parametrize("words", RETURNS, ids=" ".join)
def test_who_ends_comes_back_under_its_name(
    configure: Callable[..., DictConfig], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Nodes end in the midst of rounds and come back: no round is missing, V is that of the duals, and P falls."""
    cfg = configure(*SMALL, *words, "rounds=30", "gap_tolerance=0")
    killed = {"relay 0": 3, "host 1": 5, "relay 2": 9, "host 0": 12}

    def prepare(peers: Peers, rank: int) -> None:
        if peers.name == SERVER:
            wait_for_all(peers, 20)
        if peers.name in killed:
            kill(peers.name, killed.pop(peers.name))(peers, rank)

    _, history = train_in_threads(cfg, prepare=prepare, returns=True)["server"]
    assert not killed
    assert [row["round"] for row in history] == list(range(30))
    assert history[-1]["users"] == 10
    for row in history:
        assert not row.get("gap", 0) < -1e-9
    state = load_checkpoint(tmp_path)["algorithm"]
    users, aggregator = state["users"], state["aggregator"]
    if "error" in users and "V" in aggregator:
        torch.testing.assert_close(aggregator["V"] + users["error"], users["V"], rtol=0, atol=1e-9)
    if "algorithm.omega_every=3" not in words:  # a change of Ω changes P
        assert history[-1]["primal"] <= history[0]["primal"]


def test_a_node_that_comes_back_too_late_is_told_so(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives before the last round, and is ready when there are no more."""
    arrived, finished, killed = Event(), Event(), {"relay 0"}
    finish = ProcessExchange.finish

    def finish_and_say(exchange: ProcessExchange) -> None:
        finish(exchange)
        if exchange.leads:
            finished.set()

    def prepare(peers: Peers, rank: int) -> None:
        if peers.name in killed:
            killed.remove(peers.name)
            kill(peers.name, 1)(peers, rank)
        elif peers.name == "relay 0":
            arrived.set()
            assert finished.wait(60)
        elif peers.name == SERVER:
            begin = peers.begin
            peers.begin = lambda round: (round < 2 * PER_NUMBER or arrived.wait(60), begin(round))[1]  # type: ignore[method-assign]

    monkeypatch.setattr(ProcessExchange, "finish", finish_and_say)
    with pytest.raises(Finished):
        train_in_threads(configure(*SMALL), prepare=prepare, returns=True)


def test_a_run_continues_without_relays_if_the_server_aggregates(configure: Callable[..., DictConfig]) -> None:
    results = train_in_threads(configure(*SMALL, "aggregators=[server,0]"), prepare=kill("relay 0", round=1))
    models, history = results["server"]
    assert len(history) == 3
    assert models.isfinite().all()


def test_a_timeout_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"engine\.seconds"):
        TorchDistributed(seconds=0)


def results(folder: Path) -> tuple[bytes, dict[str, object], list[dict[str, float]]]:
    """Models, summary and measurements that a command left."""
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("time", "bits_total"):
        summary.pop(name)
    history = without_clocks(list(commands.saved_rows(folder)))
    return np.load(folder / "models.npz")["W"].tobytes(), summary, history


@pytest.mark.slow
def test_commands_leave_the_same_results(tmp_path: Path) -> None:
    words = (*SMALL, "aggregators=all", "algorithm.omega_every=2")
    arguments = [f"processes={PROCESSES}", "engine=multicast", f"hydra.run.dir={tmp_path / 'many'}"]
    assert commands.launched([*words, *arguments]) == 0
    assert commands.run("hmtl.train", *words, f"hydra.run.dir={tmp_path / 'one'}").returncode == 0
    assert results(tmp_path / "many") == results(tmp_path / "one")


@pytest.mark.slow
def test_secure_sums_of_many_users_over_processes(tmp_path: Path) -> None:
    """As many that each has a few neighbours."""
    words = ("K=100", "H=5", "r=3", "topology=any_r", "rounds=3", "dataset.rows_per_user=10", "logger=none", *SECURE)
    arguments = ["processes=8", "secure=true", f"hydra.run.dir={tmp_path / 'many'}"]
    assert commands.launched([*words, *arguments]) == 0
    assert commands.run("hmtl.train", *words, f"hydra.run.dir={tmp_path / 'one'}").returncode == 0
    (models, _, history), (expected, _, measured) = (results(tmp_path / name) for name in ("many", "one"))
    assert models == expected
    assert history == measured
