"""What cells answer, in which order, and what never leaves a host."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import DEAF, GONE, LATE, SMALL, Fault, Trained, check_equal, train, train_in_cells
from omegaconf import DictConfig

from hmtl.communication.messages import IVS
from hmtl.config.build import build, compose, load_run
from hmtl.distributed.cell import Cell
from hmtl.errors import CheckpointError, ConfigError
from hmtl.train import play
from hmtl.training.checkpoint import load_checkpoint

UNEQUAL = ("K=7", "H=3", "r=2", "rounds=2", "dataset.rows_per_user=10", "logger=none")  # hosts of 4 and 3 users
ADDING = ("communicator=sums", "aggregators=server")
ONLY_SUMS = (*ADDING, "metrics=sums")
SECURE = ("algorithm=cocoa", "secure=true")
ROUND = ["update", "advertise", "share", "read", "prepare", "rows", "answer", "conclude"]
"""The turns of a host in a round of secure sums."""


def tensors(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """All tensors in a value, with the names that lead to them."""
    if isinstance(values, torch.Tensor):
        yield path, values
    children = vars(values) if hasattr(values, "__dataclass_fields__") else values
    children = dict(enumerate(children)) if isinstance(children, list | tuple) else children
    if isinstance(children, dict):
        for name, each in children.items():
            yield from tensors(each, (*path, str(name)))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of masked sums, of which only sums are known."""
    folder = tmp_path_factory.mktemp("masked")
    return train_in_cells(compose(*SMALL, *ONLY_SUMS, *SECURE, f"output_dir={folder}"))


def test_unknown_calls_are_refused(masked: Trained) -> None:
    for call in ("_facts", "__init__", "answer", "training", "no such call"):
        for cell in masked.cells.cells.values():
            assert cell.answer(call, {})["error"] == "CodingError"


@pytest.mark.parametrize("call", ["measure", "block", "users_state", "load_users"])
def test_what_only_a_host_may_know_stays_there(masked: Trained, call: str) -> None:
    for name in ("host 0", "host 1"):
        answer = masked.cells.cells[name].answer(call, {})
        assert answer["error"] == "CodingError"
        assert "metrics=sums" in answer["text"]


LATER = count(1000)
"""Rounds that no test has played yet."""


def play_turns(trained: Trained, round: int, actions: list[str]) -> str:
    """Ask a host for some turns of a round without messages; the error that it answers, if there is one."""
    heard = {"share": 1, "read": 1, "prepare": 1, "answer": 1, "conclude": 2}
    numbers = {"update": [round, ["relay 0", "relay 1", "relay 2"]]}
    turns = [
        {
            "action": each,
            "numbers": numbers.get(each, []),
            "kinds": [IVS] * heard.get(each, 0),
            "heard": [[]] * heard.get(each, 0),
            "task": "",
            "sample": None,
        }
        for each in actions
    ]
    values = {"name": "learner", "round": round, "evaluates": True, "turns": turns}
    return trained.cells.cells["host 0"].answer("play", values).get("text", "")


@pytest.mark.parametrize(
    "again", ["update", "advertise", "share", "read", "prepare", "rows", "answer", "load_state_dict"]
)
def test_a_host_takes_each_turn_once_and_in_order(masked: Trained, again: str) -> None:
    """Otherwise a controller could have it mask or reveal twice."""
    for n in range(1, len(ROUND)):
        if again not in ROUND or ROUND.index(again) < n:
            assert "order" in play_turns(masked, next(LATER), [*ROUND[:n], again]), f"{again} after {ROUND[n - 1]}"
    assert "order" in play_turns(masked, next(LATER), [again]) or again == "update"


def test_a_round_that_is_over_is_not_played_again(masked: Trained) -> None:
    play_turns(masked, round := next(LATER), ["update"])
    assert "over" in play_turns(masked, round - 1, ["update"])


@pytest.mark.parametrize("name", ["relay 0", "server"])
@pytest.mark.parametrize("action", ["load_state_dict", "state_dict", "follow", "close", "__init__", "_to_server"])
def test_a_node_takes_no_turns_but_its_own(masked: Trained, name: str, action: str) -> None:
    turn = {"action": action, "numbers": [], "kinds": [], "heard": [], "task": "", "sample": None}
    values = {"name": "learner", "round": 2, "evaluates": True, "turns": [turn]}
    assert masked.cells.cells[name].answer("play", values)["error"] == "CodingError"


def test_rows_go_to_relays_alone(masked: Trained) -> None:
    turn = {"action": "update", "numbers": [3000, ["server"]], "kinds": [], "heard": [], "task": "", "sample": None}
    values = {"name": "learner", "round": 3000, "evaluates": True, "turns": [turn]}
    assert masked.cells.cells["host 1"].answer("play", values)["error"] == "CodingError"


def test_a_process_that_has_just_begun_knows_nothing(masked: Trained) -> None:
    cell = Cell("host 0", lambda K: masked.cells.homes, *masked.cells.parts, lambda *_: 0, lambda *_: None)
    assert "started again" in cell.answer("measure", {})["lost"]


