"""Cross-validation of settings: trainings side by side, kept as they end, and what they tell.

K users, F folds, P combinations of values of the settings in a grid; a training is of one combination on one fold.
"""

import dataclasses
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.progress import Progress

from hmtl.config.build import build_algorithm, build_problem, build_regularizer
from hmtl.config.schema import flat
from hmtl.data import Task, prepare
from hmtl.errors import ConfigError, DataError, Interrupted, RangeError
from hmtl.mtl import Algorithm
from hmtl.reporting.console import Console
from hmtl.rng import generator
from hmtl.training.checkpoint import load_checkpoint, save_checkpoint
from hmtl.training.signals import catch_signals
from hmtl.tuning.grid import Figures, combinations, conclude, grid_of, with_values

NO_PART = ("output_dir", "resume", "gap_tolerance", "checkpoint_every", "logger")  # in what is found
UNSETTLED = 0.01  # without a joint gap: the largest share of the primal by which learning Ω may still change it

Key = tuple[int, int]  # of a training: fold, combination


def cross_validate(cfg: DictConfig, tasks: Sequence[Task], kept: Path | None = None) -> dict[str, Any]:
    """Validation error, mean over users, of each combination of the values in `cfg.tune.grid`, on each fold.

    Trainings go on side by side, as threads and memory allow. Of equally good combinations the best is the one with the
    largest value of the first setting, and among these of the second, and so on (of words, the one given last): the
    largest λ trusts the data least.

    Args:
        cfg: the configuration; those in the grid aside, its values are the same for all trainings.
        tasks: one per user; their test rows play no part.
        kept: file that holds what finished trainings gave, for `cfg.resume`; None: nothing is kept.

    Returns:
        grid, {name: values}; points, for each combination its values {name: value}, error and sd over folds, errors
        [F], `relative_gap` of the worst fold (the joint one where there is such), or `change` where the algorithm has
        no gap, and doubt, why it has not converged, or ""; best, {name: value}, and its error; warnings, a sentence
        each.

    Raises:
        ConfigError: fewer than 2 folds, an empty grid, a setting that there is not, a value that it does not take.
        DataError: a user has too few rows for so many folds.
        CheckpointError: `cfg.resume` is of another configuration, or nothing to go on from.
        Interrupted: by Ctrl-C or SIGTERM; what was finished is kept.
    """
    grid, folds = grid_of(cfg), cfg.tune.folds
    if not isinstance(folds, int) or folds < 2:
        raise ConfigError(f"tune.folds={folds}: give a whole number of folds, at least two.")
    cfgs = {point: with_values(cfg, values) for point, values in enumerate(combinations(grid))}
    trainings = _Trainings(cfg, folds * len(cfgs), kept)
    for _ in _members(cfgs, next(_folds(tasks, folds, cfg.seed))):
        pass  # so that what cannot be made is found before anything is trained
    left = (
        ((fold, point), member)
        for fold, parted in enumerate(_folds(tasks, folds, cfg.seed))
        for point, member in _members({p: cfgs[p] for p in cfgs if (fold, p) not in trainings.finished}, parted)
    )
    trainings.run(left, _side_by_side(tasks, len(cfgs)))
    return conclude(cfg, grid, [[trainings.finished[fold, point] for fold in range(folds)] for point in cfgs])


def _folds(tasks: Sequence[Task], folds: int, seed: int) -> Iterator[list[Task]]:
    """For each fold, the tasks with one part of their training rows in place of the test rows.

    What preprocessing fits is fitted anew, to the rows that the fold trains on.
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
    """For each configuration an algorithm of its own, all on the same copy of the rows."""
    problem = None
    for point, cfg in cfgs.items():
        problem = build_problem(cfg, fold) if problem is None else problem.regularized(build_regularizer(cfg))
        yield point, build_algorithm(cfg, problem)


def _side_by_side(tasks: Sequence[Task], points: int) -> int:
    """How many trainings at a time: no more than there are threads, and so many that a quarter of the memory holds the
    folds that they are on; a fold takes four times its data to train on.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fit = memory // 4 // (4 * sum(8 * task.x_train.numel() for task in tasks))
    return min(torch.get_num_threads(), max(1, (fit - 1) * points))


