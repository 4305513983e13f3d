"""Checkpoint files: the state of a run, replaced as a whole, and refused where it is damaged or of another run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hmtl.atomic import replacing
from hmtl.errors import CheckpointError

PARTS = ("identity", "history", "algorithm", "communicator")


def save_atomically(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state`, such that `path` holds, after any crash, either the old or the new one, whole."""
    with replacing(path) as file:
        torch.save(dict(state), file)


def load_checkpoint(
    path: Path, identity: Mapping[str, Any] | None = None, parts: Sequence[str] = PARTS
) -> dict[str, Any]:
    """The state in the checkpoint `path`, or in the run folder `path`.

    Args:
        identity: the configuration that the checkpoint has to be of; None: whichever.
        parts: what its state has, the identity first.

    Raises:
        CheckpointError: there is none, it cannot be read, or it is of another configuration.
    """
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}: give a run's folder or its checkpoint.pt as resume=PATH.")
    try:
        state = dict(torch.load(file, map_location="cpu", weights_only=True))
        there, *_ = (state[part] for part in parts)
    except Exception as error:  # torch.load raises whatever zipfile and pickle meet in a damaged file
        raise CheckpointError(
            f"{file} is not a whole checkpoint of this version of hmtl ({type(error).__name__}): it was cut off or is "
            "something else. Take another one, or start anew without resume."
        ) from error
    here = there if identity is None else identity
    differences = [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"{file} comes from another configuration ({'; '.join(differences)}): "
            "resume with the same values, or start anew without resume."
        )
    return state
