"""Cross-validation of settings: trainings one after the other, each kept as soon as it ends.

A training is of one combination of values on one fold. F folds, P combinations.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.progress import track

from hmtl.config.build import build_algorithm, build_problem, make_part
from hmtl.config.schema import flat
from hmtl.data import Task, prepare
from hmtl.data.splitting import shuffled_by_class
from hmtl.errors import ConfigError, DataError, RangeError
from hmtl.mtl import Algorithm
from hmtl.reporting.console import Console
from hmtl.rng import generator
from hmtl.training.checkpoint import load_checkpoint, save_checkpoint
from hmtl.tuning.grid import ValuesBySetting, as_words, combinations, grid_of, is_number, with_values

LARGEST_GAP = 0.1
"""Largest gap / |primal| of models that have converged.

On HAR by subject and mnist5k, validation errors with relative gaps below 0.1 were within a tenth of those after 400
rounds; with larger gaps they were up to twice as high.
"""
LARGEST_CHANGE = 0.02
"""Largest relative change of the objective in the last tenth of the rounds, if there is no gap."""
TINY = 1e-300
"""What the objective is divided by if it is 0, as it is if every target equals its mean."""
UNSETTLED = 0.01
"""Largest share of the primal objective by which learning Ω may still change it, if there is no joint gap."""
CHANGEABLE_IN_TUNING = ("output_dir", "resume", "gap_tolerance", "checkpoint_every", "logger")
"""Settings that may differ between a cross-validation and the one that resumes it."""


def cross_validate(cfg: DictConfig, tasks: Sequence[Task], checkpoint: Path | None = None) -> dict[str, Any]:
    """Return the content of `tune.json`: the validation error of each combination of values in `cfg.tune.grid`.

    Errors are means over users, of the models that a run would hand out. Of equally good combinations, the best one has
    the largest value of the first setting, then of the second, and so on: the largest λ trusts the data least.

    Args:
        cfg: the configuration; all trainings share its values except those in the grid.
        tasks: one per user; their test rows are not used.
        checkpoint: file that keeps the results of finished trainings, for `cfg.resume`; None: nothing is kept.

    Returns:
        `grid`; `points`, one for each combination; `best` and `error`, the best values and their error; `warnings` of
        what may be wrong with them. A point has

        - `values` of the settings;
        - `error`, the mean over folds, infinite if a training diverged; `sd` over folds; `errors` of the folds [F];
        - `relative_gap`, the duality gap relative to the primal objective; without a gap `change`, the relative change
          of the objective in the last tenth of the rounds; the largest over folds;
        - `doubt`, why trainings may not have converged; "" if they have.

    Raises:
        ConfigError: fewer than 2 folds, an empty grid, or a setting or value that does not exist.
        DataError: a user has fewer rows than folds.
        CheckpointError: `cfg.resume` cannot be resumed.
        KeyboardInterrupt: by Ctrl-C; finished trainings are kept.
    """
    grid, folds, console = grid_of(cfg), cfg.tune.folds, Console()
    if folds < 2:
        raise ConfigError(f"tune.folds={folds}: at least two folds are needed. Raise tune.folds.")
    combined = combinations(grid)
    cfgs = {point: with_values(cfg, values) for point, values in enumerate(combined)}
    total, identity = folds * len(cfgs), flat(cfg, CHANGEABLE_IN_TUNING)
    finished = load_checkpoint(Path(cfg.resume), "tune", identity)["finished"] if cfg.resume else {}
    reads_lam = "${lam}" in str(OmegaConf.to_container(cfg.algorithm, resolve=False))
    of_regularizer = [name for name in grid if name.startswith("regularizer.") or (name == "lam" and not reads_lam)]
    for _, algorithm in _algorithms(cfgs, next(_folds(tasks, folds, cfg.seed))):  # made before anything is trained
        if of_regularizer and not algorithm.regularized:
            raise ConfigError(
                f"tune.grid: {of_regularizer[0]} has no effect, since {type(algorithm).__name__} does not use the "
                "regularizer. Tune other settings, for example by tune.grid='{solver.step: [0.01, 0.1]}'."
            )
    remaining = (
        ((fold, point), algorithm)
        for fold, parts in enumerate(_folds(tasks, folds, cfg.seed))
        for point, algorithm in _algorithms({p: cfgs[p] for p in cfgs if (fold, p) not in finished}, parts)
    )

    def save() -> None:
        if checkpoint:
            save_checkpoint(checkpoint, "tune", identity, {"finished": finished})

    save()
    try:
        for key, algorithm in track(remaining, "Models", total - len(finished), console=console, transient=True):
            finished[key] = _train(algorithm, cfg.rounds, cfg.evaluate_every)
            save()
            console.progress_line(f"{len(finished)} of {total} models trained")
    except KeyboardInterrupt:
        if checkpoint:
            print(f"Stopped after {len(finished)} of {total} trainings. To continue: resume={checkpoint.parent}")
        raise
    points = [_over_folds(combined[p], [finished[fold, p] for fold in range(folds)]) for p in cfgs]
    best = max(range(len(points)), key=lambda p: (-points[p]["error"], p))  # later points have larger values
    chosen = {"best": points[best]["values"], "error": points[best]["error"]}
    chosen |= {"error_measure": algorithm.describe()["error_measure"]}
    return {"grid": grid, "points": points, **chosen, "warnings": list(_warnings(cfg, grid, points, best))}


def _folds(tasks: Sequence[Task], folds: int, seed: int) -> Iterator[list[Task]]:
    """Yield the tasks of each fold: one part of the training rows takes the place of the test rows.

    Preprocessing is fitted to the training rows of the fold. The columns of categories, and the means that fill in
    missing numbers, are those of all training rows.

    Raises:
        DataError: if a user has fewer training rows than there are folds.
    """
    orders, raw_tasks = [], [task.raw for task in tasks]
    for k, task in enumerate(raw_tasks):
        if (n := len(task.y_train)) < folds:
            raise DataError(f"Task {task.name!r}: {n} training rows cannot fill all folds. Lower tune.folds={folds}.")
        orders.append(shuffled_by_class(task.y_train.numpy(), task.classes, generator(seed, "folds", k)))
    for fold in range(folds):
        held_out = [np.sort(order[fold::folds]) for order in orders]
        parts = [task.held_out(rows, "test") for task, rows in zip(raw_tasks, held_out, strict=True)]
        yield list(prepare(parts, tasks[0].preprocessing))


def _algorithms(cfgs: Mapping[int, DictConfig], fold: Sequence[Task]) -> Iterator[tuple[int, Algorithm]]:
    """Yield an algorithm for each configuration, all on the same copy of the rows."""
    problem = None
    for point, cfg in cfgs.items():
        problem = build_problem(cfg, fold) if problem is None else problem.regularized(make_part(cfg, "regularizer"))
        yield point, build_algorithm(cfg, problem)


def _train(algorithm: Algorithm, rounds: int, every: int) -> dict[str, Any]:
    """Train without a network, and return a training's `error`, `relative_gap` or `change`, and `doubt`.

    The error is that of the best evaluated round; one round in `every` is evaluated, as in a run.
    """
    start = before = algorithm.metrics()
    is_ranked, evaluated, doubt = algorithm.rank(start) is not None, [], ""
    try:
        for round in range(rounds):
            if round == rounds - max(1, rounds // 10):
                before = algorithm.metrics()
            algorithm.step(round)
            if round == rounds - 1 or (is_ranked and round % every == 0):
                evaluated.append(algorithm.metrics())
    except RangeError:  # other settings may not diverge
        return {"error": math.nan, "relative_gap" if "gap" in start else "change": math.inf, "doubt": "it diverges"}
    now = evaluated[-1]
    error = min(evaluated, key=lambda each: algorithm.rank(each) or 0.0)["test_error"]
    if "gap" in now:
        joint = "joint_" if "joint_gap" in now else ""
        gap = now[f"{joint}gap"] / max(abs(now[f"{joint}primal"]), TINY)
        if not gap <= LARGEST_GAP:  # it may be NaN
            doubt = f"relative gap {gap:.2g}"
        elif not joint and not algorithm.settled(UNSETTLED * abs(now["primal"])):
            doubt = "Ω still changes"
        return {"error": error, "relative_gap": gap, "doubt": doubt}
    scale = min(abs(now["primal"]), abs(start["primal"] - now["primal"]))  # small if steps are too small
    change = abs(before["primal"] - now["primal"]) / max(scale, TINY)
    if not change <= LARGEST_CHANGE:
        doubt = f"objective changed by {change:.0%} in the last tenth of rounds"
    return {"error": error, "change": change, "doubt": doubt}


def _over_folds(values: dict[str, Any], figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the point of a combination from the figures of its trainings [F]."""
    errors, measure = [each["error"] for each in figures], min(figures[0].keys() - {"error", "doubt"})
    worst_first = sorted(figures, key=lambda each: float(each[measure]), reverse=True)
    return {
        "values": values,
        "error": float(np.mean(errors)) if all(map(math.isfinite, errors)) else math.inf,
        "sd": float(np.std(errors, ddof=1)),
        "errors": errors,
        measure: worst_first[0][measure],
        "doubt": next((each["doubt"] for each in worst_first if each["doubt"]), ""),
    }


