"""The folder of a run: only one run at a time writes to it, and Hydra keeps the command line there."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hmtl.errors import ConfigError
from hmtl.io.files import CHECKSUM_FILE

READ_LATER = ("metrics.csv", "users.csv", "links.csv", ".hydra/config.yaml", ".hydra/overrides.yaml")
"""Text files of a run that are read again, beside `summary.json`; those in `.hydra` are there after a command only."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs; the system releases the lock at the end of the process, however it ends.

    Raises:
        ConfigError: another run uses the folder.
    """
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder} is in use by another run. Wait until it ends, or set hydra.run.dir to another folder."
            ) from error
        except OSError:  # some file systems have no locks
            pass
        yield


def remove_results(folder: Path, resumed: bool) -> None:
    """Remove what only a finished run has and, unless the run is resumed, its events; without `metrics.csv`, nothing.

    New events would otherwise go to a folder that is named after the old settings.
    """
    if (folder / "metrics.csv").exists():
        names = ("summary.json", CHECKSUM_FILE, "users.csv", "links.csv", "models.npz", "omega.png")
        for path in (*(folder / name for name in names), *([] if resumed else event_files(folder))):
            path.unlink(missing_ok=True)


def event_files(folder: Path) -> list[Path]:
    """Return TensorBoard's files of the run in `folder`, which are there or one folder below."""
    return sorted(file for place in ("", "*/") for file in folder.glob(f"{place}events.out.tfevents.*"))


def overrides(folder: Path) -> list[str]:
    """Return the settings on the command line of the run in `folder`, without those that say where results go.

    Raises:
        OSError, ValueError: they cannot be read.
    """
    path = folder / ".hydra" / "overrides.yaml"
    words: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.exists() else []
    return [word for word in map(str, words) if not word.lstrip("+~").startswith(("hydra", "output_dir"))]


def run_name(folder: Path) -> str:
    """Return the learner of the run in `folder`, and the settings on its command line, but what its folder says."""
    path = folder / ".hydra" / "hydra.yaml"
    if not path.exists():
        return "events"
    content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)  # ${seed} is in another file
    job, learner = str(content["hydra"]["job"]["override_dirname"]), content["hydra"]["runtime"]["choices"]["algorithm"]
    words = [word for word in job.split(",") if not word.startswith("algorithm=")]
    if job != folder.name:
        return ",".join(filter(None, [str(learner), *words]))
    return "" if len(words) < len(job.split(",")) else str(learner)
