"""The folder of a run: one run at a time writes to it, and Hydra left there what its command line said."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hmtl.errors import ConfigError


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; at the end of the process, however it comes, the system lets go of it.

    Raises:
        ConfigError: another run is in it.
    """
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder} is in use by another run: wait for its end, or choose another folder, hydra.run.dir=PATH."
            ) from error
        except OSError:  # some file systems have no locks
            pass
        yield


def overrides(folder: Path) -> list[str]:
    """What the command line of the run in `folder` set, where the run goes and its own numbers aside.

    Raises:
        OSError, ValueError: that cannot be read.
    """
    said = folder / ".hydra" / "overrides.yaml"
    words: Any = OmegaConf.to_container(OmegaConf.load(said), resolve=False) if said.exists() else []
    words = map(str, words)
    return [word for word in words if not word.lstrip("+~").startswith(("hydra", "output_dir"))]
