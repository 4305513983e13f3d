"""Multi-task learning in the manner of scikit-learn: `MultiTask().fit(X, y).predict(X)`."""

from __future__ import annotations  # so that torch and the learners, a second, are imported by the first fit

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from scipy.special import digamma, log_expit, polygamma, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from hmtl.errors import ConfigError, DataError, few

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from hmtl.data import Task
    from hmtl.data.by_task import TaskRows
    from hmtl.data.preprocessing import Scope
    from hmtl.mtl import MOCHA, Loss, MixedEffects, Problem, Regularizer
    from hmtl.mtl.symmetric import Symmetric


MAX_TASK_DISTANCE = 100  # standard deviations of a task, beyond which the means of others do not help
QUICK = 3 * 10**7  # K·d³, operations of an iteration of mixed effects, up to which they are the default


def _predicts_labels(model: MultiTask) -> bool:
    """Return whether a fitted model predicts labels, or an unfitted one may."""
    return hasattr(model, "classes_") if hasattr(model, "models_") else model._predicts != "numbers"


def _has_probabilities(model: MultiTask) -> bool:
    """Return True, or raise AttributeError if a model has no probabilities; it says more than False would."""
    from hmtl.mtl import Logistic

    if not _predicts_labels(model) or not isinstance(model.loss, Logistic | None):
        raise AttributeError(
            "Only labels with the logistic loss have probabilities. Predict labels, and leave loss out."
        )
    return True


