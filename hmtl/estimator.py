"""Multi-task learning as scikit-learn has it, over lists of tasks: `MultiTask(lam=0.01).fit(X, y).predict(X)`."""

import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.validation import check_is_fitted

from hmtl.data import Preprocessing, Task, arrays
from hmtl.data.sources.tables import FEW
from hmtl.errors import ConfigError, DataError
from hmtl.inference.models import models_of
from hmtl.mtl import MOCHA, SDCA, Hinge, Loss, Problem, Regularizer, Squared, TaskRelationship

if TYPE_CHECKING:
    from hmtl.data.preprocessing import Scope


class MultiTask(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """MOCHA in one process, with a certificate: related linear models, one for each task.

    Args:
        lam: λ > 0, strength of the regularizer; has no meaning beside a regularizer of your own.
        regularizer: how the models hang together; None: it learns how, `TaskRelationship(lam)`.
        loss: None: the hinge for labels; where y are floats, of more than two values, the squared error. Labels of
            several classes are learned each against the rest.
        rounds: at most.
        tolerance: stop once the duality gap is at most so much of the primal, and Ω, if one is learned, has settled.
        intercept, standardize: see `hmtl.data.Preprocessing`; numbers to predict are centred for each task.
        seed: of the order in which rows are visited.

    Attributes:
        models_: what `hmtl.load_run` gives of a run; its users are called "0", "1", ... in the order of the tasks.
        gap_: primal − dual at the end: by at most so much the objective exceeds its optimum, at the last Ω.
        primal_: the objective at the end.
        Omega_: [K, K], how tasks are found to relate, where that is learned.
        rounds_: how many it took.

    Ref: Smith et al. 2017.
    """

    def __init__(
        self,
        lam: float = 0.01,
        *,
        regularizer: Regularizer | None = None,
        loss: Loss | None = None,
        rounds: int = 200,
        tolerance: float = 1e-3,
        intercept: bool = True,
        standardize: "Scope" = "all",
        seed: int = 0,
    ) -> None:
        self.lam, self.regularizer, self.loss, self.rounds, self.tolerance = lam, regularizer, loss, rounds, tolerance
        self.intercept, self.standardize, self.seed = intercept, standardize, seed

    def fit(self, X: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> Self:
        """Learn from K tasks, X[k] [n_k, d] and y[k] [n_k].

        Raises:
            ConfigError, DataError: what is wrong with a setting, or with a task.
        """
        self._check()
        tasks, numeric = _tasks(X, y, self.loss)
        loss = self.loss or (Squared() if numeric else Hinge())
        prepare = Preprocessing(self.intercept, self.standardize, "task" if numeric else "none")
        regularizer = self.regularizer or TaskRelationship(self.lam)
        problem = Problem(prepare(tasks), loss, regularizer)
        mocha = MOCHA(problem, SDCA(10), rounds=self.rounds, seed=self.seed)
        for round in range(self.rounds):
            mocha.step(round)
            now = mocha.metrics()
            enough = self.tolerance * abs(now["primal"])
            if now["gap"] <= enough and mocha.settled(enough):
                break
        self.models_, self.rounds_ = models_of(mocha), round + 1
        self.gap_, self.primal_ = now["gap"], now["primal"]
        self.__dict__.pop("Omega_", None)  # of an earlier fit
        if regularizer.learns:
            self.Omega_ = mocha.Omega.numpy()
        return self

    def _check(self) -> None:
        for name, kind, example in (("regularizer", Regularizer, "Mean(0.1)"), ("loss", Loss, "Hinge()")):
            value = getattr(self, name)
            if not isinstance(value, kind | None):
                raise ConfigError(f"{name}={value!r} is no {kind.__name__}: give one, such as hmtl.mtl.{example}.")
        for name, least in (("rounds", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < least:
                raise ConfigError(f"{name}={value!r} is no whole number from {least} up: give one.")
        for name in ("tolerance",) if self.regularizer else ("tolerance", "lam"):
            if not hasattr(value := getattr(self, name), "__float__"):
                raise ConfigError(f"{name}={value!r} is no number: give one.")

    def predict(self, X: Sequence[ArrayLike]) -> list[NDArray[Any]]:
        """Labels or numbers as y had them, [n_k] for each task.

        Raises:
            NotFittedError: `fit` comes first. DataError: what is wrong with X.
        """
        check_is_fitted(self)
        arrays.check_list(X, "X", 2)
        if len(X) != len(self.models_.names):
            raise DataError(
                f"X has {len(X)} tasks, fitted were {len(self.models_.names)}: give rows of each, [] for none."
            )
        return [self.models_.predict(user, x) for user, x in zip(self.models_.names, X, strict=True)]

    def score(self, X: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> float:
        """Mean of the accuracy, or of R² where numbers are predicted, over the tasks that have rows.

        Raises:
            NotFittedError: `fit` comes first. DataError: what is wrong with X, or y is not as long.
        """
        predicted = self.predict(X)
        arrays.check_list(y, "y", 1)
        told = [arrays.targets(each, f"y[{k}]") for k, each in enumerate(y)]
        if (lengths := [*map(len, predicted)]) != (wanted := [*map(len, told)]):
            raise DataError(f"X has {lengths} rows, y {wanted}: give one y for each row.")
        pairs = [pair for pair in zip(told, predicted, strict=True) if len(pair[0])]
        for theirs, ours in pairs:
            if (theirs.dtype.kind == "U") != (ours.dtype.kind == "U"):
                found = f"y has {theirs[0].item()!r}, and {ours[0].item()!r} is predicted"
                raise DataError(f"{found}: give y of the kind that was fitted.")
        measure = accuracy_score if len(self.models_.labels) else r2_score
        return float(np.mean([measure(*pair) for pair in pairs]))


def _tasks(X: Sequence[ArrayLike], y: Sequence[ArrayLike], loss: Loss | None) -> tuple[list[Task], bool]:
    """The tasks, and whether y are numbers to predict."""
    arrays.check_list(X, "X", 2)
    arrays.check_list(y, "y", 1)
    if not len(X) or len(X) != len(y):
        raise DataError(f"X has {len(X)} tasks, y {len(y)}: give as many of each, at least one.")
    columns = arrays.names_of(X[0])
    for k, x in enumerate(X):
        if columns and (names := arrays.names_of(x)) and set(names) != set(columns):
            raise DataError(f"X[{k}] has columns {', '.join(names)}, X[0] {', '.join(columns)}: give all the same.")
    rows = [arrays.numbers(x, f"X[{k}]", columns) for k, x in enumerate(X)]
    found = [arrays.targets(target, f"y[{k}]") for k, target in enumerate(y)]
    if len(kinds := {"text" if target.dtype.kind == "U" else "numbers" for target in found}) > 1:
        raise DataError("y is of text in some tasks, of numbers in others. Give labels of one kind, or numbers.")
    every = np.concatenate(found)
    different = np.unique(every)
    numeric = loss.labels is None and not loss.classes if loss else every.dtype.kind == "f" and len(different) > 2
    if numeric and kinds == {"text"}:
        raise DataError(
            f"y is text, of which {type(loss).__name__} can make no numbers. Give numbers, or another loss."
        )
    if not loss and every.dtype.kind in "iu" and len(different) > FEW:
        raise DataError(
            f"y has {len(different)} values, all whole: classes, or numbers to predict? Give loss=hmtl.mtl.Hinge(), or "
            "y as floats."
        )
    labels = None if numeric else different
    if labels is not None and len(labels) < 2:
        raise DataError(f"y is {labels[0]} in all tasks: nothing to tell apart.")
    tasks = []
    for k, (x, target) in enumerate(zip(rows, found, strict=True)):
        values = target if labels is None else np.searchsorted(labels, target)
        if labels is not None and len(labels) == 2:
            values = 2.0 * values - 1.0
        several = len(labels) if labels is not None and len(labels) > 2 else None
        called = None if labels is None else tuple(labels.tolist())
        # Task makes tensors of arrays
        task = Task(str(k), x, values, x[:0], values[:0], several, called, columns or None)  # type: ignore[arg-type]
        tasks.append(task)
    return tasks, numeric
