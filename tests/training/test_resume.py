"""Checkpoints made by others: whole files with a checksum that fits, and a state that is not one of this run."""

import operator
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

from hmtl.config.build import build, compose
from hmtl.errors import CheckpointError
from hmtl.train import train
from hmtl.training.checkpoint import _whole, load_checkpoint, save_atomically

SMALL = ("K=10", "H=3", "r=2", "dataset.rows_per_user=20", "logger=none", "participation.relays=[[1,0],[1,1],[1,2]]")
State = dict[str, Any]


def put(path: str, value: Any) -> Callable[[State], None]:
    """Something else in a place such as "algorithm users W"; a function makes it of what was there."""

    def change(state: State) -> None:
        *way, last = (name.replace("_0", " 0") for name in path.split())
        place = reduce(operator.getitem, way, state)
        place[last] = value(place[last]) if callable(value) else value

    return change


def drop(path: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        *way, last = path.split()
        del reduce(operator.getitem, way, state)[last]

    return change


def nan(tensor: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(tensor.numel()).view(tensor.shape) == 3, torch.nan, tensor)


WAITING = "algorithm users waiting"
WRONG = [
    (put("identity", [1]), "it has no identity"),
    (put("history", 3), "it has no history"),
    (put("algorithm", None), "it has no algorithm"),
    (drop("communicator"), "it has no communicator"),
    (put("identity lam", 0.7), r"lam: 0\.7 there, 0\.01 here"),
    (put("history rows", 2.0), "history.rows is float there, int here"),
    (put("history rows", 1), "does not begin with the 1 rounds"),
    (put("history nbytes", lambda n: n - 1), "does not begin with the 2 rounds"),
    (put("history sha256", "0" * 64), "does not begin with the 2 rounds"),
    (drop("history sha256"), "history: 'sha256' is there or here alone"),
    (put("algorithm users W", lambda W: W[:-1]), r"users.W has shape \[9, 784\] there, \[10, 784\] here"),
    (put("algorithm users W", lambda W: W.T), r"users.W has shape \[784, 10\] there"),
    (put("algorithm users W", lambda W: W.float()), "users.W is a tensor of float32 there, a tensor of float64 here"),
    (put("algorithm users W", lambda W: W.to_sparse()), r"users.W is a tensor of float64 \(sparse_coo\) there"),
    (put("algorithm users W", lambda W: W.to(torch.complex128)), "users.W is a tensor of complex128 there"),
    (put("algorithm users W", lambda W: W.tolist()), "users.W is a list of 10 there, a tensor of float64 here"),
    (put("algorithm users W", nan), "users.W has numbers that are not finite"),
    (put("algorithm aggregator Omega", lambda Omega: Omega / 0), "aggregator.Omega has numbers that are not finite"),
    (drop("algorithm users W"), "users: 'W' is there or here alone"),
    (put("algorithm users more", 1), "users: 'more' is there or here alone"),
    (
        put(WAITING, lambda waiting: waiting.nonzero()[:, 0]),
        "waiting is a tensor of int64 there",
    ),
    (put(WAITING, lambda waiting: waiting[:, None]), r"waiting has shape \[10, 1\] there, \[10\] here"),
    (drop("algorithm aggregator"), "state.algorithm: 'aggregator' is there or here alone"),
    (put("algorithm users", 3), "users is int there, dict here"),
    (drop("communicator ledger"), "state.communicator: 'ledger' is there or here alone"),
    (put("communicator V_bits", "many"), "V_bits is str there, int here"),
    (put("communicator planning", [0, 0.0]), "planning is a list of 2 there, a list of 3 here"),
    (put("communicator setup_seconds", [0.0, float("inf")]), r"setup_seconds\[1\] is inf"),
    (put("communicator ledger rounds", 7), "its ledger has 7 rounds, its history 2"),
    (put("communicator ledger rounds", -2), "its ledger has -2 rounds, its history 2"),
    (put("communicator ledger latest", lambda n: n[:-1]), r"ledger.latest has shape \[29, 2\] there, \[30, 2\] here"),
    (put("communicator ledger earlier", lambda n: n.double()), "ledger.earlier is a tensor of float64"),
    (put("communicator ledger setup", lambda n: n - 1), "fewer bits than none"),
    (put("communicator nodes", {}), "nodes: 'aggregation' is there or here alone"),
    (drop("communicator nodes server"), "nodes: 'server' is there or here alone"),
    (put("communicator nodes server version", torch.tensor(9)), "server.version is none of 2 rounds"),
    (put("communicator nodes host_0 sent", lambda n: n - 9), "host 0.sent is none of 2 rounds"),
    (put("communicator nodes server version", torch.tensor(0.5)), "version is a tensor of float32"),
]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended after 2 of 4 rounds, while users waited for their models."""
    folder = tmp_path_factory.mktemp("stopped")
    train(compose(*SMALL, "rounds=2", "algorithm.rounds=4", f"output_dir={folder}"))
    assert len(load_checkpoint(folder)["algorithm"]["users"]["waiting"].nonzero()) == 10
    return folder


def test_states_of_other_runs_are_refused_before_anything_changes(stopped: Path, tmp_path: Path) -> None:
    """One run is offered all of them, and then goes on from the right one as if nothing had been."""
    place = tmp_path / "checkpoint.pt"
    (tmp_path / "metrics.csv").write_bytes((stopped / "metrics.csv").read_bytes())
    (tmp_path / "results").mkdir()
    run = build(compose(*SMALL, "rounds=4", f"output_dir={tmp_path / 'results'}"))
    for change, message in WRONG:
        state = _whole(stopped / "checkpoint.pt")
        change(state)
        save_atomically(place, state)
        with pytest.raises(CheckpointError, match=message) as refused:
            run.trainer.fit(load_checkpoint(place, run.trainer.identity))
        assert "\n" not in str(refused.value)
        assert "start anew without resume" in str(refused.value)
    assert not list((tmp_path / "results").iterdir())
    run.trainer.fit(load_checkpoint(stopped, run.trainer.identity))
    (tmp_path / "whole").mkdir()
    train(compose(*SMALL, "rounds=4", f"output_dir={tmp_path / 'whole'}"))
    ours, theirs = (load_checkpoint(tmp_path / name)["algorithm"] for name in ("results", "whole"))
    for side, tensors in theirs.items():
        assert all(torch.equal(tensor, ours[side][name]) for name, tensor in tensors.items())


def test_a_run_that_was_stopped_before_its_first_round_goes_on(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("nothing", "resumed", "whole")]
    for folder in folders:
        folder.mkdir()
    nothing, resumed, whole = folders
    run = build(compose(*SMALL, "rounds=2", f"output_dir={nothing}"))
    run.trainer._goes_on = lambda: False
    assert run.trainer.fit() == []
    train(compose(*SMALL, "rounds=2", f"output_dir={resumed}", f"resume={nothing}"))
    train(compose(*SMALL, "rounds=2", f"output_dir={whole}"))
    W = [load_checkpoint(folder)["algorithm"]["users"]["W"] for folder in (resumed, whole)]
    assert torch.equal(*W)
