"""Export of users' models as safetensors files, which other programs read."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hmtl.errors import ConfigError
from hmtl.io.files import write_json


def export(path: Path, users: Sequence[str], model: Callable[[str], nn.Module], about: Mapping[str, Any]) -> None:
    """Write a new folder with the state of each user's module, and `users.json`.

    Args:
        path: the folder.
        users: names of the users.
        model: returns the module of a user.
        about: further content of `users.json`.

    Raises:
        ConfigError: if `path` exists, or safetensors is not installed.
    """
    try:
        from safetensors.torch import save_model
    except ImportError as error:
        raise ConfigError("Export needs safetensors. Run pip install 'hmtl[export]'.") from error
    if path.exists():
        raise ConfigError(f"{path} exists. Give the name of a new folder.")
    unfinished = path.with_name(f"{path.name}.half")
    shutil.rmtree(unfinished, ignore_errors=True)  # from an export that was killed
    unfinished.mkdir(parents=True)
    digits = len(str(len(users) - 1))
    try:
        files = {}
        for k, user in enumerate(users):
            plain = re.sub(r"[^\w.-]+", "_", user)[:99]
            files[user] = f"{k:0{digits}} {plain}.safetensors"
            save_model(model(user), str(unfinished / files[user]))
        write_json(unfinished / "users.json", {"users": files, **about})
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
