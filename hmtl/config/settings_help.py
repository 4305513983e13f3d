"""The settings in `conf/` with their comments, for `--help` and the documentation."""

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from hmtl.config.build import conf_dir

YAML_SETTING = re.compile(r"^( *)(\w+): *([^#\n]*?)(?: +# +(.*(?:\n +# +.*)*))?$", re.MULTILINE)
"""Indentation, key, value and comment, which goes on in lines that have nothing else."""
WIDTH = 28
"""Columns of a setting in `--help`, before its comment."""


def settings_of(group: str, choice: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and comment of each setting in `conf/GROUP/CHOICE.yaml`, "" as the group for the root.

    A value is as written, empty for a name with settings below it. Hydra's own settings are left out.
    """
    file, path = conf_dir() / group / f"{choice}.yaml", list[str]()
    text = file.read_text().partition("\nhydra:")[0] if file.exists() else ""
    parent = [group] if group and "@package _global_" not in text else []
    for indent, key, value, comment in YAML_SETTING.findall(text):
        path[len(indent) // 2 :] = [key]
        if key not in ("defaults", "_partial_", "_convert_"):
            yield ".".join(parent + path), value, re.sub(r"\s*\n +# +", " ", comment)


def settings_help(_root_: DictConfig) -> str:
    """Return the commented settings of `conf/`, group by group with the choices of each, as wide as the terminal."""
    columns, lines, choices = shutil.get_terminal_size().columns, list[str](), dict(_root_.hydra.runtime.choices)
    groups = {group: choices[group] for group in reversed(choices) if not group.startswith("hydra/")}
    for group, choice in {"": _root_.hydra.job.config_name, **groups}.items():
        if group:
            options = ", ".join(GlobalHydra.instance().config_loader().get_group_options(group))
            lines += ["", textwrap.fill(f"{group}={choice or 'null'} ({options})", columns, subsequent_indent="    ")]
        for name, value, comment in settings_of(group, str(choice)):
            if comment and value and "$" not in value:
                line = f"{name}={value}".ljust(WIDTH) + f" {comment}"
                indent = " " * (WIDTH + 1)
                lines.append(textwrap.fill(line, columns, subsequent_indent=indent, break_on_hyphens=False))
    lines.sort(key=lambda line: Path(sys.argv[0]).stem == "tune" and not line.startswith("tune."))
    return "\n".join(lines).replace("$", "$$")
