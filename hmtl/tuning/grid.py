"""Grids for cross-validation: settings by name, and the values to try."""

import itertools
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hmtl.config.schema import flat
from hmtl.errors import ConfigError

ValuesBySetting = dict[str, list[Any]]
"""Values to try for each setting."""
LAMBDAS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""The usual values of λ."""
TUNABLE = ("algorithm", "regularizer", "solver")
"""Parts whose settings may be in a grid."""


def grid_of(cfg: DictConfig) -> ValuesBySetting:
    """Return the grid of `cfg.tune.grid`, numbers in ascending order; a list has values of λ.

    Raises:
        ConfigError: the grid is empty, or names a setting that cannot be tuned.
    """
    asked = cfg.tune.grid
    if not isinstance(asked, DictConfig):
        asked = OmegaConf.create({"lam": LAMBDAS if asked is None else asked})
    grid: ValuesBySetting = {}
    for name, values in reversed(flat(asked).items()):
        part, _, setting = name.partition(".")
        if name != "lam" and not (setting and part in TUNABLE):
            raise ConfigError(f"tune.grid: {name} cannot be tuned. Choose lam or settings of {', '.join(TUNABLE)}.")
        if not isinstance(values, list) or not all(isinstance(v, str | int | float | None) for v in values):
            raise ConfigError(f"tune.grid: {name}={values} is not a list of values. Set it to one such as [1,2].")
        grid[name] = sorted(set(values)) if all(map(is_number, values)) else list(dict.fromkeys(values))
    if not grid or not all(grid.values()):
        raise ConfigError(f"tune.grid={asked} is empty. Give each setting at least one value.")
    return grid


def is_number(value: object) -> bool:
    """Return whether a value is a number; true and false are not, although Python counts them as such."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def combinations(grid: ValuesBySetting) -> list[dict[str, Any]]:
    """Return all combinations of the values, {setting: value}; the values of the last setting change first."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def with_values(cfg: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Return a copy of a configuration with other values of some settings."""
    cfg = cfg.copy()
    for name, value in values.items():
        OmegaConf.update(cfg, name, value, force_add=True)  # the part itself refuses settings that it lacks
    return cfg


def as_words(values: Mapping[str, Any]) -> str:
    """Return settings as on the command line, with short numbers."""
    return ", ".join(f"{name}={value:g}" if is_number(value) else f"{name}={value}" for name, value in values.items())
