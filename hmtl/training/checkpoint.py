"""Checkpoint files: the state of a run, replaced as a whole, and refused where one bit of it has changed, or where it
is of another run.

A file is a line that names its kind, a checksum of what comes after, and that, as `torch.save` writes it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hmtl.errors import CheckpointError
from hmtl.io.files import replacing
from hmtl.training.history import Past

PARTS = ("identity", "history", "algorithm", "communicator")
KIND = b"hmtl checkpoint 2\n"
CHECKSUM = "sha256"


class _Summed:
    """Writes to a file, and sums up what it has written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.new(CHECKSUM)
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        self.sum.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        pass


def save_atomically(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state`, such that `path` holds, after any crash, either the old or the new one, whole.

    Raises:
        CheckpointError: it cannot be written, as the disk is full; the old one is still there.
    """
    try:
        with replacing(path) as file:
            summed = _Summed(file)
            file.write(KIND + bytes(summed.sum.digest_size))
            try:
                torch.save(dict(state), summed)  # type: ignore[arg-type]  # it asks for no more than `write`
            except RuntimeError:  # torch's word on a writer that has failed
                if summed.error:
                    raise summed.error from None
                raise
            file.seek(len(KIND))
            file.write(summed.sum.digest())
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}). What was saved there before is whole: make room, "
            f"and go on from it with resume={path.parent}, if it is there."
        ) from error


def load_checkpoint(
    path: Path, identity: Mapping[str, Any] | None = None, parts: Sequence[str] = PARTS
) -> dict[str, Any]:
    """The state in the checkpoint `path`, or in the run folder `path`; its `history` is a `Past`.

    Args:
        identity: the configuration that the checkpoint has to be of; None: whichever.
        parts: what its state has, the identity first; each is a dictionary.

    Raises:
        CheckpointError: there is none, it is not as it was saved, or it is of another configuration.
    """
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}: give a run's folder or its checkpoint.pt as resume=PATH.")
    try:
        state = _whole(file)
        if lacking := [part for part in parts if not isinstance(state.get(part), dict)]:
            raise ValueError(f"it has no {lacking[0]}")
        if "history" in parts:
            state["history"] = _past(file.with_name("metrics.csv"), state["history"])
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises whatever zipfile and pickle meet in a file made by others
        raise CheckpointError(
            f"{file} is not a whole checkpoint of this version of hmtl ({str(error).partition(chr(10))[0][:200]}). "
            "Take another one, or start anew without resume."
        ) from error
    here, there = (state["identity"] if identity is None else identity), state["identity"]
    differences = [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys(), key=str)
        if there.get(key) != here.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"{file} comes from another configuration ({'; '.join(differences)}): "
            "resume with the same values, or start anew without resume."
        )
    return state


def _whole(path: Path) -> dict[str, Any]:
    """The content of a file whose checksum fits."""
    with path.open("rb") as file:
        kind, checksum = file.read(len(KIND)), file.read(hashlib.new(CHECKSUM).digest_size)
        if kind.startswith(b"PK"):
            raise ValueError("an earlier version made it, without a checksum")
        if kind != KIND:
            raise ValueError("it begins with other words than one")
        start = file.tell()
        if hashlib.file_digest(file, CHECKSUM).digest() != checksum:
            raise ValueError("its checksum is not that of its content: it was cut off or changed")
        file.seek(start)
        state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state


def _past(path: Path, state: Mapping[str, Any]) -> Past:
    check_alike(state, Past(path, 0, 0, "").state_dict(), "history")
    past = Past(path, **state)
    for _ in past.blocks():
        pass
    return past


def check_alike(state: Any, like: Any, name: str) -> None:
    """Refuse a state that is not made like another one: with other names, types or shapes, or numbers not finite.

    Where the other has infinite numbers, these will do.

    Raises:
        CheckpointError: which part of it, called `name`, and how it differs.
    """
    if isinstance(like, dict) and isinstance(state, dict):
        if odd := state.keys() ^ like.keys():
            raise CheckpointError(f"{name}: {sorted(odd, key=str)[0]!r} is there or here alone{NO_USE}")
        for key, part in like.items():
            check_alike(state[key], part, f"{name}.{key}")
    elif isinstance(like, list) and isinstance(state, list) and len(state) == len(like):
        for n, part in enumerate(like):
            check_alike(state[n], part, f"{name}[{n}]")
    elif _kind(state) != _kind(like):
        raise CheckpointError(f"{name} is {_kind(state)} there, {_kind(like)} here{NO_USE}")
    elif isinstance(state, Tensor):
        if state.shape != like.shape:
            raise CheckpointError(f"{name} has shape {list(state.shape)} there, {list(like.shape)} here{NO_USE}")
        fits = ~state.isnan() if bool(like.isinf().any()) else state.isfinite()
        if not bool(fits.all()):
            raise CheckpointError(f"{name} has numbers that are not finite: the run diverged{NO_USE}")
    elif isinstance(state, float) and not math.isfinite(state):
        raise CheckpointError(f"{name} is {state}, no finite number{NO_USE}")


NO_USE = ". The checkpoint is of no use here: take another one, or start anew without resume."


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}{'' if value.layout is torch.strided else f' ({value.layout})'}".replace(
            "torch.", ""
        )
    return type(value).__name__ if not isinstance(value, list) else f"a list of {len(value)}"
