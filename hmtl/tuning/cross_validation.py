"""Cross-validation of settings: many trainings side by side, each kept as soon as it ends.

K users, F folds, P combinations of values; a training is of one combination on one fold.
"""

import dataclasses
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.progress import Progress

from hmtl.config.build import build_algorithm, build_problem, make_part
from hmtl.config.schema import flat
from hmtl.data import Task, prepare
from hmtl.errors import ConfigError, DataError, Interrupted, RangeError
from hmtl.mtl import Algorithm
from hmtl.reporting.console import Console
from hmtl.rng import generator
from hmtl.training.checkpoint import load_checkpoint, save_checkpoint
from hmtl.training.signals import catch_signals
from hmtl.tuning.grid import combinations, grid_of, with_values
from hmtl.tuning.result import Figures, Result, conclude

NOT_IDENTITY = ("output_dir", "resume", "gap_tolerance", "checkpoint_every", "logger")
"""Settings that may differ between a cross-validation and the one that resumes it."""
UNSETTLED = 0.01
"""Largest share of the primal objective by which learning Ω may still change it, if there is no joint gap."""

Key = tuple[int, int]
"""A training: its fold and its combination."""


def cross_validate(cfg: DictConfig, tasks: Sequence[Task], checkpoint: Path | None = None) -> Result:
    """Return the validation error, mean over users, of each combination of values in `cfg.tune.grid` on each fold.

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
    trainings = _Trainings(cfg, folds * len(cfgs), checkpoint)
    for _ in _members(cfgs, next(_folds(tasks, folds, cfg.seed))):
        pass  # what cannot be made is found before anything is trained
    remaining = (
        ((fold, point), member)
        for fold, parted in enumerate(_folds(tasks, folds, cfg.seed))
        for point, member in _members({p: cfgs[p] for p in cfgs if (fold, p) not in trainings.finished}, parted)
    )
    trainings.run(remaining, _workers(tasks, len(cfgs)))
    return conclude(cfg, grid, [[trainings.finished[fold, point] for fold in range(folds)] for point in cfgs])


def _folds(tasks: Sequence[Task], folds: int, seed: int) -> Iterator[list[Task]]:
    """Yield the tasks of each fold: one part of the training rows takes the place of the test rows.

    Preprocessing is fitted anew to the rows that the fold trains on.
    """
    from sklearn.model_selection import KFold, StratifiedKFold  # takes a second to load

    splits, preprocessing = [], tasks[0].preprocessing
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
        yield list(prepare(parts, preprocessing))


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
    folds = memory // 4 // (4 * sum(8 * task.x_train.numel() for task in tasks))
    return min(torch.get_num_threads(), max(1, (folds - 1) * points))


class _Trainings:
    """All trainings, finished or not. They need no network: the models are the same.

    Args:
        cfg: the configuration.
        total: their number.
        checkpoint: as in `cross_validate`.

    Attributes:
        finished: figures of the finished trainings, those before a resume included.
    """

    def __init__(self, cfg: DictConfig, total: int, checkpoint: Path | None) -> None:
        self.rounds = cfg.rounds
        self.total = total
        self.checkpoint = checkpoint
        self.identity = flat(cfg, NOT_IDENTITY)
        self.finished: dict[Key, Figures] = {}
        if cfg.resume:
            self.finished = load_checkpoint(Path(cfg.resume), "tune", self.identity)["finished"]

    def run(self, members: Iterable[tuple[Key, Algorithm]], workers: int) -> None:
        """Train the remaining members, `workers` at a time, and keep the figures of each as soon as it ends.

        Raises:
            Interrupted: before all were trained.
        """
        running: dict[Future[Figures | None], Key] = {}
        over = threading.Event()  # set after an error, as the pool waits for the other trainings
        self._save()
        console = Console()
        with (
            catch_signals() as caught,
            Progress(console=console, transient=True) as progress,
            ThreadPoolExecutor(workers) as pool,
        ):
            rounds = progress.add_task(f"{self.total} models", total=self.total * self.rounds)
            progress.advance(rounds, len(self.finished) * self.rounds)

            def continues() -> bool:
                progress.advance(rounds)
                console.progress_line(f"{len(self.finished)} of {self.total} models trained")
                return not (caught or over.is_set())

            def collect() -> None:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key, figures = running.pop(future), future.result()
                    if figures is not None:
                        self.finished[key] = figures
                        self._save()

            try:
                for key, member in members:
                    if len(running) == workers:
                        collect()
                    if caught:
                        break
                    running[pool.submit(_train, member, self.rounds, continues)] = key
                while running:
                    collect()
            finally:
                over.set()
        if caught:
            if self.checkpoint:
                done = f"{len(self.finished)} of {self.total} trainings"
                print(f"Stopped after {done}. To continue: resume={self.checkpoint.parent}")
            raise Interrupted(caught[0])

    def _save(self) -> None:
        if self.checkpoint:
            save_checkpoint(self.checkpoint, "tune", self.identity, {"finished": self.finished})


def _train(member: Algorithm, rounds: int, continues: Callable[[], bool]) -> Figures | None:
    """Train a member; return its error and how far it has converged, or None if it was stopped.

    Args:
        member: what is trained.
        rounds: number of rounds.
        continues: asked before each round.
    """
    start = before = now = member.metrics()
    try:
        for round in range(rounds):
            if not continues():
                return None
            if round == rounds - max(1, rounds // 10):
                before = member.metrics()
            member.step(round)
        now = member.metrics()
    except RangeError:  # it diverges; other settings may not
        return {"error": math.nan, "relative_gap" if "gap" in start else "change": math.nan}
    figures = {"error": now["test_error"]}
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
