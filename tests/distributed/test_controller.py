"""Runs whose nodes are in cells end as those of one process, and go on when cells end, answer late, or come back."""

import csv
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cells import DEAF, GONE, LATE, SLOW, SMALL, Cells, Fault, Trained, check_equal, train, train_in_cells
from mixed_tables import SETTINGS, mixed_table
from omegaconf import DictConfig

from hmtl.communication import TIERS
from hmtl.communication.messages import ATTENDANCE, DIGESTS, IVS, MODELS, VERDICT
from hmtl.config.build import Run, compose
from hmtl.distributed import controller as module
from hmtl.errors import CodingError, ConfigError, EngineError, HmtlError, ProcessLost
from hmtl.training.checkpoint import load_checkpoint

TURN = {"action": "advertise", "numbers": [], "kinds": [], "heard": [], "task": "", "sample": None}
OUT_OF_ORDER = {"name": "learner", "round": 9, "evaluates": True, "turns": [TURN]}
MLP = "algorithm.model._target_=hmtl.mtl.mlp"
SEED = "privacy.randomness=seed"
SUMS = ("communicator=sums", "aggregators=server")
CONFIGURATIONS = [
    ("participation.dropout=0.3", "participation.relays=0.2", "aggregators=all", "algorithm.omega_every=2"),
    (
        "topology=moving",
        "topology.every=2",
        "algorithm=own",
        "algorithm.learner._target_=cells.Halves",
        MLP,
        "solver.epochs=1",
    ),
    *(
        pytest.param(words, marks=pytest.mark.slow)
        for words in (
            (
                "aggregators=[server,0,1]",
                "participation.relays=0.3",
                "algorithm.omega_every=2",
                "network.medium=unicast",
            ),
            ("regularizer=mean", "communicator=sums", "network.medium=unicast", "sums=coded"),
            ("regularizer=mean", "communicator=sums", "wire=int4", "participation.dropout=0.3"),
            ("wire=int4", "aggregators=all", "participation.relays=0.3", "participation.dropout=0.2", "rounds=6"),
            ("communicator=uncoded", "algorithm.omega_every=4", "rounds=4"),  # the best models are not the last
            ("regularizer=graph", "dataset.standardize=all", "evaluate_every=3"),
            ("regularizer=common", "algorithm.omega_every=2"),
            ("algorithm=fedu", MLP, "regularizer=task_relationship"),
            ("algorithm=fedper", MLP, "regularizer=task_relationship", "algorithm.coupled=true"),
            ("algorithm=fedper", MLP, "regularizer=mean", "algorithm.coupled=true"),
            ("algorithm=fedavg", MLP, "participation=fraction", *SUMS, "privacy.clip=0.5", "privacy.noise=4", SEED),
            ("algorithm=fedavg", MLP, "validation_fraction=0.2"),
            ("algorithm=fedavg", MLP, *SUMS, "secure=true", "wire=int4"),
            ("algorithm=cocoa", *SUMS, "secure=true", "participation.dropout=0.2"),
            ("algorithm=scaffold", MLP, "participation.dropout=0.3"),
            ("algorithm=local", "participation.dropout=0.3"),
        )
    ),
]


def for_cells(*words: str) -> tuple[str, ...]:
    """The words of a small run."""
    return (*(word for word in SMALL if word != "r=2" or "topology=moving" not in words), *words)


def check_bits(trained: Trained) -> None:
    """The ledger has the bits that nodes handed over, round by round, and by link and kind of message in the end."""
    taps, ledger = trained.cells.taps, trained.run.communicator.ledger
    for row in trained.rows:
        for tier in TIERS:
            assert row[f"bits/{tier}"] == sum(n for key, n in taps.items() if key[:2] == (row["round"], tier)), row
        assert row["bits_total"] == sum(n for key, n in taps.items() if key[0] <= row["round"])
    by_link = Counter[tuple[str, str, str]]()
    for (_, tier, link, kind), n in taps.items():
        by_link[tier, ledger.links[tier][link], kind] += n
    assert {tuple(row[:3]): sum(row[3:]) for row in ledger.table().itertuples(index=False)} == +by_link


