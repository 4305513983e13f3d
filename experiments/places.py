"""Where data lie, as settings."""

from pathlib import Path


def data_in(path: str | Path) -> str:
    """`dataset.path` as Hydra reads it, whatever letters, blanks or quotes are in the path."""
    quoted = str(path).replace("'", r"\'")
    return f"dataset.path='{quoted}'"
