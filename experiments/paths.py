"""Paths as Hydra settings."""

from pathlib import Path


def data_path(path: str | Path) -> str:
    """Return the setting `dataset.path` for any path, quoted as Hydra's grammar needs it."""
    quoted = str(path).replace("'", r"\'")
    return f"dataset.path='{quoted}'"
