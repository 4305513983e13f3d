"""Which loss suits a module's output and the users' targets, and what kind of targets these then are."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hmtl.data import Task
from hmtl.data.items import TARGETS, each_tensor, is_text, only_entry
from hmtl.data.tasks import SPLITS, classified
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import Loss, Squared, TorchLoss
from hmtl.mtl.networks.calls import called, loss_of, scores_of, with_targets, without_gradients
from hmtl.mtl.networks.flat import copied, seeded

Tasks = tuple[Task, ...]


def matched(
    model: nn.Module | Callable[[], nn.Module], tasks: Tasks, loss: str | Loss | None, own: Any = None
) -> tuple[str | Loss, Tasks]:
    """Return the loss that is used if none is named, and the tasks with targets of the kind that the module predicts.

    Integers are classes if the module returns several scores for a row, as many as it has; with one score, 0 and 1 are
    two classes, and other integers are numbers.

    Args:
        model: the module, or what makes it.
        tasks: as `from_datasets` returns them, in which negative integers have no classes yet.
        loss: the loss that is named, or a part's name; None: none is.
        own: a function with which the solver trains, if any.
    """
    scores, y, has_own = _tried(model, tasks[0])
    if scores is None and (of_entry := _of_only_entry(tasks)):
        tried = _tried(model, of_entry[0])
        if tried[0] is not None:
            tasks, (scores, y, has_own) = of_entry, tried
    if y is None and not (has_own and loss is None):
        reason = "the module does not run on them, or returns no loss of its own" if loss is None else "loss needs them"
        raise DataError(
            f"Rows have no targets, and {reason}. Give pairs of a row and its target, call the target {TARGETS[0]!r}, "
            "or return {'loss': …}."
        )
    C = 0 if scores is None else scores.shape[1] if scores.ndim == 2 else 1
    takes_targets = isinstance(loss, TorchLoss) or (has_own and loss is None)
    values = np.unique(torch.cat([getattr(task, f"y_{split}") for task in tasks for split in SPLITS]))
    if C > 1 and tasks[0].has_integers and -100 in values:
        raise DataError("Some rows have the target -100, which torch's losses ignore. Leave these rows out.")
    if C != 1 or not (takes_targets or len(values) > 2):
        tasks = classified(tasks)
    first = tasks[0]
    is_own = takes_targets and not getattr(loss, "is_of_torch", False)
    if C > 1 and first.has_numbers and not (first.classes or is_own or (are_signs(tasks) and not takes_targets)):
        raise DataError(
            f"The module returns {C} scores for a row, but targets are floats, numbers to predict. Give integers "
            "from 0 as classes, a module with one output, or a loss of both: loss=lambda output, y: f(output, y)."
        )
    if takes_targets:
        return TorchLoss(), _numbered(tasks, C if first.classes and C > 1 else None)
    if not first.has_numbers:
        # None: the module does not run, and the network that is made of it says why
        is_alike = scores is None or (isinstance(y, Tensor) and y.is_floating_point() and y.shape == scores.shape)
        if scores is not None and (loss is not None or not (own or is_alike)):
            raise DataError(f"Rows have targets that are not one number each. Set a loss: {_advised(scores, y)}.")
        return TorchLoss(own or half_squares), tasks
    if first.classes and C == 1 and first.labels is None:
        numbers = _numbered(tasks, None)
        if values.max() == 1 and loss != "squared" and not isinstance(loss, Squared):
            return "logistic", classified(numbers)
        return "squared", numbers
    if first.classes:
        return "cross_entropy", _numbered(tasks, C) if first.classes < C and first.labels is None else tasks
    if not are_signs(tasks):
        return "squared", tasks
    return "cross_entropy" if C == 2 else "logistic", tasks


def are_signs(tasks: Sequence[Task]) -> bool:
    """Return whether all targets are −1 or 1."""
    return all(set(y.tolist()) <= {-1.0, 1.0} for task in tasks for y in (task.y_train, task.y_test))


def half_squares(predictions: Tensor, y: Tensor) -> Tensor:
    """Return half the mean square of the differences in each row [n]."""
    return (predictions - y).square().flatten(1).mean(1) / 2


def _advised(scores: Tensor, y: Any) -> str:
    """Return which loss to give for targets of several numbers for each row."""
    losses: list[str] = []
    if isinstance(y, Tensor) and y.shape == scores.shape:
        is_binary = not y.is_floating_point() and bool(((y == 0) | (y == 1)).all())
        losses = ["torch.nn.BCEWithLogitsLoss()" if is_binary else "torch.nn.MSELoss()"]
    elif isinstance(y, Tensor) and not y.is_floating_point() and scores.ndim > 1:
        functions = "torch.nn.functional"
        if scores[:, 0].shape == y.shape:
            losses = ["torch.nn.CrossEntropyLoss()"]
            if scores.shape[1] == 1:
                losses = [f"lambda p, y: {functions}.binary_cross_entropy_with_logits(p[:, 0], y.float())"]
        if scores.shape[-1] > 1 and scores.shape[:-1] == y.shape:
            losses += [f"lambda p, y: {functions}.cross_entropy(p.flatten(0, -2), y.flatten())"]
    if not losses:
        return "loss=lambda output, y: f(output, y)"
    return " or, if the last dimension of the output holds the class scores, ".join(f"loss={each}" for each in losses)


def _numbered(tasks: Tasks, classes: int | None) -> Tasks:
    return tuple(task if task.classes == classes else task.numbered(classes) for task in tasks)


def _of_only_entry(tasks: Tasks) -> Tasks:
    """Return tasks whose rows are the only tensor in a dictionary, instead of the dictionary; none if it has several.

    Further entries may be text, such as names of files.
    """
    inputs, _ = tasks[0].example or (None, None)
    if not isinstance(inputs, Mapping) or [type(each) for each in inputs.values() if not is_text(each)] != [Tensor]:
        return ()
    return tuple(
        replace(
            task,
            items=task.items and task.items.of_only_entries(),
            example=(only_entry(task.example[0]), task.example[1]),
        )
        for task in tasks
    )


def _tried(model: nn.Module | Callable[[], nn.Module], task: Task) -> tuple[Tensor | None, Any, bool]:
    """Return the predictions for two rows, their targets, and whether the module computes a loss itself.

    Instead of predictions, None says that the module does not run; its first training will say why.
    """
    at = torch.tensor([0, min(1, len(task.y_train) - 1)])
    inputs, y = (task.x_train[at], task.y_train[at]) if task.items is None else task.items.batch(at)
    try:
        with seeded(0, "model"):
            module = copied(model, model.parameters()) if isinstance(model, nn.Module) else model()
            first = next(p for p in module.parameters())
            kind = first.dtype if first.is_floating_point() and task.items is None else torch.get_default_dtype()

            def place(each: Tensor) -> Tensor:
                narrow = task.items is None or each.dtype == torch.float64 != first.dtype
                return each.to(first.device, kind if narrow else each.dtype)

            inputs, y = each_tensor(inputs, place), each_tensor(y, lambda each: each.to(first.device))
            has_own = _has_own_loss(module.eval(), inputs, y)
            taken = with_targets(module, inputs, y) if has_own else inputs
            output = without_gradients(lambda: called(module, taken))
    except Exception:  # a module may raise anything
        return None, y, False
    try:
        return scores_of(output), y, has_own
    except ConfigError:
        return None, y, has_own


def _has_own_loss(module: nn.Module, inputs: Any, y: Any) -> bool:
    """Return whether a module that gets targets, if there are any, by their name or after inputs, returns a loss."""
    known = [*signature(module.forward).parameters.values()]
    if not isinstance(inputs, Mapping):  # the targets' place
        known = known[len(inputs) if type(inputs) in (list, tuple) else 1 :][:1]
    if y is not None and not any(each.name in TARGETS or each.kind is Parameter.VAR_KEYWORD for each in known):
        return False
    expected = (TypeError, ValueError, RuntimeError, ConfigError, LookupError)
    if y is not None:
        with suppress(*expected):
            number = loss_of(without_gradients(lambda: called(module, inputs)))
            if number is not None:  # of another kind, as targets are unknown
                return False
    try:
        return loss_of(without_gradients(lambda: called(module, with_targets(module, inputs, y)))) is not None
    except expected:
        return False
