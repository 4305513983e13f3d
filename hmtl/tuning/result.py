"""The result of a cross-validation: an error for each combination of values, the best one, and warnings.

F folds, P combinations.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from hmtl.tuning.grid import Grid, as_words, combinations, is_number

Figures = dict[str, float]
"""Of one training: `error`; `relative_gap` and `settled`, or `change` if the algorithm has no duality gap."""

LIMITS = {
    "relative_gap": 0.1,  # gap / |primal|
    "change": 0.02,  # relative change of the objective in the last tenth of the rounds
}
"""A training has converged if neither exceeds its limit.

On HAR by subject and mnist5k, validation errors with relative gaps below 0.1 were within a tenth of those after 400
rounds; with larger gaps they were up to twice as high.
"""
DOUBTS = {"relative_gap": "relative gap {:.2g}", "change": "objective changed by {:.0%} in the last tenth of rounds"}
LONGER = ("passes", "epochs")
"""Settings of solvers that make a round do more work."""


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        values: value of each setting.
        error: validation error, mean over users and folds; infinite if a training diverged.
        sd: standard deviation of the error over folds.
        errors: error of each fold, [F].
        relative_gap: duality gap relative to the primal objective, largest over folds; None without a gap.
        change: relative change of the objective in the last tenth of the rounds, largest over folds; None with a gap.
        doubt: why the trainings may not have converged; "" if they have.
    """

    values: dict[str, Any]
    error: float
    sd: float
    errors: list[float]
    relative_gap: float | None = None
    change: float | None = None
    doubt: str = ""


@dataclass(frozen=True)
class Result:
    """The content of `tune.json`: all combinations, the values and the error of the best one, and what is uncertain."""

    grid: Grid
    points: list[Point]
    best: dict[str, Any]
    error: float
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `tune.json`."""
        return asdict(self, dict_factory=lambda items: {key: value for key, value in items if value is not None})


def conclude(cfg: DictConfig, grid: Grid, trained: Sequence[Sequence[Figures]]) -> Result:
    """Return the result of all trainings, given the figures of each combination and fold [P, F].

    Of equally good points, the best one has the largest value of the first setting, then of the second, and so on: the
    largest λ trusts the data least.
    """
    points = [_over_folds(values, figures) for values, figures in zip(combinations(grid), trained, strict=True)]
    best = max(range(len(points)), key=lambda p: (-points[p].error, p))  # later points have larger values
    warnings = [*_not_converged(cfg, grid, points, best), *_at_the_edge(grid, points[best].values)]
    return Result(grid, points, points[best].values, points[best].error, warnings)


def _over_folds(values: dict[str, Any], figures: Sequence[Figures]) -> Point:
    errors = [each["error"] for each in figures]
    error = float(np.mean(errors))
    worst = {name: float(np.max([each[name] for each in figures])) for name in LIMITS if name in figures[0]}
    doubts = [DOUBTS[name].format(value) for name, value in worst.items() if not value <= LIMITS[name]]  # also of NaN
    if not all(each.get("settled", True) for each in figures):
        doubts.append("Ω still changes")
    return Point(
        values,
        error if math.isfinite(error) else math.inf,
        float(np.std(errors, ddof=1)),
        errors,
        worst.get("relative_gap"),
        worst.get("change"),
        doubts[0] if doubts else "",
    )


def _not_converged(cfg: DictConfig, grid: Grid, points: Sequence[Point], best: int) -> Iterator[str]:
    """Warn if the best point has not converged, or a neighbour of it: one value further in one setting."""
    places = list(itertools.product(*(range(len(values)) for values in grid.values())))
    near = [point for point, place in zip(points, places, strict=True) if math.dist(place, places[best]) <= 1]
    if doubtful := [f"{as_words(point.values)} ({point.doubt})" for point in near if point.doubt]:
        more = {"rounds": 2 * cfg.rounds} | {f"solver.{name}": 2 * cfg.solver.get(name, 0) for name in LONGER}
        advice = [f"{name}={value:g}" for name, value in more.items() if value and name not in grid]
        if "step" in cfg.solver:
            advice.append("a smaller solver.step, if it diverges")
        yield f"not converged: {'; '.join(doubtful)}. Try {' or '.join(advice)}."


def _at_the_edge(grid: Grid, best: Mapping[str, Any]) -> Iterator[str]:
    """Warn if a best value is the smallest or largest of its setting."""
    for name, values in grid.items():
        if len(values) > 1 and all(map(is_number, values)) and best[name] in (values[0], values[-1]):
            edge = "smallest" if best[name] == values[0] else "largest"
            yield f"{as_words({name: best[name]})} is the {edge} value in the grid; a better one may lie beyond."