@pytest.mark.parametrize("words", CONFIGURATIONS, ids=" ".join)
def test_a_run_ends_as_one_in_one_process(configure: Callable[..., DictConfig], words: tuple[str, ...]) -> None:
    cfg = configure(*for_cells(*words))
    ours, alone = train_in_cells(cfg), train(cfg)
    check_equal(ours, alone, rtol=1e-6 if MLP in words else 0)
    assert ours.run.trainer.best == alone.run.trainer.best
    check_bits(ours)


LINK = "{up_bps: RATE, down_bps: 2e6, latency_s: 0.01}"


@pytest.mark.parametrize("words", [(), ("communicator=uncoded",), ("algorithm=cocoa", *SUMS)], ids=" ".join)
@pytest.mark.slow
def test_rounds_over_links_take_as_long_as_in_one_process(
    configure: Callable[..., DictConfig], tmp_path: Path, words: tuple[str, ...]
) -> None:
    lines = ["server: " + LINK.replace("RATE", "3e6"), "relays:"]
    lines += [f"  {i}: " + LINK.replace("RATE", f"{1 + i}e6") for i in range(3)]
    lines += ["hosts:", *(f"  {k}: " + LINK.replace("RATE", f"{1 + k % 4}e5") for k in range(10))]
    (tmp_path / "links.yaml").write_text("\n".join(lines))
    cfg = configure(*for_cells("network=links", f"network.links={tmp_path}/links.yaml", *words))
    ours, alone = (each.run.communicator for each in (train_in_cells(cfg), train(cfg)))
    assert ours.seconds() == pytest.approx(alone.seconds())
    assert ours.uncoded_seconds() == pytest.approx(alone.uncoded_seconds())
    assert ours.setup_seconds == pytest.approx(alone.setup_seconds)
    assert ours.seconds() > 0.08


@pytest.mark.slow
def test_features_of_raw_tables_are_those_of_one_process(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    """The answers of an aggregator are what the features are fitted to."""
    mixed_table(0, n=12).to_csv(tmp_path / "own.csv", index=False)
    where = (f"dataset.path={tmp_path}/own.csv", "topology=any_r", "H=3", "r=2", "rounds=2", "logger=none")
    cfg = configure("dataset=files", *where, *SETTINGS)
    cfg.K = 12
    ours, alone = train_in_cells(cfg), train(cfg)
    check_equal(ours, alone)
    setups = [each.run.communicator.ledger.state_dict()["setup"] for each in (ours, alone)]
    assert setups[0].keys() == setups[1].keys()
    assert all(torch.equal(bits, setups[1][key]) for key, bits in setups[0].items())
    assert sum(int(bits.sum()) for bits in setups[0].values()) > 12 * 64


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("participation.dropout=0.3", "algorithm.omega_every=2", "algorithm.rounds=3"),
        ("participation.relays=0.5", "aggregators=[server,0,1]", "wire=int4"),
        ("regularizer=mean", "communicator=sums", "wire=int4", "participation.dropout=0.3"),
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    configure: Callable[..., DictConfig], tmp_path: Path, more: tuple[str, ...]
) -> None:
    """With another number of hosts, too."""
    train_in_cells(configure(*SMALL, *more, "rounds=2"))
    resumed = train_in_cells(configure(*SMALL, *more, f"resume={tmp_path}"))
    check_equal(resumed, train(configure(*SMALL, *more)))


LEARNERS = {
    "coded": ("aggregators=auto",),
    "few bits": ("aggregators=all", "wire=int4"),
    "server too": ("aggregators=[server,0]",),
    "moving": ("topology=moving", "topology.every=2", "aggregators=all"),
}
DUAL = ("loss=smooth_hinge", "algorithm.omega_every=0", "checkpoint_every=5")
TURNS = {
    "host 1": ("update", "conclude"),
    "relay 0": ("report", "attend", "up", "learn", "confirm", "deliver"),
    "relay 1": ("report", "attend", "up", "learn", "confirm", "deliver"),
    "server": ("attend", "down", "compare"),
}


