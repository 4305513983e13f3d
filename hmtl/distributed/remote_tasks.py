"""What a process knows of tasks whose rows live in another one, as values that can be sent."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from hmtl.data.preprocessing import Preprocessing, Scaling
from hmtl.data.tasks import Prepared, Task

Names = tuple[Any, ...] | None
Shapes = tuple[str, list[int], list[int], bool, int | None]
"""A task's name, the shapes of its training and test rows, whether these are float32, and its number of classes."""
TARGETS = ("y_train", "y_test")


def outline(tasks: Sequence[Task]) -> dict[str, Any]:
    """Return names, shapes and preprocessing of the tasks of one data set."""
    return {
        "tasks": [_shapes(task) for task in tasks],
        "raw": [_shapes(task.raw) for task in tasks if task.prepared],
        "preprocessing": asdict(tasks[0].preprocessing),
        "labels": tasks[0].labels,
        "columns": tasks[0].columns,
    }


def from_outline(outline: Mapping[str, Any]) -> tuple[Task, ...]:
    """Return tasks that have the shapes of an outline, but neither rows nor scaling."""
    by = Preprocessing(**outline["preprocessing"])
    tasks, raw = (
        [_without_rows(shapes, outline["labels"], outline["columns"]) for shapes in outline[part]]
        for part in ("tasks", "raw")
    )
    for task, before in zip(tasks, raw, strict=False):
        object.__setattr__(task, "prepared", Prepared(before, by, _unknown_scaling(before, by)))
    return tuple(tasks)


def report_data(tasks: Sequence[Task], targets: bool) -> dict[str, Tensor]:
    """Return what a report needs to know of these tasks beyond the outline: their scaling, and optionally `targets`."""
    scalings = [task.scaling for task in tasks if task.prepared]
    data = {}
    if scalings:
        data = {name: torch.stack([getattr(scaling, name) for scaling in scalings]) for name in ("mean", "scale")}
        data["target_mean"] = torch.tensor([scaling.target_mean for scaling in scalings], dtype=torch.float64)
    if targets:
        data |= {name: torch.cat([getattr(task.raw, name) for task in tasks]) for name in TARGETS}
    return data


def with_report_data(tasks: Sequence[Task], data: Mapping[str, Tensor]) -> list[Task]:
    """Return tasks without rows, completed by the `report_data` of all of them."""
    lengths = {name: [len(getattr(task, name)) for task in tasks] for name in TARGETS if name in data}
    targets = {name: torch.split(data[name], counts) for name, counts in lengths.items()}
    completed = []
    for k, task in enumerate(tasks):
        of_task: dict[str, Any] = {name: parts[k] for name, parts in targets.items()}
        known = replace(task.raw, **of_task)
        if "mean" in data:
            mean, scale, target_mean = (data[name][k] for name in ("mean", "scale", "target_mean"))
            scaling = Scaling(mean, scale, task.scaling.intercept, float(target_mean))
            known = replace(task, prepared=Prepared(known, task.preprocessing, scaling))
        completed.append(known)
    return completed


def _shapes(task: Task) -> Shapes:
    narrow = task.x_train.dtype == torch.float32
    return task.name, list(task.x_train.shape), list(task.x_test.shape), narrow, task.classes


def _without_rows(shapes: Shapes, labels: Names, columns: Names) -> Task:
    name, train, test, narrow, classes = shapes
    dtype = torch.float32 if narrow else torch.float64
    x_train, x_test = (torch.empty(shape, dtype=dtype, device="meta") for shape in (train, test))
    y_train, y_test = (torch.empty(shape[0], device="meta") for shape in (train, test))
    return Task(name, x_train, y_train, x_test, y_test, classes, labels, columns)


def _unknown_scaling(raw: Task, by: Preprocessing) -> Scaling:
    of_features = torch.empty(raw.x_train[0].numel(), dtype=torch.float64, device="meta")
    return Scaling(of_features, of_features, by.intercept)
