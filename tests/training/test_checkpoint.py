"""Files that are whole or not there, and checkpoints that are refused where a bit has changed or they do not fit."""

import contextlib
import hashlib
import json
import resource

import pytest
import torch

from hmtl.errors import CheckpointError
from hmtl.io.files import replacing, write_json, write_whole
from hmtl.training.checkpoint import load_checkpoint, save_atomically

STATE = {
    "identity": {"lam": 0.1, "K": 4},
    "history": {"rows": 0, "nbytes": 0, "sha256": hashlib.sha256().hexdigest()},
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
            assert list(state.pop("history")) == []
            assert state == {
                "identity": STATE["identity"],
                "algorithm": {"users": {}, "aggregator": {}},
                "communicator": {"V_bits": 64},
            }


@pytest.mark.parametrize("lacking", STATE)
def test_a_part_is_lacking(tmp_path, lacking):
    save_atomically(tmp_path / "old.pt", {part: value for part, value in STATE.items() if part != lacking})
    with pytest.raises(CheckpointError, match=rf"old\.pt is not a whole checkpoint .* \(it has no {lacking}\)"):
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


OTHERS = b"", b"\x80\x04.", b"PK\x03\x04", b"round,gap\n", b"hmtl checkpoint 3\n" + bytes(99)


@pytest.mark.parametrize("content", OTHERS)
def test_something_else(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="an earlier version made it" if content[:2] == b"PK" else "not a whole"):
        load_checkpoint(tmp_path)


def test_every_flipped_bit_is_found(tmp_path):
    """Each bit of the first bytes, where the kind and the checksum are, and of every 7th byte after."""
    save_atomically(tmp_path / "whole.pt", STATE)
    whole = (tmp_path / "whole.pt").read_bytes()
    flipped = tmp_path / "checkpoint.pt"
    places = [*range(8 * 64), *(8 * at + at % 8 for at in range(64, len(whole), 7))]
    assert len(places) > 600
    for place in places:
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        flipped.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is not a whole checkpoint"):
            load_checkpoint(flipped)


def test_where_the_disk_is_full_the_old_one_stays(tmp_path):
    """A limit to the size of files stands for the full disk: the system's own error, at any byte."""
    path = tmp_path / "checkpoint.pt"
    save_atomically(path, STATE)
    whole, large = path.read_bytes(), {**STATE, "communicator": {"sent": torch.arange(10**5)}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (0, 10, 50, 1000, 10**5):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            with pytest.raises(CheckpointError, match=r"\.pt cannot be written \(File too large\)") as refused:
                save_atomically(path, large)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(refused.value)
        assert path.read_bytes() == whole
        assert list(tmp_path.iterdir()) == [path]
