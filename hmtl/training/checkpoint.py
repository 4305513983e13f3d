"""Checkpoints: the state of a run in one file, which is replaced as a whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hmtl.errors import CheckpointError
from hmtl.io.files import add_digest, check_digest, replacing

VERSION = 11
"""Version of the layout; a checkpoint of another version is refused."""


def save_checkpoint(path: Path, command: str, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint `path`, which only its owner may read; a crash leaves either the old state or the new one.

    Args:
        path: the file.
        command: the command that can resume it, "train" or "tune"; or what else reads it, "host" or "privacy".
        identity: the configuration that a run needs in order to resume it.
        state: tensors, numbers and strings in plain dictionaries and lists.

    Raises:
        CheckpointError: the file cannot be written.
    """
    content = {"version": VERSION, "command": command, "identity": dict(identity), **state}
    try:
        with replacing(path, 0o600) as file:
            torch.save(content, file)
            add_digest(file)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's writer reports a full disk
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        last, again = "There is no earlier checkpoint", "start again"
        if path.exists():
            last, again = (
                "The last checkpoint there is still whole",
                f"set resume={path.parent}, or restart a site's server",
            )
        raise CheckpointError(f"{path} cannot be written ({reason}). {last}: free some space, then {again}.") from error


def load_checkpoint(
    path: Path, command: str = "train", identity: Mapping[str, Any] | None = None, missing: str = ""
) -> dict[str, Any]:
    """Return the content of a checkpoint.

    Args:
        path: a checkpoint, or the folder of a run.
        command: the command that wants to resume it.
        identity: the configuration that the checkpoint has to share; None: any.
        missing: what to do if there is none.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, of another version, command or configuration.
    """
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.is_file():
        missing = missing or "Set resume to the folder of a run or to its checkpoint.pt."
        raise CheckpointError(f"{file} is missing. {missing}")
    try:
        with file.open("rb") as stream:
            check_digest(stream)
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever zipfile and pickle meet in another file
        raise CheckpointError(
            f"{file} is damaged or not a checkpoint ({str(error).partition(chr(10))[0][:200]}). {RESTART}"
        ) from error
    if not isinstance(content, dict) or (content.get("version"), content.get("command")) != (VERSION, command):
        raise CheckpointError(f"{file} is not a checkpoint of hmtl.{command} in this version of hmtl. {RESTART}")
    saved = content["identity"]
    wanted = saved if identity is None else identity
    changes = {
        key: _change(key, saved, wanted)
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key)
    }
    others = tuple(key.removesuffix("_target_") for key in changes if key.endswith("._target_"))
    by_part = {"lam"} if any(part.startswith("algorithm.") for part in others) else set()  # each has its usual one
    differences = [  # without settings of another part, and of parts that follow a root setting, as communicator.wire
        f"{key.removesuffix('._target_').removesuffix('.given')} {change}"
        for key, change in changes.items()
        if key not in by_part
        and ("." not in key or changes.get(key.rpartition(".")[2]) != change)
        and not any(key.startswith(part) and key != f"{part}_target_" for part in others)
    ]
    if differences:
        raise CheckpointError(
            f"{file} belongs to another configuration ({'; '.join(differences)}). Resume with the same values, or "
            "start a new run in another folder (hydra.run.dir) without resume."
        )
    return content


def _change(key: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return what a setting was and is, for a part that was given as an object its description."""
    part = key.removesuffix("_target_")
    names = [f"{part}learner.given", f"{part}given", key]
    was, now = (next((each[name] for name in names if name in each), None) for each in (saved, wanted))
    return f"was {was!r}, is {now!r}" if max(len(str(was)), len(str(now))) < 100 else "is another one"


RESTART = "Use another checkpoint, or start a new run in another folder (hydra.run.dir) without resume."
