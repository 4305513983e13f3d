"""Cross-validation of settings: many trainings side by side, each kept as soon as it ends.

K users, F folds, P combinations of values; a training is of one combination on one fold.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress

from hmtl.config.build import build_algorithm, build_problem, make_part
from hmtl.config.schema import flat
from hmtl.data import Task, prepare
from hmtl.data.sparse import stored
from hmtl.data.splitting import shuffled_by_class
from hmtl.errors import ConfigError, DataError, Interrupted, RangeError
from hmtl.mtl import Algorithm
from hmtl.reporting.console import Console
from hmtl.rng import generator
from hmtl.training.checkpoint import load_checkpoint, save_checkpoint
from hmtl.training.signals import catch_signals
from hmtl.tuning.grid import Grid, combinations, grid_of, with_values
from hmtl.tuning.result import Figures, Result, conclude

NOT_IDENTITY = ("output_dir", "resume", "gap_tolerance", "checkpoint_every", "logger")
"""Settings that may differ between a cross-validation and the one that resumes it."""
UNSETTLED = 0.01
"""Largest share of the primal objective by which learning Ω may still change it, if there is no joint gap."""

Key = tuple[int, int]
"""A training: its fold and its combination."""


def cross_validate(cfg: DictConfig, tasks: Sequence[Task], checkpoint: Path | None = None) -> Result:
    """Return the validation error, mean over users, of each combination of values in `cfg.tune.grid` on each fold.

    Errors are those of the models that a run would hand out.

    Trainings run side by side, as threads and memory allow.

    Args:
        cfg: the configuration; all trainings share its values except those in the grid.
        tasks: one per user; their test rows are not used.
        checkpoint: file that keeps the results of finished trainings, for `cfg.resume`; None: nothing is kept.

    Raises:
        ConfigError: fewer than 2 folds, an empty grid, or a setting or value that does not exist.
        DataError: a user has fewer rows than folds.
        CheckpointError: `cfg.resume` cannot be resumed.
        Interrupted: by Ctrl-C or SIGTERM; finished trainings are kept.
    """
    grid, folds = grid_of(cfg), cfg.tune.folds
    if folds < 2:
        raise ConfigError(f"tune.folds={folds}: at least two folds are needed. Raise tune.folds.")
    cfgs = {point: with_values(cfg, values) for point, values in enumerate(combinations(grid))}
    total, identity = folds * len(cfgs), flat(cfg, NOT_IDENTITY)
    finished = load_checkpoint(Path(cfg.resume), "tune", identity)["finished"] if cfg.resume else {}
    for _, algorithm in _members(cfgs, next(_folds(tasks, folds, cfg.seed))):  # made before anything is trained
        _check_effect(cfg, grid, algorithm)

    def save() -> None:
        if checkpoint:
            save_checkpoint(checkpoint, "tune", identity, {"finished": finished})

    save()
    remaining = (
        ((fold, point), member)
        for fold, parted in enumerate(_folds(tasks, folds, cfg.seed))
        for point, member in _members({p: cfgs[p] for p in cfgs if (fold, p) not in finished}, parted)
    )
    caught = _train_all(remaining, cfg.rounds, _workers(tasks, len(cfgs)), finished, total, save, cfg.evaluate_every)
    if caught:
        if checkpoint:
            print(f"Stopped after {len(finished)} of {total} trainings. To continue: resume={checkpoint.parent}")
        raise Interrupted(caught[0])
    return conclude(cfg, grid, [[finished[fold, point] for fold in range(folds)] for point in cfgs])


def _check_effect(cfg: DictConfig, grid: Grid, algorithm: Algorithm) -> None:
    """Raise `ConfigError` if the grid has a setting of the regularizer, but the algorithm does not use one."""
    reads_lam = "${lam}" in str(OmegaConf.to_container(cfg.algorithm, resolve=False))
    for name in grid:
        of_regularizer = name.startswith("regularizer.") or (name == "lam" and not reads_lam)
        if of_regularizer and not algorithm.regularized:
            raise ConfigError(
                f"tune.grid: {name} has no effect, since {type(algorithm).__name__} does not use the regularizer. Tune "
                "other settings, for example by tune.grid='{solver.step: [0.01, 0.1]}'."
            )


def _folds(tasks: Sequence[Task], folds: int, seed: int) -> Iterator[list[Task]]:
    """Yield the tasks of each fold: one part of the training rows takes the place of the test rows.

    Preprocessing is fitted to the training rows of the fold. The columns of categories, and the means that fill in
    missing numbers, are those of all training rows.

    Raises:
        DataError: if a user has fewer training rows than there are folds.
    """
    orders, raw_tasks = [], [task.raw for task in tasks]
    for k, task in enumerate(raw_tasks):
        n = len(task.y_train)
        if n < folds:
            raise DataError(f"Task {task.name!r}: {n} training rows cannot fill all folds. Lower tune.folds={folds}.")
        orders.append(shuffled_by_class(task.y_train.numpy(), task.classes, generator(seed, "folds", k)))
    for fold in range(folds):
        held_out = [np.sort(order[fold::folds]) for order in orders]
        parts = [task.held_out(rows, "test") for task, rows in zip(raw_tasks, held_out, strict=True)]
        yield list(prepare(parts, tasks[0].preprocessing))


def _members(cfgs: Mapping[int, DictConfig], fold: Sequence[Task]) -> Iterator[tuple[int, Algorithm]]:
    """Yield an algorithm for each configuration, all on the same copy of the rows."""
    problem = None
    for point, cfg in cfgs.items():
        problem = build_problem(cfg, fold) if problem is None else problem.regularized(make_part(cfg, "regularizer"))
        yield point, build_algorithm(cfg, problem)


def _workers(tasks: Sequence[Task], points: int) -> int:
    """Return the number of trainings at a time: at most one per thread, in a quarter of the memory.

    Training on a fold takes four times the memory of its data.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    folds = memory // 4 // (4 * sum(8 * stored(task.x_train).numel() for task in tasks))
    return min(torch.get_num_threads(), max(1, (folds - 1) * points))


