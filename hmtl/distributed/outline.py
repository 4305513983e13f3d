"""What processes know of tasks whose rows are elsewhere: names, shapes and numbers, as values that can be sent."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from hmtl.data.preprocessing import Prepared, Preprocessing, Scaling
from hmtl.data.tasks import Task

Names = tuple[Any, ...] | None
_TARGETS = ("y_train", "y_test")


def outline(tasks: Sequence[Task]) -> dict[str, Any]:
    """Of the tasks of one data set."""
    return {
        "tasks": [_shapes(task) for task in tasks],
        "raw": [_shapes(task.raw) for task in tasks if task.prepared],
        "preprocessing": asdict(tasks[0].preprocessing),
        "called": (tasks[0].labels, tasks[0].columns),
    }


def from_outline(outline: Mapping[str, Any]) -> tuple[Task, ...]:
    """The inverse of `outline`: tasks whose rows are elsewhere, and so is what was fitted to them."""
    called, by = outline["called"], Preprocessing(**outline["preprocessing"])
    tasks, raw = ([_task(shapes, *called) for shapes in outline[part]] for part in ("tasks", "raw"))
    for task, before in zip(tasks, raw, strict=False):
        object.__setattr__(task, "prepared", Prepared(before, by, _unknown(before, by)))
    return tuple(tasks)


def results(tasks: Sequence[Task], targets: bool) -> dict[str, Tensor]:
    """What has to be known of tasks to report results, apart from the outline: scaling, and if so asked, `targets`."""
    scalings = [task.scaling for task in tasks if task.prepared]
    told = {}
    if scalings:
        told = {name: torch.stack([getattr(scaling, name) for scaling in scalings]) for name in ("mean", "scale")}
        told["target_mean"] = torch.tensor([scaling.target_mean for scaling in scalings], dtype=torch.float64)
    if targets:
        told |= {part: torch.cat([getattr(task.raw, part) for task in tasks]) for part in _TARGETS}
    return told


def with_results(tasks: Sequence[Task], told: Mapping[str, Tensor]) -> list[Task]:
    """These tasks, with what `results` gave of them."""
    lengths = {name: [len(getattr(task, name)) for task in tasks] for name in _TARGETS if name in told}
    parts = {name: torch.split(told[name], each) for name, each in lengths.items()}
    known = []
    for k, task in enumerate(tasks):
        targets: dict[str, Any] = {name: of_each[k] for name, of_each in parts.items()}
        raw = replace(task.raw, **targets)
        if "mean" in told:
            of_k = Scaling(told["mean"][k], told["scale"][k], task.scaling.intercept, float(told["target_mean"][k]))
            raw = replace(task, prepared=Prepared(raw, task.preprocessing, of_k))
        known.append(raw)
    return known


def _shapes(task: Task) -> tuple[str, list[int], list[int], bool, int | None]:
    narrow = task.x_train.dtype == torch.float32
    return task.name, list(task.x_train.shape), list(task.x_test.shape), narrow, task.classes


def _task(shapes: tuple[str, list[int], list[int], bool, int | None], labels: Names, columns: Names) -> Task:
    name, train, test, narrow, classes = shapes
    x_train, x_test = (
        torch.empty(shape, dtype=torch.float32 if narrow else torch.float64, device="meta") for shape in (train, test)
    )
    y_train, y_test = (torch.empty(shape[0], device="meta") for shape in (train, test))
    return Task(name, x_train, y_train, x_test, y_test, classes, labels, columns)


def _unknown(raw: Task, by: Preprocessing) -> Scaling:
    of_features = torch.empty(raw.x_train[0].numel(), dtype=torch.float64, device="meta")
    return Scaling(of_features, of_features, by.intercept)
