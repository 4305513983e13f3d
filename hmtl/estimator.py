"""Multi-task learning in the manner of scikit-learn: `MultiTask(lam=0.01).fit(X, y).predict(X)`."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from torch import Tensor

from hmtl.data import Preprocessing, Task, arrays, prepare
from hmtl.data.preprocessing import Scope
from hmtl.data.tasks import class_targets
from hmtl.errors import ConfigError, DataError
from hmtl.inference.models import models_of
from hmtl.mtl import MOCHA, SDCA, Algorithm, Common, Hinge, Loss, Problem, RandomEffects, Regularizer, Squared
from hmtl.mtl.regularizers import Relation, dense


class MultiTask(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Linear models for related tasks, trained by MOCHA in one process.

    Minimizes the sum of all tasks' mean losses plus a penalty that couples the tasks' weights. The duality gap bounds
    the distance of the objective from its optimum. Parameters and attributes follow the conventions of scikit-learn.

    Args:
        lam: Regularization strength λ; must be a positive float. If None, 0.3 for numbers and 0.01 for labels. Ignored
            if `regularizer` is given.
        regularizer: Penalty that couples the tasks. If None, `Common(lam)`: a model of all tasks, and deviations whose
            relation between the tasks is learned. "random_effects", for numbers: all models are draws from a normal
            distribution that is learned too, with no λ; see `hmtl.mtl.RandomEffects`.
        loss: Loss function. If None, the hinge loss for labels, and the squared error if y holds floats with more than
            two values. Several classes are learned one-vs-rest.
        rounds: Maximum number of rounds.
        tolerance: Relative precision of the solution: training stops when the duality gap is at most `tolerance` times
            the primal objective, and Ω, if it is learned, has settled to the same precision.
        intercept: Whether to fit an intercept, whose weight is regularised like the others.
        standardize: Training rows whose mean and standard deviation scale the features: "task", "all" or "none", see
            `hmtl.data.Preprocessing`.
        center: Training rows whose mean is subtracted from numbers to predict, as for `standardize`. If None, "all" for
            `Common` and random effects, which learn how the means of the tasks differ, and "task" for others.
        seed: Seed of the order in which rows are visited.

    Attributes:
        models_: The fitted models; the users are called "0", "1", ... in the order of the tasks.
        gap_: Duality gap of the solution: an upper bound on how much the objective exceeds its optimum, at the Ω of the
            solution's round. Not for random effects.
        primal_: Primal objective of the solution; for random effects, minus the log-likelihood.
        rounds_: Number of rounds that were run.

    Ref: Smith et al. 2017.
    """

    def __init__(
        self,
        lam: float | None = None,
        *,
        regularizer: Regularizer | Literal["random_effects"] | None = None,
        loss: Loss | None = None,
        rounds: int = 200,
        tolerance: float = 1e-3,
        intercept: bool = True,
        standardize: Scope = "all",
        center: Scope | None = None,
        seed: int = 0,
    ) -> None:
        self.lam = lam
        self.regularizer = regularizer
        self.loss = loss
        self.rounds = rounds
        self.tolerance = tolerance
        self.intercept = intercept
        self.standardize = standardize
        self.center = center
        self.seed = seed

    def fit(self, X: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> Self:
        """Fit the models of K tasks.

        Args:
            X: training rows of each task, X[k] [n_k, d]. Columns of tables such as DataFrames are matched by name.
                Sparse arrays stay sparse, and need standardize="none".
            y: labels, or numbers as floats, y[k] [n_k].

        Returns:
            The fitted estimator.

        Raises:
            ConfigError: if a parameter is out of its range.
            DataError: if a task is invalid.
        """
        random = isinstance(self.regularizer, str) and self.regularizer == "random_effects"
        checked: list[tuple[str, type, str]] = [("loss", Loss, "hmtl.mtl.Hinge()")]
        if not random:
            checked.append(("regularizer", Regularizer, 'hmtl.mtl.Mean(0.1), or "random_effects"'))
        for name, kind, example in checked:
            if not isinstance(value := getattr(self, name), kind | None):
                raise ConfigError(f"{name}={value!r} is not a {kind.__name__}. Give one such as {example}.")
        tasks, labels = _tasks(X, y, self.loss)
        loss = self.loss or (Squared() if labels is None else Hinge())
        lam = self.lam if self.lam is not None else 0.3 if labels is None else 0.01
        regularizer = self.regularizer if isinstance(self.regularizer, Regularizer) else Common(lam)
        usual: Scope = "all" if random or regularizer.common is not None else "task"
        center = (self.center or usual) if labels is None else "none"
        problem = Problem(prepare(tasks, Preprocessing(self.intercept, self.standardize, center)), loss, regularizer)
        algorithm: Algorithm
        if random:
            algorithm = RandomEffects(problem)
            W, metrics = algorithm.W, algorithm.metrics()
        else:
            algorithm, W, metrics = self._train(problem)
        self.models_ = models_of(algorithm, W)
        self.primal_ = metrics["primal"]
        for name in ("gap_", "_relation"):  # from an earlier fit
            self.__dict__.pop(name, None)
        if random:
            self.rounds_ = 1
        else:
            self.gap_ = metrics["gap"]
            self._relation = algorithm.relation if regularizer.learns else None
        return self

    def _train(self, problem: Problem) -> tuple[MOCHA, Tensor, dict[str, float]]:
        """Return MOCHA after its last round, and the models of the best round with their metrics."""
        mocha = MOCHA(problem, SDCA(10), rounds=self.rounds, seed=self.seed)
        least: float | None = None
        for round in range(self.rounds):
            mocha.step(round)
            self.rounds_ = round + 1
            now = mocha.metrics()
            enough = self.tolerance * abs(now["primal"])
            converged = now["gap"] <= enough and mocha.settled(enough)
            rank = mocha.rank(now)
            if least is None or rank is None or rank < least or converged:
                W, metrics, least = mocha.W, now, rank
            if converged:
                break
        return mocha, W, metrics

    @property
    def Omega_(self) -> NDArray[np.float64]:
        """Learned relation between the tasks, [K, K], computed on access.

        Raises:
            AttributeError: the regularizer learns no relation, or `fit` was not called.
        """
        relation: Relation | None = getattr(self, "_relation", None)
        if relation is None:
            raise AttributeError("Omega_ exists after 'fit', if the regularizer learns how the tasks are related.")
        return dense(relation).numpy()

    def predict(self, X: Sequence[ArrayLike]) -> list[NDArray[Any]]:
        """Predict the labels or numbers of raw rows.

        Args:
            X: rows of each task, X[k] [n_k, d]; [] for a task without rows.

        Returns:
            Predictions of each task, [n_k], as y had them.

        Raises:
            NotFittedError: if the estimator is not fitted.
            DataError: if X is invalid.
        """
        if not hasattr(self, "models_"):
            raise NotFittedError("This MultiTask instance is not fitted yet. Call 'fit' first.")
        arrays.check_list(X, "X", 2)
        if len(X) != len(self.models_.names):
            raise DataError(
                f"X has {len(X)} tasks, but {len(self.models_.names)} were fitted. Give rows for each, [] for none."
            )
        return [self.models_.predict(user, x) for user, x in zip(self.models_.names, X, strict=True)]

    def score(self, X: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> float:
        """Return the mean accuracy, or mean R² for numbers, over the tasks that have rows; see `predict` and `fit`.

        Raises:
            NotFittedError: if the estimator is not fitted.
            DataError: if X or y is invalid.
            ValueError: if y has labels where the estimator predicts numbers, or the reverse.
        """
        predicted = self.predict(X)
        arrays.check_list(y, "y", 1)
        true = [arrays.targets(each, f"y[{k}]") for k, each in enumerate(y)]
        if (lengths := [*map(len, predicted)]) != (given := [*map(len, true)]):
            raise DataError(f"X has {lengths} rows, but y has {given}. Give one y for each row.")
        measure = accuracy_score if len(self.models_.labels) else r2_score
        return float(np.mean([measure(*pair) for pair in zip(true, predicted, strict=True) if len(pair[0])]))


def _tasks(X: Sequence[ArrayLike], y: Sequence[ArrayLike], loss: Loss | None) -> tuple[list[Task], NDArray[Any] | None]:
    """Return the tasks, and the labels in sorted order, or None if y holds numbers to predict."""
    arrays.check_list(X, "X", 2)
    arrays.check_list(y, "y", 1)
    if not len(X) or len(X) != len(y):
        raise DataError(f"X has {len(X)} tasks and y has {len(y)}. Give the same number, at least one.")
    columns = arrays.column_names(X[0])
    for k, x in enumerate(X):
        if columns and (names := arrays.column_names(x)) and set(names) != set(columns):
            raise DataError(f"X[{k}] has columns {', '.join(names)}, X[0] {', '.join(columns)}. Give all the same.")
    rows = [arrays.features(x, f"X[{k}]", columns) for k, x in enumerate(X)]
    targets = [arrays.targets(each, f"y[{k}]") for k, each in enumerate(y)]
    labels = _labels(targets, loss)
    called = None if labels is None else tuple(labels.tolist())
    tasks = []
    pairs: Iterable[tuple[Any, Any]] = zip(rows, targets, strict=True)  # arrays, which Task converts to tensors
    for k, (x, values) in enumerate(pairs):
        classes = None
        if labels is not None:
            values, classes = class_targets(np.searchsorted(labels, values), len(labels))
        tasks.append(Task(str(k), x, values, x[:0], values[:0], classes, called, columns or None))
    return tasks, labels


def _labels(targets: Sequence[NDArray[Any]], loss: Loss | None) -> NDArray[Any] | None:
    """Return the labels of all tasks in sorted order, or None if the targets are numbers to predict."""
    if len({target.dtype.kind == "U" for target in targets}) > 1:
        raise DataError("y holds text in some tasks and numbers in others. Give labels of one kind, or numbers.")
    every = np.concatenate(targets)
    values = np.unique(every)
    numeric = every.dtype.kind == "f" and len(values) > 2
    if loss is not None:
        numeric = loss.labels is None and not loss.classes
    elif every.dtype.kind in "iu" and len(values) > arrays.MANY_CLASSES:
        raise DataError(
            f"y has {len(values)} whole numbers, which may be classes or numbers to predict. Give "
            "loss=hmtl.mtl.Hinge(), or y as floats."
        )
    if numeric and every.dtype.kind == "U":
        raise DataError(f"y is text, but {type(loss).__name__} predicts numbers. Give numbers, or another loss.")
    if numeric:
        return None
    if len(values) < 2:
        raise DataError(f"y is {values[0]} in all tasks, so there is nothing to learn.")
    return values
