"""Multi-task learning as scikit-learn has it, over lists of tasks: `MultiTask(lam=0.01).fit(X, y).predict(X)`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.validation import check_is_fitted

from hmtl.data import Preprocessing, Task
from hmtl.errors import ConfigError, DataError
from hmtl.mtl import MOCHA, SDCA, Hinge, Loss, Problem, Regularizer, Squared, TaskRelationship
from hmtl.saved import models_of

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
        tasks, numbers = _tasks(X, y, self.loss)
        loss = self.loss or (Squared() if numbers else Hinge())
        prepare = Preprocessing(self.intercept, self.standardize, "task" if numbers else "none")
        regularizer = self.regularizer or TaskRelationship(self.lam)
        if self.rounds < 1:
            raise ConfigError(f"rounds={self.rounds} is below 1: give how many there may be.")
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
        if regularizer.learns:
            self.Omega_ = mocha.Omega.numpy()
        return self

    def predict(self, X: Sequence[ArrayLike]) -> list[NDArray[Any]]:
        """Labels or numbers as y had them, [n_k] for each task.

        Raises:
            NotFittedError: `fit` comes first. DataError: what is wrong with X.
        """
        check_is_fitted(self)
        if len(X) != len(self.models_.names):
            raise DataError(
                f"X has {len(X)} tasks, fitted were {len(self.models_.names)}: give rows of each, [] for none."
            )
        return [self.models_.predict(user, x) for user, x in zip(self.models_.names, X, strict=True)]

    def score(self, X: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> float:
        """Mean over the tasks of the accuracy, or of R² where numbers are predicted."""
        predicted = self.predict(X)
        measure = accuracy_score if len(self.models_.labels) else r2_score
        return float(np.mean([measure(told, found) for told, found in zip(y, predicted, strict=True)]))


def _tasks(X: Sequence[ArrayLike], y: Sequence[ArrayLike], loss: Loss | None) -> tuple[list[Task], bool]:
    """The tasks, and whether y are numbers to predict."""
    if not len(X) or len(X) != len(y):
        raise DataError(f"X has {len(X)} tasks, y {len(y)}: give as many of each, at least one.")
    rows, targets = [np.asarray(each) for each in X], [np.asarray(each) for each in y]
    every = np.concatenate([target.ravel() for target in targets])
    different = np.unique(every)
    numbers = loss.labels is None and not loss.classes if loss else every.dtype.kind == "f" and len(different) > 2
    labels = None if numbers else different
    if labels is not None and len(labels) < 2:
        raise DataError(f"y is {labels[0]} in all tasks: nothing to tell apart.")
    tasks = []
    for k, (x, target) in enumerate(zip(rows, targets, strict=True)):
        values = target if labels is None else np.searchsorted(labels, target)
        if labels is not None and len(labels) == 2:
            values = 2.0 * values - 1.0
        several = len(labels) if labels is not None and len(labels) > 2 else None
        called = None if labels is None else tuple(labels.tolist())
        # Task makes tensors of arrays
        tasks.append(Task(str(k), x, values, x[:0], values[:0], several, called))  # type: ignore[arg-type]
    return tasks, numbers