def _warnings(cfg: DictConfig, grid: ValuesBySetting, points: Sequence[dict[str, Any]], best: int) -> Iterator[str]:
    """Warn if the best point or a neighbor of it has not converged, or if a best value is at an edge of the grid.

    A neighbor is one value further in one setting.
    """
    places = list(itertools.product(*(range(len(values)) for values in grid.values())))
    near = [point for point, place in zip(points, places, strict=True) if math.dist(place, places[best]) <= 1]
    if doubtful := [f"{as_words(point['values'])} ({point['doubt']})" for point in near if point["doubt"]]:
        more = {"rounds": cfg.rounds} | {f"solver.{name}": cfg.solver.get(name) for name in ("passes", "epochs")}
        advice = [f"{name}={2 * value:g}" for name, value in more.items() if value and name not in grid]
        if "step" in cfg.solver:
            advice.append("a smaller solver.step, if it diverges")
        yield f"not converged: {'; '.join(doubtful)}. Try {' or '.join(advice)}."
    for name, value in points[best]["values"].items():
        if len(grid[name]) > 1 and all(map(is_number, grid[name])) and value in (grid[name][0], grid[name][-1]):
            edge = "smallest" if value == grid[name][0] else "largest"
            yield f"{as_words({name: value})} is the {edge} value in the grid; a better one may lie beyond."