class _Trainings:
    """All trainings: those behind a resume, and those that end here. No transport is needed: the models are the same.

    Args:
        cfg: the configuration.
        total: their number.
        kept: as in `cross_validate`.
    """

    def __init__(self, cfg: DictConfig, total: int, kept: Path | None) -> None:
        self.rounds, self.total, self.kept = cfg.rounds, total, kept
        self.identity = flat(cfg, NO_PART)
        self.finished: dict[Key, Figures] = {}
        if cfg.resume:
            self.finished = load_checkpoint(Path(cfg.resume), "tune", self.identity)["finished"]

    def run(self, members: Iterable[tuple[Key, Algorithm]], workers: int) -> None:
        """Train the members that are left, `workers` at a time, and keep what each gave as soon as it ends.

        Raises:
            Interrupted: before all were trained.
        """
        running: dict[Future[Figures | None], Key] = {}
        over = threading.Event()  # after an error, too: the pool waits for whatever still runs
        self._keep()
        console = Console()
        with (
            catch_signals() as caught,
            Progress(console=console, transient=True) as progress,
            ThreadPoolExecutor(workers) as pool,
        ):
            rounds = progress.add_task(f"{self.total} models", total=self.total * self.rounds)
            progress.advance(rounds, len(self.finished) * self.rounds)

            def go_on() -> bool:  # asked in each round of a training
                progress.advance(rounds)
                console.now_and_then(f"{len(self.finished)} of {self.total} models trained")
                return not (caught or over.is_set())

            def end_one() -> None:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key, figures = running.pop(future), future.result()
                    if figures is not None:
                        self.finished[key] = figures
                        self._keep()

            try:
                for key, member in members:
                    if len(running) == workers:
                        end_one()
                    if caught:
                        break
                    running[pool.submit(_figures, member, self.rounds, go_on)] = key
                while running:
                    end_one()
            finally:
                over.set()
        if caught:
            if self.kept:
                done = f"{len(self.finished)} of {self.total} trainings"
                print(f"stopped after {done}; go on with resume={self.kept.parent}")
            raise Interrupted(caught[0])

    def _keep(self) -> None:
        if self.kept:
            save_checkpoint(self.kept, "tune", self.identity, {"finished": self.finished})


def _figures(member: Algorithm, rounds: int, go_on: Callable[[], bool]) -> Figures | None:
    """Error of a member after its training, and how far it has converged; None where it was stopped before."""
    start = before = now = member.metrics()
    try:
        for round in range(rounds):
            if not go_on():
                return None
            if round == rounds - max(1, rounds // 10):
                before = member.metrics()
            member.step(round)
        now = member.metrics()
    except RangeError:  # it diverges, which makes its settings bad ones, and the others no worse
        return {"error": math.nan, "relative_gap" if "gap" in start else "change": math.nan}
    figures = {"error": now["test_error"]}
    if "joint_gap" in now:
        return figures | {"relative_gap": _share(now["joint_gap"], now["joint_primal"])}
    if "gap" in now:
        gap = _share(now["gap"], now["primal"])
        return figures | {"relative_gap": gap, "settled": member.settled(UNSETTLED * abs(now["primal"]))}
    if "primal" in now:
        scale = min(abs(now["primal"]), abs(start["primal"] - now["primal"]))  # slow steps have not come far at all
        return figures | {"change": _share(abs(before["primal"] - now["primal"]), scale)}
    return figures


def _share(part: float, whole: float) -> float:
    """Of a whole that may be nothing, as an objective is where every target is its mean."""
    return part / max(abs(whole), 1e-300)