def check_sound(trained: Trained, optimum: float) -> None:
    """No round is missing, the gap is never negative, V is that of the duals, and the optimum is reached."""
    assert [row["round"] for row in trained.rows] == list(range(len(trained.rows)))
    assert min(row["gap"] for row in trained.rows) >= -1e-9
    assert trained.rows[-1]["users"] == 10
    assert trained.rows[-1]["primal"] == pytest.approx(optimum, rel=1e-6)
    check_bits(trained)
    state = trained.run.trainer.state["algorithm"]
    own = [trained.cells.cells[host].training.algorithm.users for host in trained.cells.hosts]
    V = torch.cat([users.measure()["V"] for users in own])[trained.cells.order]
    nodes = trained.run.trainer.state["communicator"]["nodes"]
    coders = [nodes[host][host]["coder"] for host in trained.cells.hosts]
    owed = [-coder["held"] if coder else torch.zeros(1, 1) for coder in coders]
    rows = [each.expand(len(users.W), V.shape[1]) for each, users in zip(owed, own, strict=True)]
    known = state["aggregator"]["V"] + torch.cat(rows)[trained.cells.order]
    torch.testing.assert_close(known, V, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def optimum(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The objective that all learners of these tests reach."""
    cfg = compose(*SMALL, *DUAL, "gap_tolerance=1e-8", "rounds=30", f"output_dir={tmp_path_factory.mktemp('quiet')}")
    return train(cfg).rows[-1]["primal"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "how"),
    [("coded", LATE), ("coded", SLOW), ("few bits", DEAF), ("server too", GONE), ("moving", SLOW)],
)
@pytest.mark.slow
def test_a_cell_may_fail_in_any_turn(
    configure: Callable[..., DictConfig], optimum: float, learner: str, how: str
) -> None:
    """One turn after another fails, each in a round of its own; who ended is there again after a moment."""
    turns = [(node, action) for node, actions in TURNS.items() for action in actions]
    faults = [Fault(node, action, 2 + 2 * n, how) for n, (node, action) in enumerate(turns)]
    cfg = configure(*for_cells(*LEARNERS[learner], *DUAL), f"rounds={2 * len(faults) + 12}")
    trained = train_in_cells(cfg, *faults)
    check_sound(trained, optimum)
    assert len(trained.cells.faults) < len(faults) / 2, "some turns are not played in some rounds"


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        [Fault("relay 1", "up", 3, LATE), Fault("server", "attend_again", 3, DEAF), Fault("relay 0", "attend", 3)],
        [Fault("host 0", "conclude", 3, LATE, 2), Fault("relay 0", "deliver", 3, GONE, 4), Fault("host 0", "rows", 6)],
        [Fault(name, "report", 3, GONE, away) for away, name in enumerate(("relay 0", "relay 1", "relay 2"))],
        [
            Fault("relay 1", "report", 3, LATE, 0),
            Fault("server", "attend", 4),
            Fault("relay 0", "conclude", 4, LATE, 3),
        ],
        [Fault("relay 0", "learn", 2, LATE, 3), Fault("relay 1", "nodes", -1), Fault("host 1", "load_users", -1, LATE)],
    ],
)
@pytest.mark.slow
def test_several_cells_may_fail(configure: Callable[..., DictConfig], optimum: float, faults: list[Fault]) -> None:
    """At once, or while others come back."""
    cfg = configure(*SMALL, *DUAL, "aggregators=all", "rounds=20")

    def prepare(run: Run) -> None:
        run.engine.faults += faults  # type: ignore[attr-defined]

    check_sound(train_in_cells(cfg, prepare=prepare), optimum)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "peer", "turn", "how"), [("host 1", "host 0", "update", LATE), ("relay 0", "relay 1", "attend", DEAF)]
)
@pytest.mark.slow
def test_rounds_go_on_while_a_cell_builds_that_came_back(
    configure: Callable[..., DictConfig], optimum: float, name: str, peer: str, turn: str, how: str
) -> None:
    """Also if its process ends again in the meantime."""
    trained = train_in_cells(
        configure(*SMALL, *DUAL, "rounds=20"), Fault(name, turn, 1, GONE), Fault(name, "build", -1, how, 3)
    )
    check_sound(trained, optimum)
    calls, others = ([call for call, _ in trained.cells.told[each]] for each in (name, peer))
    assert (calls.count("build"), others.count("build")) == (2, 1)
    assert others.count("play") >= calls.count("play") + 3 * 2  # in three rounds


@pytest.mark.slow
@pytest.mark.parametrize("kind", [IVS, MODELS, DIGESTS, ATTENDANCE])
@pytest.mark.slow
def test_messages_may_be_lost(configure: Callable[..., DictConfig], optimum: float, kind: str) -> None:
    """A third of those of some rounds, although all cells answer."""
    rng = np.random.default_rng(3)

    def prepare(run: Run) -> None:
        run.engine.lost = lambda sender, receiver, frame: (  # type: ignore[attr-defined]
            frame.kind == kind and 1 < frame.round < 8 and rng.random() < 1 / 3
        )

    cfg = configure(*SMALL, *DUAL, "aggregators=all", "rounds=20")
    check_sound(train_in_cells(cfg, prepare=prepare), optimum)


@pytest.mark.parametrize(("step", "r"), [("combine", 2), pytest.param("announce", 3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_secure_sums_do_without_a_relay_that_ends(configure: Callable[..., DictConfig], step: str, r: int) -> None:
    """All users count as in plain sums; wrong masks would give random numbers. They need two relays to mask."""
    words = (*SMALL, f"r={r}", "algorithm=cocoa", *SUMS)
    plain = train(configure(*words)).rows
    rows = train_in_cells(configure(*words, "secure=true"), Fault("relay 0", step, 1, away=9)).rows
    assert [row["users"] for row in rows[:2]] == [10, 10]
    assert [row["primal"] for row in rows[:2]] == [row["primal"] for row in plain[:2]]
    assert all(0 <= row["gap"] <= rows[0]["gap"] for row in rows)


UNEVEN = "1,1,1,0,0,0,1\n0,0,1,1,1,1,1\n0,0,0,0,0,0,1\n0,0,0,0,0,0,0\n"
"""Users 0, 1, 3, 4 and 5 are heard by one relay only, and relay 3 hears nobody."""


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(faults, id=name, marks=() if "checkpoint" in name else pytest.mark.slow)
        for name, faults in {
            "two at once": [
                Fault("host 0", "update", 1, SLOW),
                Fault("relay 1", "report", 1, SLOW),
                Fault("host 1", "conclude", 5, SLOW),
            ],
            "answers after a checkpoint that is gone back to": [
                Fault("relay 0", "up", 1, SLOW),
                Fault("server", "attend", 3),
                Fault("relay 1", "deliver", 5, LATE),
            ],
            "its round is played again": [
                Fault("relay 0", "up", 2, SLOW, 1),
                Fault("relay 2", "report", 2, LATE, 5),
                Fault("server", "attend", 3),
            ],
            "one each": [
                Fault("relay 0", "confirm", 2, SLOW),
                Fault("host 0", "rows", 4, LATE),
                Fault("relay 1", "report", 5, GONE),
            ],
        }.items()
    ],
)
@pytest.mark.slow
def test_what_nodes_say_late_counts_in_its_round(
    configure: Callable[..., DictConfig], tmp_path: Path, faults: list[Fault]
) -> None:
    """The file has it, too."""
    (tmp_path / "links.csv").write_text(UNEVEN)
    network = ("topology=file", f"topology.path={tmp_path}/links.csv", "K=7", "H=4", "r=null", "aggregators=all")
    cfg = configure(*SMALL[3:], *network, "dataset.rows_per_user=10", "rounds=6", "checkpoint_every=2")
    trained = train_in_cells(cfg, *faults)
    assert not trained.cells.faults
    check_bits(trained)
    with (tmp_path / "metrics.csv").open() as file:
        for row, written in zip(trained.rows, csv.DictReader(file), strict=True):
            assert all(int(written[key]) == bits for key, bits in row.items() if key.startswith("bits"))


@pytest.mark.slow
def test_answers_that_arrived_are_read_before_anybody_counts_as_silent(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first cell never answers; what another has sent takes several looks to read."""
    monkeypatch.setattr(module, "CLOCK_SECONDS", 0.02)
    cells = train_in_cells(configure(*SMALL, "rounds=1")).cells
    looks = {"host 0": itertools.repeat(None), "host 1": iter([None, None, {"answer": 7}])}

    def receive(name: str, asked: object, seconds: float) -> object:
        time.sleep(seconds)
        return next(looks[name])

    monkeypatch.setattr(cells, "receive", receive)
    assert cells.call(dict.fromkeys(looks, ("keep", {})), 0.1) == {"host 1": 7}
    assert cells.missing() == {"host 0"}


@pytest.mark.parametrize("faults", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_host_may_be_late_with_its_first_measurements(
    configure: Callable[..., DictConfig], tmp_path: Path, faults: int
) -> None:
    """As long as it has not measured, there is no objective. If no host has, the round is played again."""
    late = [Fault(f"host {n}", "measure", -1, LATE, 2) for n in range(2 - faults, 2)]
    trained = train_in_cells(configure(*SMALL, "rounds=4"), *late)
    first, alone = trained.rows[0], train(configure(*SMALL, "rounds=1")).rows[0]
    assert ("primal" in first, first.get("train_error_users", 10)) == ((True, 10) if faults == 2 else (False, 5))
    assert all(key.endswith("_users") for key in first.keys() - alone.keys())
    assert all("primal" in row for row in trained.rows[3:])
    check_bits(trained)
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["primal"] != "" for row in csv.DictReader(file)] == ["primal" in row for row in trained.rows]


@pytest.mark.slow
def test_a_host_that_has_not_measured_in_time_is_missing_in_reports(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    trained = train_in_cells(configure(*SMALL, "rounds=1"), Fault("host 1", "measure", -1, LATE, 0))
    assert not any("primal" in row or math.isnan(row["test_error"]) for row in trained.rows)
    trained.run.trainer.write_results(trained.run.trainer.summarize(dataset="mnist", seed=0))
    with (tmp_path / "users.csv").open() as file:
        assert [row["test_error"] != "" for row in csv.DictReader(file)] == [True] * 5 + [False] * 5


@pytest.mark.slow
def test_a_model_that_all_users_share_is_in_a_checkpoint_once(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    learner = (*SMALL, "algorithm=fedavg", "solver.epochs=1")
    for words in (("rounds=1",), (f"resume={tmp_path}", "rounds=2")):
        trained = train_in_cells(configure(*learner, *words))
        models = load_checkpoint(tmp_path)["algorithm"]["users"]["averaged"]
        assert (len(models), models.stride(0)) == (10, 0)
    check_equal(trained, train(configure(*learner, "rounds=2")), rtol=1e-6)


@pytest.mark.parametrize("metrics", ["users", pytest.param("sums", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_run_goes_back_if_a_host_misses_a_checkpoint(
    configure: Callable[..., DictConfig], tmp_path: Path, metrics: str
) -> None:
    """Twice to the same one: a host whose process ended, and then a late one. The run ends as one without faults."""
    words = (*SMALL, "algorithm=cocoa", *SUMS, f"metrics={metrics}", "rounds=5", "checkpoint_every=2")
    faults = [Fault("host 1", "rows", 3, GONE, 3), Fault("host 1", "rows", 3, LATE, 3)]
    trained, alone = train_in_cells(configure(*words), *faults), train(configure(*words))
    assert trained.cells.again == [2, 2]
    assert trained.rows == [pytest.approx(row, rel=0, abs=0, nan_ok=True) for row in alone.rows]
    check_bits(trained)
    assert load_checkpoint(tmp_path)["history"]["rounds"] == 5


@pytest.mark.slow
def test_a_host_that_is_missing_from_the_start_ends_the_run(configure: Callable[..., DictConfig]) -> None:
    with pytest.raises(EngineError, match="host 1"):
        train_in_cells(configure(*SMALL), Fault("host 1", "users_state", -1, away=10**6))


@pytest.mark.parametrize(
    "lost", ["server", *(pytest.param(node, marks=pytest.mark.slow) for node in ("one host", "host", "relay"))]
)
@pytest.mark.slow
def test_a_run_ends_with_its_checkpoint_when_nobody_comes_back(
    configure: Callable[..., DictConfig], tmp_path: Path, lost: str
) -> None:
    relays = ["relay 0", "relay 1", "relay 2"]
    names = {"one host": ["host 1"], "host": ["host 0", "host 1"], "relay": relays, "server": ["server"]}[lost]
    actions = {"host": "rows", "relay": "report", "server": "attend"}
    faults = [Fault(name, actions[lost.split()[-1]], 1, away=10**6) for name in names]
    with pytest.raises(EngineError, match="patience"):
        train_in_cells(configure(*SMALL), *faults, patience=0.2)
    assert load_checkpoint(tmp_path)["history"]["rounds"] == 0


@pytest.mark.parametrize("hosts", [["host 0", "host 1"], ["host 1"]], ids=len)
@pytest.mark.slow
def test_a_controller_that_waits_for_hosts_stops_at_a_signal(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: list[str]
) -> None:
    """It ends with the last checkpoint."""
    signals: list[int] = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: signals.append(15))
    monkeypatch.setattr("hmtl.training.trainer.catch_signals", lambda: nullcontext(signals))
    monkeypatch.setattr(module, "time", clock)
    cfg = configure(*SMALL, "rounds=50", "checkpoint_every=2")
    trained = train_in_cells(cfg, *[Fault(name, "rows", 3, away=10**6) for name in hosts])
    assert trained.run.trainer.interrupted == 15
    assert len(trained.rows) == load_checkpoint(tmp_path)["history"]["rounds"] == 2


@pytest.mark.slow
def test_a_cell_that_never_gets_ready_ends_the_run(configure: Callable[..., DictConfig]) -> None:
    with pytest.raises(ProcessLost, match="host 1"):
        train_in_cells(configure(*SMALL), broken=["host 1"])


@pytest.mark.slow
def test_an_error_of_all_cells_is_reported_once(configure: Callable[..., DictConfig]) -> None:
    """It has no names of cells; that of some has theirs."""
    with pytest.raises(HmtlError, match="rows_per_user") as caught:
        train_in_cells(configure(*SMALL, "dataset.rows_per_user=9999"))
    assert "host" not in str(caught.value)
    with pytest.raises(CodingError, match=r"^host 0: "):
        train_in_cells(configure(*SMALL, "rounds=1")).cells.call(
            {"host 0": ("play", OUT_OF_ORDER), "host 1": ("keep", {})}
        )


@pytest.mark.slow
def test_too_many_hosts_are_refused_before_any_starts(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cells, "start", None)
    with pytest.raises(ConfigError, match="11 hosts"):
        train_in_cells(configure(*SMALL), hosts=11)


@pytest.mark.skipif(torch.cuda.is_available(), reason="hosts can use the GPU")
@pytest.mark.slow
def test_only_hosts_use_the_device(configure: Callable[..., DictConfig]) -> None:
    """Others may be on machines without a GPU."""
    with pytest.raises(ConfigError, match=r"^host 0, host 1: device=cuda is not available"):
        train_in_cells(configure(*SMALL, "device=cuda"))


@pytest.mark.slow
def test_a_timeout_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"engine\.seconds"):
        Cells(seconds=0)


@pytest.mark.parametrize("aggregators", ["[0]", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_verdict_that_no_aggregator_gets_stops_no_run(configure: Callable[..., DictConfig], aggregators: str) -> None:
    """They settle by the next attendance; state for the checkpoint is asked of them before."""

    def lose(run: Run) -> None:
        run.engine.lost = lambda sender, receiver, frame: frame.kind == VERDICT and frame.round == 1

    cfg = configure(*SMALL, "rounds=4", f"communicator.aggregators={aggregators}", "checkpoint_every=1")
    rows = train_in_cells(cfg, prepare=lose).rows
    assert [row["empty"] for row in rows] == [0] * 4
    assert rows[-1]["gap"] < rows[1]["gap"]
    assert rows[-1]["gap"] > 0
