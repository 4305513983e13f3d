"""Checkpoints: what is saved is loaded, and what cannot be resumed is refused."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hmtl.errors import CheckpointError
from hmtl.io.files import add_digest, replacing
from hmtl.training.checkpoint import load_checkpoint, save_checkpoint

IDENTITY = {"lam": 0.1, "K": 4}
STATE = {"history": {"rounds": 0, "columns": {}}, "algorithm": {"users": {"W": torch.arange(6.0)}}}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    for lam in (0.1, 0.2):  # of which the second replaces the first
        save_checkpoint(tmp_path / "checkpoint.pt", "train", {**IDENTITY, "lam": lam}, STATE)
    for path in (tmp_path, tmp_path / "checkpoint.pt"):
        state = load_checkpoint(path, "train", {"K": 4, "lam": 0.2})
        assert state["history"] == STATE["history"]
        assert torch.equal(state["algorithm"]["users"]["W"], torch.arange(6.0))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def older(path: Path) -> None:
    with replacing(path) as file:
        torch.save({"version": 2, "command": "train"}, file)
        add_digest(file)


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (Path.unlink, "missing"),
    "truncated": (truncate, "damaged"),
    "a flipped bit": (flip_a_bit, "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "another file": (lambda path: path.write_text("hello"), "damaged"),
    "an older layout": (lambda path: path.write_bytes(b"hmtl checkpoint 2\n" + path.read_bytes()), "damaged"),
    "another version": (lambda path: older(path), "version"),
    "no digest, as in an early version": (lambda path: torch.save(torch.load(path), path), "damaged .* or it has none"),
    "another command": (lambda path: save_checkpoint(path, "tune", IDENTITY, {}), "hmtl.train"),
    "code": (lambda path: torch.save(torch.nn.Linear(1, 1), path), "damaged"),
    "another configuration": (lambda path: save_checkpoint(path, "train", {"lam": 0.7, "K": 4}, STATE), "lam was 0.7"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_resumed_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, "train", IDENTITY, STATE)
    change, reason = WRONG[what]
    change(path)
    with pytest.raises(CheckpointError, match=reason) as error:
        load_checkpoint(path, "train", IDENTITY)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_setting_that_parts_share_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, "train", {"wire": "int4", "communicator.wire": "int4", "solver.wire": 1}, STATE)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, "train", {"wire": None, "communicator.wire": None, "solver.wire": 2})
    assert "(solver.wire was 1, is 2; wire was 'int4', is None)" in str(error.value)


def test_another_part_is_named_without_its_settings(tmp_path: Path) -> None:
    path, given = tmp_path / "checkpoint.pt", "hmtl.config.targets.call"
    first = {"solver._target_": "SGD", "solver.batch": 20, "algorithm.learner._target_": given, "K": 4}
    first |= {"algorithm._target_": "Networks", "algorithm.learner.given": "FedPer(personal=0)"}
    save_checkpoint(path, "train", first | {"algorithm.model.given": "A" * 999}, STATE)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(
            path, "train", {"solver._target_": given, "solver.given": "Adam", "algorithm._target_": "Ditto", "K": 4}
        )
    assert "(algorithm was 'FedPer(personal=0)', is 'Ditto'; solver was 'SGD', is 'Adam')" in str(error.value)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, "train", first | {"algorithm.model.given": "B" * 999})
    assert "(algorithm.model is another one)" in str(error.value)


@pytest.mark.parametrize("other", ["Ditto", "FedAvg"])
def test_the_lam_of_another_learner_is_not_named(tmp_path: Path, other: str) -> None:
    """Nobody need have set it: some learners have another usual one."""
    path, first = tmp_path / "checkpoint.pt", {"algorithm._target_": "FedAvg", "lam": 0.01, "regularizer.lam": 0.01}
    save_checkpoint(path, "train", first | {"K": 4}, STATE)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(
            path, "train", {"algorithm._target_": other, "lam": 0.1, "regularizer.lam": 0.1, "algorithm.lam": 0.1}
        )
    named = "algorithm was 'FedAvg', is 'Ditto'" if other == "Ditto" else "algorithm.lam was None"
    assert f"(K was 4, is None; {named}" in str(error.value)
    assert ("; lam was 0.01, is 0.1)" in str(error.value)) == (other == "FedAvg")


@pytest.mark.parametrize("first", [True, False])
def test_on_a_full_disk_the_old_checkpoint_stays(tmp_path: Path, first: bool) -> None:
    """A limit on the size of files stands for the full disk."""
    path = tmp_path / "checkpoint.pt"
    if not first:
        save_checkpoint(path, "train", IDENTITY, STATE)
    whole, large = first or path.read_bytes(), {"sent": torch.arange(10**5)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (0, 50, 10**5):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            with pytest.raises(CheckpointError, match="cannot be written") as error:
                save_checkpoint(path, "train", IDENTITY, large)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(error.value)
        assert ("no earlier checkpoint" in str(error.value), "resume=" in str(error.value)) == (first, not first)
        assert first or path.read_bytes() == whole
        assert list(tmp_path.iterdir()) == ([] if first else [path])