class MultiTask(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Linear models for related tasks, trained in one process.

    By default, the strength of the coupling is learned from the rows, in closed form. With `lam` or `regularizer`,
    MOCHA minimizes the sum of all tasks' mean losses plus a penalty that couples the tasks' weights. The duality gap
    bounds the distance of the objective from its optimum. Parameters and attributes follow scikit-learn's conventions.

    Rows come in one of two forms. A table of all rows has a column `task` that names the task of each row; so it fits
    `cross_val_score`, `GridSearchCV` and `Pipeline`. Instead of a column, `groups` may name the tasks; scikit-learn's
    tools pass it on if metadata routing requests it for `fit` and `score`. A list has a table for each task, and
    predictions are then lists, too. Clones refuse lists, since the folds of scikit-learn's tools would run over tasks.

    Args:
        lam: Regularization strength λ of `Common`; must be a positive float. If None, nothing has to be tuned: see
            `regularizer`. Ignored if that is given.
        regularizer: Penalty that couples the tasks, trained by MOCHA. If None, `Common(lam)` if `lam` is given; else
            models are draws from a normal distribution (`hmtl.mtl.MixedEffects`). Its variances maximize the evidence,
            and models are averaged by it over structures: tasks that do not differ, or in their intercepts only, or in
            all weights, with intercepts that go with the means of the features or do not. With sparse rows, another
            loss, or K·d³ above 3e7, None means `Common(0.3)` for numbers and `Common(0.01)` for labels.
        loss: Loss function. If None, the squared error for numbers: floats with more than two values, or integers with
            more than 20; `MultiTaskRegressor` and `MultiTaskClassifier` decide otherwise. Labels have the logistic
            loss. Several classes are learned one-vs-rest.
        task: Name or position of the column of X that names the task of each row, with values of any type. It is not a
            feature.
        class_weight: Weights of the rows of each class within a task: "balanced", inversely proportional to the number
            of its rows; or a dictionary of weights by label, 1 for others.
        rounds: Maximum number of rounds, or of iterations of each fit of mixed effects.
        tolerance: Relative precision of the solution: training stops when the duality gap is at most `tolerance` times
            the primal objective, and Ω or the evidence, if learned, has settled to the same precision. Otherwise, a
            `ConvergenceWarning` is given.
        intercept: Whether to fit an intercept, whose weight is regularized like the others.
        standardize: Training rows whose mean and standard deviation scale the features: "task", "all" or "none", see
            `hmtl.data.Preprocessing`.
        center: Training rows whose mean is subtracted from numbers to predict, as for `standardize`. If None, "all" for
            `Common` and mixed effects, which learn how the means of the tasks differ, unless these are some hundred
            standard deviations apart; otherwise "task". Unless it is "none", each task's numbers are then divided by
            their standard deviation, which is nearer to those of other tasks the fewer rows there are. Mixed effects
            also average over models without this division.
        seed: Seed of the order in which rows are visited.

    Attributes:
        tasks_: Names of the tasks, sorted [K]; their numbers, if X was a list.
        models_: The fitted models; the users are called as the tasks are.
        classes_: Labels in sorted order [C]. Not if numbers are predicted.
        n_features_in_: Number of columns of X.
        feature_names_in_: Names of the columns of X, if all are strings.
        gap_: Duality gap of the solution: an upper bound on how much the objective exceeds its optimum, at the Ω of the
            solution's round, or at the learned variances. In units of `primal_`.
        primal_: Primal objective of the solution, for numbers in units of the squared standard deviations by which the
            targets are divided. For mixed effects, minus the logarithm of the models' posterior density, up to a
            constant, averaged as the models: losses are divided by the variance of the noise, and summed over rows.
        rounds_: Number of rounds that were run.

    Ref: Smith et al. 2017.
    """

    _predicts: ClassVar[Literal["labels", "numbers"] | None] = None  # None: y decides
    _is_clone = False

    def __init__(
        self,
        lam: float | None = None,
        *,
        regularizer: Regularizer | None = None,
        loss: Loss | None = None,
        task: str | int | None = None,
        class_weight: Literal["balanced"] | Mapping[Hashable, float] | None = None,
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
        self.task = task
        self.class_weight = class_weight
        self.rounds = rounds
        self.tolerance = tolerance
        self.intercept = intercept
        self.standardize = standardize
        self.center = center
        self.seed = seed

    def __sklearn_clone__(self) -> Self:
        """Return an unfitted copy, as `sklearn.base.clone` does, which refuses lists of tasks."""
        copy: Self = super().__sklearn_clone__()
        copy._is_clone = True
        return copy

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.standardize == "none"
        tags.target_tags.required = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: ArrayLike | None = None) -> Self:
        """Fit the models of K tasks.

        Args:
            X: rows [n, d] of all tasks: an array, a DataFrame, or a sparse array, which stays sparse and needs
                standardize="none". Or a list with the rows of each task, X[k] [n_k, d]. Columns of tables are matched
                by name. If no task is named, all rows are one task.
            y: labels or numbers, see `loss`, [n]; or y[k] [n_k].
            sample_weight: relative weights of the rows within their task, [n], not for lists. If None, all are equal.
                The loss of a task is the weighted mean; rows of weight 0 are left out.
            groups: task of each row [n], if no column of X names it.

        Returns:
            The fitted estimator.

        Raises:
            ConfigError: if a parameter is out of its range.
            DataError: if X, y or a task is invalid.
        """
        import torch

        from hmtl.data import Preprocessing, arrays, by_task, prepare
        from hmtl.inference.models import models_of
        from hmtl.mtl import Common, Logistic, MixedEffects, Problem, Squared

        self._check_parameters()
        if is_list := by_task.is_list(X):
            self._check_list(groups)
            if sample_weight is not None:
                raise ConfigError("sample_weight is given, but X is a list of tasks. Give one table of all rows.")
            rows = by_task.from_list(X, y, self.intercept)
        else:
            rows = by_task.from_table(X, y, sample_weight, self.task, groups, self.intercept)
        labels = self._labels(rows.y)
        loss = self.loss or (Squared() if labels is None else Logistic())
        lam = self.lam if self.lam is not None else 0.3 if labels is None else 0.01
        prior = self.regularizer or Common(lam)
        usual: Scope = "task" if prior.common is None or (labels is None and _are_far_apart(rows.y)) else "all"
        center = (self.center or usual) if labels is None else "none"
        preprocessing = Preprocessing(self.intercept, self.standardize, center)
        tasks = prepare(self._tasks(rows, labels), preprocessing, in_place=True)
        for name in ("classes_", "feature_names_in_", "_relation", "_new"):  # from an earlier fit
            self.__dict__.pop(name, None)
        scales, learned = _scales([task.y_train.numpy() for task in tasks], center != "none")
        units = torch.from_numpy(scales)
        algorithm: MOCHA | MixedEffects
        new: Tensor | None
        supported = MixedEffects.supports(tasks, loss)
        is_quick = supported and len(tasks) * tasks[0].x_train.shape[1] ** 3 <= QUICK
        if self.regularizer is None and self.lam is None and is_quick:
            choices = [(units, learned)] if (scales == scales[0]).all() else [(units, learned), (units**0, 0.0)]
            options = (self.intercept, self.rounds, self.tolerance, self.seed)
            algorithm = MixedEffects(Problem(tasks, loss, prior), choices, *options)
            self.primal_, self.gap_, self.rounds_ = algorithm.primal, algorithm.gap, algorithm.iterations
            W, new, converged = algorithm.W, algorithm.w0, algorithm.settled
            relation = prior.update_omega(W / units, prior.start(*reversed(W.shape)))
        else:
            if labels is None:
                tasks = tuple(replace(task, y_train=task.y_train / s) for task, s in zip(tasks, scales, strict=True))
            problem = Problem(tasks, loss, prior)
            problem.splits = ()  # nobody reads the measures of a fit
            algorithm, W, metrics, converged = self._train(problem)
            self.primal_, self.gap_ = metrics["primal"], metrics["gap"]
            relation = algorithm.Omega
            new = prior.split(W, relation) * units.log().mean().exp() if isinstance(prior, Common) else None
            W = W * units
        if not converged:
            warnings.warn(
                f"After rounds={self.rounds}, the models, or what is learned about their relation, have not converged "
                f"to tolerance={self.tolerance:g}. Raise rounds or tolerance.",
                ConvergenceWarning,
                stacklevel=2,
            )
        if prior.learns:
            self._relation = relation
        self.models_ = models_of(algorithm, W)
        if labels is not None:
            self.classes_ = self.models_.labels
        if new is not None and "task" not in (self.standardize, center):
            one = {name: getattr(self.models_, name)[:1] for name in ("names", "mean", "scale", "target_mean")}
            self._new = replace(self.models_, W=new.T.numpy(), **one)
        self.tasks_ = rows.names
        self.n_features_in_ = rows.x[0].shape[1] + (self.task is not None)
        if columns := arrays.column_names(X[0] if is_list else X):
            self.feature_names_in_ = np.array(columns, dtype=object)
        return self

    def _train(self, problem: Problem) -> tuple[MOCHA, Tensor, dict[str, float], bool]:
        """Return MOCHA after its last round, the models and metrics of the best round, and whether it converged."""
        from hmtl.mtl import MOCHA, SDCA

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
        return mocha, W, metrics, converged

    @property
    def Omega_(self) -> NDArray[np.float64]:
        """Learned relation Ω between the tasks, [K, K], computed on access.

        Of mixed effects it is the Ω that `Common` would learn from the fitted models, in units of the scaled targets.

        Raises:
            AttributeError: the regularizer learns no relation, or `fit` was not called.
        """
        relation: Symmetric | None = getattr(self, "_relation", None)
        if relation is None:
            raise AttributeError("Omega_ exists after 'fit', if the regularizer learns how the tasks are related.")
        return relation.dense().numpy()

    def predict(self, X: Any, groups: ArrayLike | None = None) -> Any:
        """Predict the labels or numbers of raw rows.

        For tasks that were not fitted, the common model predicts if `Common` or mixed effects learned one, unless
        `standardize` or `center` is "task".

        Args:
            X: rows in the form given to `fit`. In a list, [] is a task without rows.
            groups: task of each row [n], if no column of X names it.

        Returns:
            Predictions [n], as y had them; or a list with those of each task.

        Raises:
            NotFittedError: if the estimator is not fitted.
            DataError: if X is invalid, or there is no model of a task.
        """
        return self._apply(X, groups, "predict")

    @available_if(_predicts_labels)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    def decision_function(self, X: Any, groups: ArrayLike | None = None) -> Any:
        """Return the scores [n] of the second class or, for several classes, [n, C]; see `predict`."""
        return self._apply(X, groups, "scores")

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]  # scikit-learn has no types
    def predict_proba(self, X: Any, groups: ArrayLike | None = None) -> Any:
        """Return the probabilities of the classes [n, C], for the logistic loss; see `predict`.

        Several classes are learned one-vs-rest, and their probabilities are divided by their sum.
        """
        scores = self.decision_function(X, groups)
        return [*map(_probabilities, scores)] if isinstance(scores, list) else _probabilities(scores)

    def score(self, X: Any, y: Any, sample_weight: Any = None, groups: ArrayLike | None = None) -> float:
        """Return the accuracy, or R² for numbers, over all rows; for a list, the mean over the tasks that have rows.

        Args:
            X, groups: see `predict`.
            y: labels or numbers as in `fit`.
            sample_weight: weights of the rows [n]; not for lists.

        Raises:
            NotFittedError: if the estimator is not fitted.
            DataError: if X or y is invalid.
            ValueError: if y has labels where the estimator predicts numbers, or the reverse.
        """
        from sklearn.metrics import accuracy_score, r2_score

        from hmtl.data import arrays

        predicted = self.predict(X, groups)
        measure = accuracy_score if len(self.models_.labels) else r2_score
        if not isinstance(predicted, list):
            return float(measure(y, predicted, sample_weight=sample_weight))
        if sample_weight is not None:
            raise ConfigError("sample_weight is not supported for the score of a list. Give one table of all tasks.")
        arrays.check_list(y, "y", 1)
        true = [arrays.targets(each, f"y[{k}]") for k, each in enumerate(y)]
        if (lengths := [*map(len, predicted)]) != (given := [*map(len, true)]):
            raise DataError(f"X has {lengths} rows, but y has {given}. Give one y for each row.")
        return float(np.mean([measure(*pair) for pair in zip(true, predicted, strict=True) if len(pair[0])]))

    def _check_parameters(self) -> None:
        """Raise ConfigError if a parameter has a wrong type."""
        from hmtl.mtl import Loss, Regularizer

        checked: list[tuple[str, Any, str]] = [
            ("loss", Loss | None, "a Loss. Give one such as hmtl.mtl.Hinge()"),
            ("regularizer", Regularizer | None, "a Regularizer. Give one such as hmtl.mtl.Mean(0.1)"),
            ("lam", Real | None, "a number. Give one above 0, or None"),
            ("rounds", Integral, "a whole number. Give one above 0"),
            ("tolerance", Real, "a number. Give one such as 0.001"),
            ("seed", Integral, "a whole number. Give one such as 0"),
        ]
        for name, kind, remedy in checked:
            if not isinstance(value := getattr(self, name), kind):
                raise ConfigError(f"{name}={value!r} is not {remedy}.")

    def _check_list(self, groups: ArrayLike | None) -> None:
        """Raise ConfigError if X must not be a list."""
        if self.task is not None or groups is not None:
            raise ConfigError("X is a list with a table for each task. Leave task and groups out, or give one table.")
        if self._is_clone:
            raise ConfigError(
                "X is a list of tasks, but this estimator is a clone, as scikit-learn's tools make them, whose folds "
                "would run over tasks. Give one table of all rows and task=COLUMN; in your own loop, use copy.copy."
            )

    def _labels(self, targets: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
        """Return the labels of all tasks in sorted order, or None if the targets are numbers to predict."""
        from hmtl.data.arrays import MANY_CLASSES

        if len({target.dtype.kind == "U" for target in targets}) > 1:
            raise DataError("y holds text in some tasks and numbers in others. Give labels of one kind, or numbers.")
        every = np.concatenate(targets)
        values = np.unique(every)
        numeric = len(values) > {"f": 2, "i": MANY_CLASSES, "u": MANY_CLASSES}.get(every.dtype.kind, len(values))
        if self._predicts is not None:
            numeric = self._predicts == "numbers"
        elif self.loss is not None:
            numeric = self.loss.labels is None and not self.loss.classes
        if numeric and every.dtype.kind == "U":
            raise DataError("y is text, but the estimator predicts numbers. Give numbers, or another loss.")
        if numeric:
            return None
        if self._predicts == "labels":
            check_classification_targets(every)
        if len(values) < 2:
            raise DataError(f"y is {values[0]} in all tasks: with one class, there is nothing to learn.")
        return values

    def _tasks(self, rows: TaskRows, labels: NDArray[Any] | None) -> list[Task]:
        """Return the tasks; classes are numbered in the order of the labels."""
        from hmtl.data import Task
        from hmtl.data.tasks import class_targets

        if self.class_weight is not None and labels is None:
            raise ConfigError(f"class_weight={self.class_weight!r}, but y holds numbers. Leave class_weight out.")
        names = [*map(str, rows.names)]
        if len({*names}) < len(names):
            names = [*map(repr, rows.names.tolist())]  # such as 1 and "1"
        each_class, balanced = np.ones(0), None
        if isinstance(self.class_weight, Mapping):
            each_class = compute_class_weight(dict(self.class_weight), classes=labels, y=labels)
            if not (each_class > 0).all():
                raise ConfigError(f"class_weight={self.class_weight!r}: weights have to be above 0. Give others.")
        elif self.class_weight is not None:
            if self.class_weight != "balanced":
                raise ConfigError(f'class_weight={self.class_weight!r}: give "balanced", weights by label, or None.')
            balanced = self.class_weight
        tasks = []
        for k, (name, x, values) in enumerate(zip(names, rows.x, rows.y, strict=True)):
            weights = None if rows.weights is None else rows.weights[k]
            classes = called = None
            if labels is not None:
                number = np.searchsorted(labels, values)
                if len(each_class):
                    weights = each_class[number] * (1.0 if weights is None else weights)
                (values, classes), called = class_targets(number, len(labels)), tuple(labels.tolist())
            y: Any = values  # arrays, which Task converts to tensors
            columns = rows.columns or None
            tasks.append(Task(name, x, y, x[:0], y[:0], classes, called, columns, balanced, weights))
        return tasks

    def _apply(self, X: Any, groups: ArrayLike | None, method: Literal["predict", "scores"]) -> Any:
        """Return what a method of the models returns for rows X of all tasks: an array [n, ...], or a list of them."""
        from hmtl.data import by_task

        check_is_fitted(self, "models_")
        names = self.models_.names
        if by_task.is_list(X):
            self._check_list(groups)
            if len(X) != len(names):
                raise DataError(f"X has {len(X)} tasks, but {len(names)} were fitted. Give rows for each, [] for none.")
            return [getattr(self.models_, method)(user, x) for user, x in zip(names, X, strict=True)]
        x, index, _ = by_task.read(X, self.task, groups, self.models_.columns)
        width = x.shape[1] + (self.task is not None)
        if width != self.n_features_in_:
            raise DataError(
                f"X has {width} features, but {type(self).__name__} is expecting {self.n_features_in_} features as "
                "input. Give the columns of the fit."
            )
        if index is None and len(names) > 1:
            raise DataError(f"X names no tasks, but {len(names)} were fitted. Give groups, the task of each row.")
        codes = np.zeros(x.shape[0], np.intp)
        if index is not None:
            codes = pd.Index(self.tasks_, tupleize_cols=False).get_indexer(index)
            if (unknown := codes < 0).any() and not hasattr(self, "_new"):
                new = [*map(repr, index[unknown].unique().tolist())]
                raise DataError(
                    f"There is no model of task {few(new)}. Give rows of the {len(names)} fitted tasks. Only Common, "
                    "or no regularizer, predicts new tasks, standardized and centered over all tasks or not at all."
                )
        outputs: NDArray[Any] | None = None
        for k, at in pd.Series(codes).groupby(codes).indices.items():
            part = getattr(self._new if k < 0 else self.models_, method)(names[max(k, 0)], x[at])
            if outputs is None:
                outputs = np.empty((len(codes), *part.shape[1:]), part.dtype)
            outputs[at] = part
        return outputs


class MultiTaskClassifier(ClassifierMixin, MultiTask):  # type: ignore[misc]  # scikit-learn has no types
    """`MultiTask` for labels of any type, which scikit-learn's tools know as a classifier.

    Folds are stratified by default.
    """

    _predicts = "labels"
    score = MultiTask.score


class MultiTaskRegressor(RegressorMixin, MultiTask):  # type: ignore[misc]  # scikit-learn has no types
    """`MultiTask` for numbers, also whole ones, which scikit-learn's tools know as a regressor."""

    _predicts = "numbers"
    score = MultiTask.score


def _probabilities(scores: NDArray[Any]) -> NDArray[Any]:
    """Return the probabilities of classes [n, C] for logistic scores [n] or [n, C]: σ of each, divided by their sum."""
    each = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
    probabilities: NDArray[Any] = softmax(log_expit(each), axis=1)
    return probabilities


def _are_far_apart(targets: Sequence[NDArray[Any]]) -> bool:
    """Return whether the means of tasks are so far apart that none says anything about another."""
    means, mean = np.array([each.mean() for each in targets]), np.concatenate(targets).mean()
    return bool(np.square((means - mean) / _scales(targets, True)[0]).mean() > MAX_TASK_DISTANCE**2)


def _scales(targets: Sequence[NDArray[np.float64]], scaled: bool) -> tuple[NDArray[np.float64], float]:
    """Return the unit of each task's targets [K], and how many units the rows determine.

    A unit is the standard deviation, nearer to that of the other tasks if uncertain.

    log s² is normal with the variance ψ′(f/2) for f + 1 rows of normal numbers; the variance between the tasks is that
    of DerSimonian and Laird 1986.
    """
    n, y = np.array([*map(len, targets)]), np.concatenate(targets, dtype=np.float64)
    first = n.cumsum() - n
    deviations = y - np.repeat(np.add.reduceat(y, first) / n, n)
    squares, total = (np.add.reduceat(np.square(each), first) for each in (deviations, y))
    known = scaled & (squares > 1e-24 * (n - 1) * total / n)
    if not known.any():
        return np.ones(len(n)), 0.0
    logs, weights = np.zeros((2, len(n)))
    half = (n[known] - 1) / 2
    logs[known], weights[known] = np.log(squares[known] / 2) - digamma(half), 1 / polygamma(1, half)
    mean = weights @ logs / weights.sum()
    excess = weights @ np.square(logs - mean) - (weights > 0).sum() + 1
    between = max(0.0, excess / max(weights.sum() - weights @ weights / weights.sum(), 1e-300))
    kept = between * weights / (between * weights + 1)
    return np.exp((mean + kept * (logs - mean)) / 2), float(kept.sum())
