"""Write a small project that runs: `python -m hmtl.new FOLDER`.

The folder gets data.py (the data of each user), model.py (the module that they
train), conf/ (settings), test_project.py (a test) and README.md (the commands).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from hmtl.errors import ConfigError, run_command

TEMPLATE = Path(__file__).parent / "template"


def new(folder: Path) -> None:
    """Write the project.

    Raises:
        ConfigError: `folder` is not empty, or cannot be written to.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty. Give the name of a new folder.")
        shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror or error}). Give another folder.") from error
    print(f"Project: {folder}. Its README.md has three commands to begin with.")


def main(arguments: Sequence[str]) -> None:
    """Write the project to the one folder that is given."""
    if len(arguments) != 1:
        raise ConfigError("Give one folder, such as python -m hmtl.new project.")
    new(Path(arguments[0]))


if __name__ == "__main__":
    run_command(__doc__, main)
