"""Files that are whole or not there, and checkpoints that are refused where they do not fit."""

import contextlib
import json

import pytest
import torch

from hmtl.atomic import replacing, write_json, write_whole
from hmtl.checkpoint import load_checkpoint, save_atomically
from hmtl.errors import CheckpointError

STATE = {
    "identity": {"lam": 0.1, "K": 4},
    "history": [{"round": 0, "gap": 0.5}],
    "algorithm": {"users": {"W": torch.arange(6.0)}, "aggregator": {}},
    "communicator": {"V_bits": 64},
}


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"σ": 1})
    assert json.loads(path.read_text()) == {"σ": 1}
    with replacing(path) as file:
        file.write(b"half")
        file.flush()
        assert json.loads(path.read_text()) == {"σ": 1}
    assert path.read_text() == "half"
    with contextlib.suppress(ZeroDivisionError), replacing(path) as file:
        file.write(b"other")
        _ = 1 / 0
    assert path.read_text() == "half"
    write_json(path, {"σ": 1})
    assert json.loads(path.read_text()) == {"σ": 1}
    write_whole(path, "now σ")
    assert path.read_text() == "now σ"
    assert [found.name for found in tmp_path.iterdir()] == ["summary.json"]


def test_what_was_saved_is_loaded(tmp_path):
    save_atomically(tmp_path / "checkpoint.pt", STATE)
    for place in (tmp_path, tmp_path / "checkpoint.pt"):
        for identity in (None, STATE["identity"]):
            state = load_checkpoint(place, identity)
            assert torch.equal(state["algorithm"]["users"].pop("W"), torch.arange(6.0))
            assert state == {**STATE, "algorithm": {"users": {}, "aggregator": {}}}


@pytest.mark.parametrize("lacking", STATE)
def test_a_part_is_lacking(tmp_path, lacking):
    save_atomically(tmp_path / "old.pt", {part: value for part, value in STATE.items() if part != lacking})
    with pytest.raises(CheckpointError, match=r"old\.pt is not a whole checkpoint .* \(KeyError\)"):
        load_checkpoint(tmp_path / "old.pt")


def test_every_difference_is_named(tmp_path):
    save_atomically(tmp_path / "checkpoint.pt", STATE)
    with pytest.raises(CheckpointError, match=r"\(K: 4 there, None here; lam: 0\.1 there, 0\.5 here; r: None there, 2"):
        load_checkpoint(tmp_path, {"lam": 0.5, "r": 2})


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_cut_off(tmp_path, keep):
    save_atomically(tmp_path / "checkpoint.pt", STATE)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(CheckpointError, match=r"cut\.pt is not a whole checkpoint"):
        load_checkpoint(cut)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nothing")
