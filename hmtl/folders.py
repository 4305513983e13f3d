"""Folders that one run at a time writes to."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
