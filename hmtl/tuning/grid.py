"""Grids for cross-validation: settings by name, the values to try, and what their errors tell.

F folds, P combinations of values. A point is a combination with what was found for it.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from hmtl.config.parts import no_setting
from hmtl.config.schema import flat
from hmtl.errors import ConfigError

Grid = dict[str, list[Any]]
Figures = dict[str, float]
"""Of a training: error; relative_gap and settled, or change where the algorithm has no gap."""

LAMBDAS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
TUNABLE = ("algorithm", "regularizer", "solver")  # parts whose settings may be in a grid

# A training has converged where neither is above its bar. On HAR by subject and mnist5k, validation errors with gaps
# below 0.1 were within a tenth of those after 400 rounds; with larger ones they were up to twice as high.
BARS = {
    "relative_gap": 0.1,  # gap / |primal|
    "change": 0.02,  # of the objective in the last tenth of the rounds, relative
}
WORDS = {"relative_gap": "relative gap {:.2g}", "change": "objective changed by {:.0%} in the last tenth of rounds"}
LONGER = ("passes", "epochs")  # settings of solvers that make a round do more


def grid_of(cfg: DictConfig) -> Grid:
    """`cfg.tune.grid`: names of settings and their values, numbers ascending; a list is one of λ.

    Raises:
        ConfigError: it is empty, or names what cannot be tuned.
    """
    asked = cfg.tune.grid
    if not isinstance(asked, DictConfig):
        asked = OmegaConf.create({"lam": LAMBDAS if asked is None else asked})
    grid: Grid = {}
    for name, values in reversed(flat(asked).items()):
        part, _, setting = name.partition(".")
        if part not in cfg:
            raise ConfigError(f"tune.grid: {no_setting(name, set(map(str, cfg)))}")
        if name != "lam" and not (setting and part in TUNABLE):
            raise ConfigError(f"tune.grid: {name} cannot be tuned, but lam and the settings of {', '.join(TUNABLE)}.")
        if not isinstance(values, list) or not all(isinstance(v, str | int | float | None) for v in values):
            raise ConfigError(f"tune.grid: {name}={values} is no list of numbers or words, such as {name}=[1,2].")
        if all(map(is_number, values)):
            kind = float if any(isinstance(value, float) for value in values) else int
            grid[name] = sorted({kind(value) for value in values})
        else:
            grid[name] = list(dict.fromkeys(values))
    if not grid or not all(grid.values()):
        raise ConfigError(f"tune.grid={asked}: give at least one value for each setting in it.")
    return grid


def is_number(value: object) -> bool:
    """Not so true and false, which Python counts among the whole numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def combinations(grid: Grid) -> list[dict[str, Any]]:
    """All of them, P, {name: value}; the values of the last setting change first."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def with_values(cfg: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """A copy of `cfg` with other values of some settings."""
    cfg = cfg.copy()
    for name, value in values.items():
        OmegaConf.update(cfg, name, value, force_add=True)  # whatever there is not, is refused as it is made
    return cfg


def conclude(cfg: DictConfig, grid: Grid, trained: Sequence[Sequence[Figures]]) -> dict[str, Any]:
    """What `cross_validate` returns, from figures [P, F]."""
    points = [
        {"values": values, **_over_folds(figures)} for values, figures in zip(combinations(grid), trained, strict=True)
    ]
    best = max(range(len(points)), key=lambda p: (-points[p]["error"], p))  # a later one has larger values
    return {
        "grid": grid,
        "points": points,
        "best": points[best]["values"],
        "error": points[best]["error"],
        "warnings": [*_not_converged(cfg, grid, points, best), *_at_the_edge(grid, points[best]["values"])],
    }


def _over_folds(figures: Sequence[Figures]) -> dict[str, Any]:
    errors = [each["error"] for each in figures]
    error = float(np.mean(errors))
    worst = {name: float(np.max([each[name] for each in figures])) for name in BARS if name in figures[0]}
    doubts = [WORDS[name].format(value) for name, value in worst.items() if not value <= BARS[name]]  # NaN is, too
    if not doubts and not all(each.get("settled", True) for each in figures):
        doubts.append("Ω still changes")
    return {
        "error": error if math.isfinite(error) else math.inf,
        "sd": float(np.std(errors, ddof=1)),
        "errors": errors,
        **worst,
        "doubt": doubts[0] if doubts else "",
    }


def _not_converged(cfg: DictConfig, grid: Grid, points: Sequence[Mapping[str, Any]], best: int) -> Iterator[str]:
    """A warning where the best point or one next to it, one value further in one setting, has not converged."""
    places = list(itertools.product(*(range(len(values)) for values in grid.values())))
    near = [p for p, place in enumerate(places) if math.dist(place, places[best]) <= 1]
    if bad := [f"{told(points[p]['values'])} ({points[p]['doubt']})" for p in near if points[p]["doubt"]]:
        more = {"rounds": 2 * cfg.rounds} | {f"solver.{name}": 2 * cfg.solver.get(name, 0) for name in LONGER}
        advice = [f"{name}={value:g}" for name, value in more.items() if value and name not in grid]
        if "step" in cfg.solver:
            advice.append("a smaller solver.step, should it diverge")
        yield f"not converged: {'; '.join(bad)}. Try {' or '.join(advice)}."


def _at_the_edge(grid: Grid, best: Mapping[str, Any]) -> Iterator[str]:
    for name, values in grid.items():
        if len(values) > 1 and all(map(is_number, values)) and best[name] in (values[0], values[-1]):
            where = "smallest" if best[name] == values[0] else "largest"
            yield f"{told({name: best[name]})} is the {where} in the grid: better ones may lie beyond."


def told(values: Mapping[str, Any]) -> str:
    """Settings in the way of the command line, numbers short."""
    return ", ".join(f"{name}={value:g}" if is_number(value) else f"{name}={value}" for name, value in values.items())