def _train_all(
    members: Iterator[tuple[Key, Algorithm]],
    rounds: int,
    workers: int,
    finished: dict[Key, Figures],
    total: int,
    save: Callable[[], None],
    every: int = 1,
) -> list[int]:
    """Train the remaining members without a network, and add the figures of each to `finished` as soon as it ends.

    Return the signal that stopped the trainings; an empty list if all of them were finished.
    """
    lock, over = threading.Lock(), threading.Event()  # set after an error, as the pool waits for the other workers
    console = Console()
    with (
        catch_signals() as caught,
        Progress(console=console, transient=True) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        bar = progress.add_task(f"{total} models", total=total * rounds, completed=len(finished) * rounds)

        def continues() -> bool:
            progress.advance(bar)
            console.progress_line(f"{len(finished)} of {total} models trained")
            return not (caught or over.is_set())

        def work() -> None:
            while not (caught or over.is_set()):
                with lock:
                    remaining = next(members, None)
                if remaining is None:
                    return
                key, member = remaining
                figures = _train(member, rounds, every, continues)
                if figures is not None:
                    with lock:
                        finished[key] = figures
                        save()

        try:
            for worker in as_completed([pool.submit(work) for _ in range(workers)]):
                worker.result()
        finally:
            over.set()
    return caught


def _train(member: Algorithm, rounds: int, every: int, continues: Callable[[], bool]) -> Figures | None:
    """Return the error of a trained member and how far it has converged; None if it may not continue to the end.

    The error is that of the best evaluated round; one round in `every` is evaluated, as in training.
    """
    start = before = member.metrics()
    is_ranked, evaluated = member.rank(start) is not None, [start]
    try:
        for round in range(rounds):
            if not continues():
                return None
            if round == rounds - max(1, rounds // 10):
                before = member.metrics()
            member.step(round)
            if round == rounds - 1 or (is_ranked and round % every == 0):
                evaluated.append(member.metrics())
    except RangeError:  # it diverges; other settings may not
        return {"error": math.nan, "relative_gap" if "gap" in start else "change": math.nan}
    now = evaluated[-1]
    best = min(evaluated[1:], key=lambda each: member.rank(each) or 0.0) if is_ranked else now
    figures = {"error": best["test_error"]}
    if "joint_gap" in now:
        return figures | {"relative_gap": _ratio(now["joint_gap"], now["joint_primal"])}
    if "gap" in now:
        gap = _ratio(now["gap"], now["primal"])
        return figures | {"relative_gap": gap, "settled": member.settled(UNSETTLED * abs(now["primal"]))}
    if "primal" in now:
        scale = min(abs(now["primal"]), abs(start["primal"] - now["primal"]))  # small if steps are too small
        return figures | {"change": _ratio(abs(before["primal"] - now["primal"]), scale)}
    return figures


def _ratio(value: float, whole: float) -> float:
    """Return value / |whole|, where the whole may be 0: the objective is 0 if every target equals its mean."""
    return value / max(abs(whole), 1e-300)
