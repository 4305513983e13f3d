"""λ by cross-validation: `python -m hmtl.tune`; what it finds is read by `hmtl.train`.

F folds, G values of λ, K users.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hmtl.atomic import write_json, write_whole
from hmtl.cli import main
from hmtl.config import build_algorithm, build_problem, build_regularizer, build_tasks
from hmtl.data import Task
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import Algorithm
from hmtl.rng import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tune(cfg: DictConfig) -> None:
    """Cross-validate the grid of `cfg`; leaves `tune.json`, `tune.png` and an experiment for `hmtl.train`."""
    tasks, _ = build_tasks(cfg)
    console, folder = Console(highlight=False), Path(cfg.output_dir)
    result = cross_validate(cfg, tasks)
    write_json(folder / "tune.json", result)
    _figure(result).savefig(folder / "tune.png", dpi=150)
    (folder / "experiment").mkdir(exist_ok=True)
    write_whole(folder / "experiment" / "tuned.yaml", f"# @package _global_\nlam: {result['best']}\n")
    console.print(_table(result))
    console.print(f"best: lam={result['best']:g}. To train with it:")
    console.print(f"  python -m hmtl.train --config-dir {folder} experiment=tuned", soft_wrap=True)


def cross_validate(cfg: DictConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    """Validation error of each λ of `cfg.tune.grid`, mean over users, on each of `cfg.tune.folds` folds.

    All folds and all values of λ are trained together, round by round, as far as memory allows; the values of λ share
    a fold's data. Of equally good values the largest is the best: it trusts the data least.

    Returns:
        grid [G], error [G] and sd [G] over folds, errors [G, F], relative_gap [G] (the worst fold's; absent where the
        algorithm has no gap), and best, one of the grid.

    Raises:
        ConfigError: fewer than 2 folds, or a grid that is empty.
        DataError: a user has too few rows for so many folds.
    """
    grid = sorted({float(lam) for lam in cfg.tune.grid})
    if not grid or cfg.tune.folds < 2:
        raise ConfigError(
            f"tune.grid={list(grid)}, tune.folds={cfg.tune.folds}: give at least one value of λ and two folds."
        )
    errors: dict[float, list[float]] = {lam: [] for lam in grid}
    gaps: dict[float, list[float]] = {lam: [] for lam in grid}
    for folds in _that_fit_in_memory(list(_folds(tasks, cfg.tune.folds, cfg.seed))):
        members = [(lam, member) for fold in folds for lam, member in _members(cfg, fold, grid)]
        train_side_by_side([member for _, member in members], cfg.rounds)
        for lam, member in members:
            metrics = member.metrics()
            errors[lam].append(metrics["test_error"])
            if "gap" in metrics:
                gaps[lam].append(metrics["gap"] / abs(metrics["primal"]))
    means = [float(np.mean(errors[lam])) for lam in grid]
    result = {
        "grid": grid,
        "error": means,
        "sd": [float(np.std(errors[lam], ddof=1)) for lam in grid],
        "errors": [errors[lam] for lam in grid],
        "best": max(lam for lam, mean in zip(grid, means, strict=True) if mean == min(means)),
    }
    return result | ({"relative_gap": [max(gaps[lam]) for lam in grid]} if gaps[grid[0]] else {})


def _folds(tasks: Sequence[Task], folds: int, seed: int) -> Iterator[list[Task]]:
    """For each fold, the tasks with one part of their training rows in place of the test rows.

    What preprocessing fits is fitted anew, to the rows that the fold trains on.
    """
    from sklearn.model_selection import KFold, StratifiedKFold  # takes a second to load

    splits, prepare = [], tasks[0].preprocessing
    tasks = [task.raw for task in tasks]
    for k, task in enumerate(tasks):
        classes = task.classes is not None or set(task.y_train.tolist()) <= {-1.0, 1.0}
        kind = StratifiedKFold if classes else KFold
        random_state = int(generator(seed, "folds", k).integers(2**31))
        try:
            split = kind(folds, shuffle=True, random_state=random_state).split(task.x_train, task.y_train)
            splits.append(list(split))
        except ValueError as error:
            raise DataError(f"Task {task.name!r}: {error} Lower tune.folds={folds}.") from error
    for fold in range(folds):
        parts = [
            dataclasses.replace(
                task,
                x_train=task.x_train[split[fold][0]],
                y_train=task.y_train[split[fold][0]],
                x_test=task.x_train[split[fold][1]],
                y_test=task.y_train[split[fold][1]],
            )
            for task, split in zip(tasks, splits, strict=True)
        ]
        yield list(prepare(parts))


def _that_fit_in_memory(folds: list[list[Task]]) -> Iterator[list[list[Task]]]:
    """Groups of folds, as large as a quarter of the memory holds; a fold takes four times its data to train on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    nbytes = 4 * sum(8 * task.x_train.numel() for task in folds[0])
    size = max(1, memory // 4 // nbytes)
    for start in range(0, len(folds), size):
        yield folds[start : start + size]


def _members(cfg: DictConfig, fold: Sequence[Task], grid: Sequence[float]) -> Iterator[tuple[float, Algorithm]]:
    """For each λ an algorithm of its own, all on the same copy of the rows."""
    problem, cfg = build_problem(cfg, fold), cfg.copy()
    for lam in grid:
        cfg.lam = lam  # all that differs: regularizer and algorithm refer to it
        yield lam, build_algorithm(cfg, problem.regularized(build_regularizer(cfg)))


def train_side_by_side(members: Sequence[Algorithm], rounds: int) -> None:
    """Train all members at once. No transport is needed: whichever it were, the models would be the same."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for round in track(range(rounds), description=f"{len(members)} models", transient=True):
            list(pool.map(lambda member, round=round: member.step(round), members))


def _table(result: dict[str, Any]) -> Table:
    table = Table(title="Cross-validation", title_justify="left")
    for name in ("λ", "error", "± sd over folds", "relative gap"):
        table.add_column(name, justify="right")
    gaps = result.get("relative_gap", [None] * len(result["grid"]))
    for lam, error, sd, gap in zip(result["grid"], result["error"], result["sd"], gaps, strict=True):
        style = "bold" if lam == result["best"] else None
        table.add_row(f"{lam:g}", f"{error:.4f}", f"{sd:.4f}", "" if gap is None else f"{gap:.1e}", style=style)
    return table


def _figure(result: dict[str, Any]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(result["grid"], result["error"], result["sd"], marker="o", capsize=3, label="mean ± sd over folds")
    axes.axvline(result["best"], color="tab:gray", linestyle=":", label=f"best: {result['best']:g}")
    axes.set(xscale="log", xlabel="λ", ylabel="validation error, mean over users", title="Cross-validation")
    axes.legend()
    return figure


if __name__ == "__main__":
    main(tune, "config")