LEARNERS = [
    ("algorithm=cocoa",),
    *(
        pytest.param(words, marks=pytest.mark.slow)
        for words in (
            ("algorithm=fedavg", "validation_fraction=0.3"),
            ("algorithm=scaffold", "participation.dropout=0.3"),
            ("regularizer=mean", "wire=int4", "participation.dropout=0.3"),
            ("algorithm=fedu", "regularizer=mean"),
        )
    ),
]


@pytest.mark.parametrize("words", LEARNERS, ids=" ".join)
def test_hosts_tell_sums_and_means_and_gap_are_the_usual_ones(
    configure: Callable[..., DictConfig], words: tuple[str, ...]
) -> None:
    """To 1e-12, in one process; and the same bits with cells, since sums are of integers.

    Relays get one row of figures per round, of all users of a host, whose length does not depend on the users.
    """
    cfg = configure(*UNEQUAL, *ONLY_SUMS, *words)
    ours = train_in_cells(cfg)
    for host in ours.cells.hosts:
        told = ours.cells.told[host]
        assert {call for call, _ in told} <= {
            *("load", "build", "report", "nodes", "play", "figure_shapes", "node_state"),
            *("save_users", "keep", "save_models"),
        }
        for call, answer in told:
            names = {path[-1] for path, tensor in tensors(answer) if tensor.is_floating_point() and tensor.numel()}
            assert call in ("load", "report") or not names, (call, names)

    alone = train(cfg)
    assert ours.rows == [pytest.approx(row, rel=0, abs=0, nan_ok=True) for row in alone.rows]
    assert (ours.models is None) == ("regularizer=mean" in words)
    if ours.models is not None:
        check_equal(ours, alone)
    cfg.metrics = "users"
    for row, full in zip(alone.rows, train(cfg).rows, strict=True):
        assert set(full) - set(row) == {name for name in full if name.endswith(("_median", "_worst"))}
        assert {name: full[name] for name in row} == pytest.approx(row, rel=1e-12, abs=1e-12 * full["primal"])


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
    ours = train_in_cells(cfg)
    cfg.metrics = "users"
    alone = train(cfg)
    assert torch.equal(ours.models, alone.models)
    names = ["train_r2", "test_r2", "gap", "test_error_weighted"]
    for row, full in zip(ours.rows, alone.rows, strict=True):
        assert [row[name] for name in names] == pytest.approx([full[name] for name in names], rel=1e-9)


def test_hosts_save_models_that_the_controller_does_not_know(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = configure(*UNEQUAL, *ONLY_SUMS, "regularizer=mean")
    expected = train(configure(*UNEQUAL, *ADDING, "regularizer=mean")).models
    cfg.engine = {"_target_": "cells.Cells"}
    play(build(cfg), cfg)
    assert not (tmp_path / "models.npz").exists()
    assert (tmp_path / "users.csv").read_text().startswith("user,train_rows,test_rows\n")
    saved = [load_run(tmp_path / f"models-host-{n}.npz") for n in range(2)]
    assert [len(models.names) for models in saved] == [4, 3]
    assert np.array_equal(np.concatenate([models.W for models in saved]).T, expected.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(("learner", "wire", "rtol"), [("fedadam", "null", 0), ("fedavg", "int4", 0.02)])
def test_who_ends_comes_back_with_the_state_on_its_disk(
    configure: Callable[..., DictConfig], tmp_path: Path, learner: str, wire: str, rtol: float
) -> None:
    """The checkpoint has no state of users, and a run that resumes from it ends as one without a stop."""
    words = (*SMALL, *ONLY_SUMS, f"algorithm={learner}", f"wire={wire}")
    faults = [Fault("relay 0", "report", 2), Fault("host 1", "rows", 4), Fault("server", "attend", 6, GONE)]
    rows = train_in_cells(configure(*words, "rounds=15"), *faults).rows
    assert [row["round"] for row in rows] == list(range(15))
    assert rows[-1]["users"] == 10
    assert rows[-1]["primal"] < rows[0]["primal"]
    assert load_checkpoint(tmp_path)["algorithm"]["users"] == {}
    train_in_cells(configure(*words, "rounds=2"))
    models = train_in_cells(configure(*words, f"resume={tmp_path}")).models
    expected = train(configure(*words)).models
    assert torch.linalg.norm(models - expected) <= rtol * torch.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize("how", [LATE, DEAF])
def test_users_with_state_of_their_own_come_back_with_their_host(
    configure: Callable[..., DictConfig], how: str
) -> None:
    """A relay comes back, too."""
    cfg = configure(*SMALL, *ONLY_SUMS, "algorithm=cocoa", "rounds=20", "gap_tolerance=0")
    rows = train_in_cells(cfg, Fault("relay 0", "conclude", 2, how), Fault("relay 1", "up", 5, how)).rows
    assert rows[-1]["users"] == 10
    assert -1e-9 <= rows[-1]["gap"] < rows[0]["gap"]
    rows = train_in_cells(cfg, Fault("host 1", "rows", 2, how)).rows
    assert rows[-1]["users"] == 10
    assert -1e-9 <= rows[-1]["gap"] < rows[0]["gap"]


@pytest.mark.parametrize(
    "words",
    [
        ("metrics=sums",),
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
    with pytest.raises(CheckpointError):
        build(configure(*SMALL, *ONLY_SUMS, "algorithm=cocoa", f"resume={tmp_path}"))
