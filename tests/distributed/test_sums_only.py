"""With metrics=sums, hosts tell the server sums over their users, and nothing of one user."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threads
import torch
from control_frames import listening
from omegaconf import DictConfig, OmegaConf
from thread_runs import SMALL, kill, train, train_in_threads

from hmtl.config.build import build, load_run
from hmtl.distributed.peers import Peers
from hmtl.distributed.placement import Placement
from hmtl.errors import CheckpointError, ConfigError, EngineError
from hmtl.train import play
from hmtl.training.checkpoint import load_checkpoint

UNEQUAL = ("K=7", "H=3", "r=2", "rounds=2", "dataset.rows_per_user=10", "logger=none")  # hosts of 4 and 3 users
ADDING = ("communicator=sums", "aggregators=server")
ONLY_SUMS = (*ADDING, "metrics=sums")
LEARNERS = [
    ("algorithm=fedavg", "validation_fraction=0.3"),
    pytest.param(("algorithm=scaffold", "participation.dropout=0.3"), marks=pytest.mark.slow),
    ("algorithm=cocoa",),
    ("regularizer=mean", "wire=int4", "participation.dropout=0.3"),
    pytest.param(("algorithm=fedu", "regularizer=mean"), marks=pytest.mark.slow),
]
PUBLIC = {"bits", "seconds", "user seconds", "users", "lost", "notices", "returned", "error", "aggregator"}
"""What hosts tell beside figures and state: counts and times of the process, and what it noticed about others."""


def tensors(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """All tensors in a value, with the names that lead to them."""
    if isinstance(values, torch.Tensor):
        yield path, values
    children = vars(values) if hasattr(values, "__dataclass_fields__") else values
    children = dict(enumerate(children)) if isinstance(children, list | tuple) else children
    if isinstance(children, dict):
        for name, each in children.items():
            yield from tensors(each, (*path, str(name)))


@pytest.mark.parametrize("words", LEARNERS, ids=" ".join)
def test_frames_are_of_no_user_and_means_and_gap_are_the_usual_ones(
    configure: Callable[..., DictConfig], words: tuple[str, ...]
) -> None:
    """To 1e-12, in one process; and the same bits over processes, since sums are of integers.

    Tensors in frames are bits of links, and a scaling. Relays get one row per round, of all users of a host, whose
    length does not depend on the users.
    """
    told: dict[str, list[Any]] = defaultdict(list)
    cfg = configure(*UNEQUAL, *ONLY_SUMS, *words)
    models, spread = train_in_threads(cfg, prepare=listening(told))["server"]
    lengths, counts = set(), set()
    for frames in told.values():
        rows = {(values["round"], k): row for values in frames for k, row in values.pop("rows", {}).items()}
        assert [round for round, _ in rows] == list(range(cfg.rounds))
        lengths |= {row.shape for row in rows.values()}
        counts |= {int(row[1]) >> 20 for row in rows.values()}  # first, how many users, as a multiple of 2^-20
        for values in frames:
            assert set(values) <= PUBLIC | {"measured", "scaling", "nodes", "users", "shapes", "round"}
            assert not values.get("nodes")
            assert not values.get("measured")
            assert isinstance(values.get("users", 0), int) or not values["users"]
            assert {path[0] for path, _ in tensors(values)} <= {"bits", "scaling"}
    assert len(lengths) == 1
    assert counts == {4, 3}, "the users of a host"

    cfg.output_dir += "/alone"
    expected, sums = train(cfg)
    assert spread == sums
    assert (models is None) == ("regularizer=mean" in words)
    assert models is None or torch.equal(models, expected)
    cfg.metrics = "users"
    _, each = train(cfg)
    for row, full in zip(sums, each, strict=True):
        assert set(full) - set(row) == {name for name in full if name.endswith(("_median", "_worst"))}
        assert {name: full[name] for name in row} == pytest.approx(row, rel=1e-12, abs=1e-12 * full["primal"])


def test_the_same_look_finds_users_in_the_frames_of_the_usual_metrics(configure: Callable[..., DictConfig]) -> None:
    told: dict[str, list[Any]] = defaultdict(list)
    train_in_threads(configure(*UNEQUAL, *ADDING, "algorithm=cocoa"), prepare=listening(told))
    for name, users in (("host 0", 4), ("host 1", 3)):
        shapes = {path: tensor.shape for values in told[name] for path, tensor in tensors(values)}
        assert shapes["measured", "losses"][0] == shapes["users", "W"][0] == users


def test_r2_follows_from_sums(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    lines = ["task,a,b,y"]
    for user in range(8):
        for a, b, noise in torch.randn(12, 3, generator=generator).tolist():
            lines.append(f"{user},{a},{b},{1e4 + 50 * user + 30 * a - 20 * b + noise}")
    (tmp_path / "own.csv").write_text("\n".join(lines))
    data = ("dataset=files", "dataset.kind=regression", "dataset.task=task", "topology=any_r", "H=3", "r=2")
    scaling = ("dataset.standardize=all", "dataset.center=all", "rounds=2", "logger=none")
    cfg = configure(*ONLY_SUMS, *data, *scaling, "loss=squared", "algorithm=cocoa", f"dataset.path={tmp_path}/own.csv")
    cfg.K = 8
    models, spread = train_in_threads(cfg)["server"]
    cfg.output_dir += "/alone"
    cfg.metrics = "users"
    expected, each = train(cfg)
    assert torch.equal(models, expected)
    names = ["train_r2", "test_r2", "gap", "test_error_weighted"]
    for row, full in zip(spread, each, strict=True):
        assert [row[name] for name in names] == pytest.approx([full[name] for name in names], rel=1e-9)


def play_in_threads(cfg: DictConfig, tmp_path: Path) -> list[str]:
    """Train as the command does, each node in a folder of its own; the files with models."""
    OmegaConf.update(cfg, "engine", {"_target_": "threads.current_engine"})

    def node(placement: Placement, peers: Peers) -> None:
        own = copy.deepcopy(cfg)
        own.output_dir += f"/{placement.name}"
        Path(own.output_dir).mkdir()
        threads.set_engine(placement, peers)
        play(build(own), own)

    threads.play([Placement(rank, 6, cfg.K, cfg.H) for rank in range(6)], node)
    return sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.npz"))


def test_the_server_saves_a_model_that_all_users_share(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    cfg = configure(*UNEQUAL, *ONLY_SUMS, "algorithm=cocoa")
    assert play_in_threads(cfg, tmp_path) == ["server/models.npz"]


def test_hosts_save_models_that_the_server_does_not_know(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    files = play_in_threads(configure(*UNEQUAL, *ONLY_SUMS, "regularizer=mean"), tmp_path)
    assert files == ["host 0/models-host-0.npz", "host 1/models-host-1.npz"]
    assert (tmp_path / "server" / "users.csv").read_text().startswith("user,train_rows,test_rows\n")
    saved = [load_run(tmp_path / file) for file in files]
    cfg = configure(*UNEQUAL, *ADDING, "regularizer=mean")
    cfg.output_dir += "/alone"
    expected, _ = train(cfg)
    assert [len(models.names) for models in saved] == [4, 3]
    assert np.array_equal(np.concatenate([models.W for models in saved]).T, expected.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "wire", "rtol"),
    [("fedavg", "null", 0), ("fedavg", "int4", 0.02), ("fedadam", "null", 0), ("fednova", "null", 0)],
)
def test_who_ends_comes_back_with_the_common_model(
    configure: Callable[..., DictConfig], tmp_path: Path, learner: str, wire: str, rtol: float
) -> None:
    """The checkpoint has no state of users, and a run that resumes from it ends as one without a stop.

    With few bits, what rounding left over in the first rounds is lost.
    """
    words = (*SMALL, *ONLY_SUMS, f"algorithm={learner}", f"wire={wire}")
    killed = {"relay 0": 2, "host 1": 4}

    def prepare(peers: Peers, rank: int) -> None:
        if peers.name in killed:
            kill(peers.name, killed.pop(peers.name))(peers, rank)

    _, history = train_in_threads(configure(*words, "rounds=30"), prepare=prepare, returns=True)["server"]
    assert [row["round"] for row in history] == list(range(30))
    assert history[-1]["users"] == 10
    assert history[-1]["primal"] < history[0]["primal"]
    assert load_checkpoint(tmp_path)["algorithm"]["users"] == {}
    train_in_threads(configure(*words, "rounds=2"))
    models, _ = train_in_threads(configure(*words, f"resume={tmp_path}"))["server"]
    cfg = configure(*words)
    cfg.output_dir += "/alone"
    expected, _ = train(cfg)
    assert torch.linalg.norm(models - expected) <= rtol * torch.linalg.norm(expected)


@pytest.mark.slow
def test_users_whose_host_ends_are_gone_if_they_keep_state(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """A relay may come back; without all users there is no objective, and means are over the others."""
    cfg = configure(*SMALL, *ONLY_SUMS, "algorithm=cocoa", "rounds=30")
    killed = {"relay 0": 2}

    def prepare(peers: Peers, rank: int) -> None:
        if peers.name in killed:
            kill(peers.name, killed.pop(peers.name))(peers, rank)

    _, history = train_in_threads(cfg, prepare=prepare, returns=True)["server"]
    assert history[-1]["users"] == 10
    assert history[-1]["gap"] < history[0]["gap"]
    assert not (tmp_path / "checkpoint.pt").exists()
    with pytest.raises(EngineError, match="host 1 cannot come back"):
        train_in_threads(cfg, prepare=_once(kill("host 1", 2)), returns=True)
    _, history = train_in_threads(cfg, prepare=kill("host 1", 2))["server"]
    assert "gap" not in history[-1]
    assert history[-1]["train_error"] < 0.5


def _once(fault: Callable[[Peers, int], None]) -> Callable[[Peers, int], None]:
    names: set[str] = set()

    def prepare(peers: Peers, rank: int) -> None:
        if peers.name not in names:
            names.add(peers.name)
            fault(peers, rank)

    return prepare


@pytest.mark.parametrize(
    "words",
    [
        ("metrics=sums",),
        ("metrics=sums", "communicator=sums", "aggregators=all", "regularizer=mean"),
        ("metrics=none",),
    ],
    ids=" ".join,
)
def test_learners_that_need_more_than_sums_are_refused(
    configure: Callable[..., DictConfig], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="metrics="):
        build(configure(*SMALL, *words))


def test_a_missing_checkpoint_has_its_reason(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="metrics=sums"):
        build(configure(*SMALL, *ONLY_SUMS, "algorithm=cocoa", f"resume={tmp_path}"))
