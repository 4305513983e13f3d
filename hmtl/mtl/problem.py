"""The learning problem of all users, their rows, and the quality of models on them.

A process may hold the rows of only some users. It then computes for these users, and K is their number in the shapes of
rows, duals and models.

K users, n_k training rows of user k, N = Σ n_k, d features, C classes (1 for one score). The rows of one user follow
those of another, without padding, in all that has a number for each row, such as the duals a [N, C]. W and V [C·d, K]
hold one user per column: the parameters of C scores, one after the other.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import vstack
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from hmtl.data import Task
from hmtl.data.items import TARGETS, each_tensor
from hmtl.data.sparse import Features, times
from hmtl.data.tasks import SPLITS, classified, numbered
from hmtl.errors import ConfigError, DataError
from hmtl.io.described import Described
from hmtl.mtl.losses import Loss, OneVsRest
from hmtl.mtl.measures import OwnMeasure, means, measures_for, summarize, terms_of_means, totals
from hmtl.mtl.regularizers import Regularizer
from hmtl.mtl.sums import Grid
from hmtl.mtl.symmetric import Symmetric
from hmtl.mtl.torch_loss import TorchLoss
from hmtl.rng import generator

ROWS_AT_ONCE = 1024  # rows, of many, for which intermediate results are in memory at the same time


def runs(counts: Sequence[int]) -> Iterator[tuple[slice, slice, int]]:
    """Yield the users, the rows and n of each run of users with n rows each, whose rows are a view [users, n, ...]."""
    user = row = 0
    for n, group in groupby(counts):
        last = user + len(list(group))
        rows = (last - user) * n
        yield slice(user, last), slice(row, row + rows), n
        user, row = last, row + rows


def rows_of(counts: Sequence[int], users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the rows of some users are among those of all users, who have `counts` rows."""
    ends = np.cumsum(counts, dtype=np.int64)
    n = np.asarray(counts, dtype=np.int64)[users]
    places: NDArray[np.int64] = np.repeat(ends[users] - n.cumsum(), n) + np.arange(n.sum())
    return places


@dataclass(frozen=True)
class Rows:
    """The training rows of many users for local solvers, those of one user after those of another.

    Attributes:
        X: features [N, d]; sparse ones as a CSR array.
        y: labels [N].
        square_norms: ‖x_kj‖² [N].
        counts: n_k of each user.
        s: weights of the rows in the objective [N].
        places: number of the first row of each user, if there are rows of further users [K].
    """

    X: Features
    y: Tensor
    square_norms: Tensor
    counts: tuple[int, ...]
    s: Tensor
    places: Tensor | None = None

    @cached_property
    def n(self) -> Tensor:
        """n_k of each user [K], on the device of the rows."""
        return torch.tensor(self.counts, dtype=torch.int64, device=self.y.device)

    @cached_property
    def starts(self) -> Tensor:
        """Number of the first row of each user [K]."""
        return self.n.cumsum(0) - self.n if self.places is None else self.places

    def of_users(self, users: NDArray[np.int64]) -> "Rows":
        """Return the rows of some users, without copying any: those of all others stay between them."""
        counts = tuple(self.counts[k] for k in users.tolist())
        return replace(self, counts=counts, places=self.starts[torch.from_numpy(users).to(self.y.device)])


class Problem(Described):
    """$P(W) = Σ_k s_k Σ_j ω_kj ℓ(w_k·x_kj, y_kj) + R(W, Ω)$, with s_k = 1/n_k (mean) or 1 (sum, as in the paper).

    The weights of rows are ω_kj = 1, unless `Task.class_weight` is set. Below, s_kj is s_k ω_kj.

    A margin loss on C classes becomes Σ_c ℓ(w_kc·x_kj, ±1), see `OneVsRest`. All scores of a user form one model, and
    one Ω couples it with the models of other users.

    Args:
        tasks: one task per user, including users whose rows other processes hold, see `Task.is_local`. Rows with a
            shape are flattened.
        loss: ℓ; the problem keeps a copy.
        regularizer: R; the problem keeps a copy that is prepared for these tasks.
        reduction: "mean" or "sum" over a user's rows.
        device: device of the rows and of all computations.
        fraction_bits: p of the grid 2^-p to which terms of sums over users are rounded, see `Grid`.
        measures: further measures of predictions, by name, see `measures_for`.

    Attributes:
        everybody: tasks of all users, rows as vectors.
        tasks: tasks of the users in this process.
        is_sparse: whether their rows are sparse.
        users: their numbers [K].
        here: n_k of these users.
        counts: n_k of all users.
        items: whether networks read rows as `Items`; then all others know only their numbers.
        shape: shape of a row before it was flattened.
        splits: names of the parts of the rows that are measured.
        tuned: whether models that users have trained are measured before they are averaged, too.
        outputs: numbers in a prediction.
        size: numbers in a linear model.
        binary: loss of one score.
        measures: what is measured of predictions, by name.
        s: weights s_k [K].
        weights: s_kj [N].

    Raises:
        ConfigError: an unknown reduction, or a regularizer that cannot be used with these users.
        DataError: there is no task, a task has other columns or classes than the first, or the loss rejects a label.

    Ref: Hu et al. 2022, eq. (1).
    """

    _shown = ("K", "loss", "regularizer")

    def __init__(
        self,
        tasks: Sequence[Task],
        loss: Loss,
        regularizer: Regularizer,
        reduction: Literal["mean", "sum"] = "mean",
        device: str | torch.device = "cpu",
        fraction_bits: int = 40,
        measures: Mapping[str, OwnMeasure] = MappingProxyType({}),
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ConfigError(f'reduction={reduction!r}: choose "mean" or "sum".')
        if not tasks:
            raise DataError("The data set has no tasks, but a problem needs at least one user. Check its K.")
        if loss.labels or loss.classes:
            tasks = numbered(classified(tasks)) if loss.classes else classified(tasks)
        if isinstance(loss, TorchLoss):
            loss = copy.copy(loss)
            loss.classes = tasks[0].classes is not None  # type: ignore[misc]  # see there
            loss.outputs = (tasks[0].classes or 1) if tasks[0].has_numbers else 0
            if measures and not loss.outputs:
                raise ConfigError(
                    f"measures.{min(measures)} cannot be computed, as measures get one target for each row, and these "
                    "rows have others. Leave measures out; the loss is measured."
                )
        if tasks[0].classes and loss.labels == (-1.0, 1.0):
            loss = OneVsRest(loss)
        for task in tasks:
            _check_task(task, tasks[0], loss)
        self.items = tasks[0].example is not None
        self.shape = tuple(tasks[0].x_train.shape[1:])
        self.grid = Grid(fraction_bits, len(tasks))
        self.users = np.array([k for k, task in enumerate(tasks) if task.is_local], dtype=np.int64)
        self.everybody = [task.flat for task in tasks]
        self.tasks = [self.everybody[k] for k in self.users]
        self.is_sparse = any(task.is_sparse for task in self.tasks)
        for task in self.tasks:
            if task.is_sparse != self.is_sparse:
                raise DataError(f"Task {task.name!r} has dense rows, but others are sparse. Give all tasks the same.")
        if self.is_sparse and torch.device(device).type != "cpu":
            raise ConfigError(f"device={device}, but the rows are sparse, which only a CPU can use. Set device=cpu.")
        self.counts = tuple(len(task.y_train) for task in tasks)
        self.here = tuple(self.counts[k] for k in self.users)
        self.K = len(tasks)
        self.splits: tuple[str, ...] = ("train", "test") + ("validation",) * any(
            len(task.y_validation) for task in tasks
        )
        self.tuned = True
        self.d = self.everybody[0].x_train.shape[1]
        self.outputs = tasks[0].classes or 1
        self.size = self.outputs * self.d
        self.loss = copy.deepcopy(loss).to(device)
        self.binary = self.loss.binary if isinstance(self.loss, OneVsRest) else self.loss
        self.measures = measures_for(self.loss, measures, self.outputs)
        counts = torch.tensor(self.here, dtype=torch.float64, device=device)
        self.s = 1 / counts if reduction == "mean" else torch.ones_like(counts)
        weights = [s * task.weights.to(device) for task, s in zip(self.tasks, self.s, strict=True)]
        self.weights = torch.cat([counts[:0], *weights])
        self._rows: dict[torch.dtype, Rows] = {}  # shared by copies of the problem
        self._prepare(regularizer)

    def _prepare(self, regularizer: Regularizer) -> None:
        self.regularizer = regularizer
        facts = self.facts()
        if len(facts) < self.K:  # the set-up brings the facts of other processes, and prepares the regularizer again
            facts = torch.from_numpy(generator(0, "stand-in").normal(size=(self.K, facts.shape[1])))
        self.regularizer = regularizer.prepared(facts).to(self.s.device)

    def for_networks(self) -> "Problem":
        """Return a problem whose regularizer has the default settings for networks."""
        new = copy.copy(self)
        new.regularizer = self.regularizer.for_networks()
        return new

    def regularized(self, regularizer: Regularizer) -> "Problem":
        """Return a problem with another regularizer, but the same tasks, rows and loss."""
        new = copy.copy(self)
        new._prepare(regularizer)
        return new

    def facts(self) -> Tensor:
        """Return what the users report before the first round [K, f], see `Regularizer.facts`."""
        if self.tasks:
            return torch.stack([self.regularizer.facts(task) for task in self.tasks])
        task = self.everybody[0]  # two rows of this shape suffice to show how many facts there are
        x, y = torch.zeros(2, self.d), torch.tensor([0.0, 1.0] if task.classes else [-1.0, 1.0])
        stand_in = Task("stand-in", x, y, x[:0], y[:0], task.classes, example=task.example)
        return self.regularizer.facts(stand_in)[None][:0]

    def known(self, matrix: Callable[[Symmetric], Symmetric]) -> Symmetric | None:
        """Return a function of the first Ω if users know it from the configuration alone, and sums suffice for it."""
        if self.regularizer.learns or self.facts().shape[1]:
            return None
        M = matrix(self.regularizer.start(self.K, self.size).to(self.s))
        return M if M.by_sums else None

    def check_dense(self, algorithm: str) -> None:
        """Raise ConfigError if rows are sparse, for an algorithm that cannot use them."""
        if self.is_sparse:
            raise ConfigError(
                f"{algorithm} needs dense rows, but the rows are sparse. Choose algorithm=mocha, cocoa or local, or "
                "give dense rows."
            )

    def rows_in(self, dtype: torch.dtype) -> Rows:
        """Return the training rows in a type.

        If the tasks' rows are dense and of this type, they become views of the result, so that they are in memory only
        once; the result is a view of them if they already follow each other in memory.
        """
        if dtype in self._rows:
            return self._rows[dtype]
        X: Features
        if self.items:
            X = torch.cat([torch.empty(0, 1, dtype=torch.int64), *(task.x_train for task in self.tasks)])
            square_norms = torch.zeros(len(X))
        elif self.is_sparse:
            X = vstack([task.x_train for task in self.tasks], format="csr")
            square_norms = torch.from_numpy((X * X).sum(1))
        elif (joined := self._joined(dtype)) is not None:
            X = joined
        else:
            X = torch.empty(sum(self.here), self.d, dtype=dtype, device=self.s.device)
            for k, (user, x) in enumerate(zip(self.users, torch.split(X, list(self.here)), strict=True)):
                task = self.tasks[k]
                x.copy_(task.x_train)
                if x.is_cpu and task.x_train.dtype == dtype:  # at once, to free a task's rows before others are copied
                    self.tasks[k] = self.everybody[user] = copy.copy(task)
                    object.__setattr__(self.tasks[k], "x_train", x)
        if not self.is_sparse and not self.items:
            square_norms = torch.cat(
                [torch.linalg.vecdot(x, x) for x in torch.split(X, ROWS_AT_ONCE)]
            )  # it copies rows
        y, _ = self._targets["train"]
        self._rows[dtype] = Rows(X, y.to(dtype), square_norms, self.here, self.weights.to(dtype))
        return self._rows[dtype]

    def _joined(self, dtype: torch.dtype) -> Tensor | None:
        """Return the tasks' dense rows [N, d] as a view, if they are of this type and follow each other in memory."""
        if not (own := [task.x_train for task in self.tasks]):
            return None
        place, alike = own[0].storage_offset(), (dtype, self.s.device, own[0].untyped_storage().data_ptr())
        for x in own:
            here = x.storage_offset() == place and x.is_contiguous()
            if not here or (x.dtype, x.device, x.untyped_storage().data_ptr()) != alike:
                return None
            place += x.numel()
        joined: Tensor = own[0].as_strided((sum(self.here), self.d), (self.d, 1))
        return joined

    def dataset(self, user: int, dtype: torch.dtype, shape: Sequence[int]) -> Dataset[Any]:
        """Return the training rows of one of this process's users as a torch Dataset.

        It is `Items`, the user's own, or rows of a shape and targets: classes as int64, other numbers of the type.
        """
        task, rows = self.tasks[user], self.rows_in(dtype)
        own: Dataset[Any] | None = task.dataset
        if task.items is not None:
            own = task.items.of(task.x_train[:, 0], task.targets_of)
        if own is not None:
            return own
        first, n = int(rows.starts[user]), self.here[user]
        y = rows.y[first : first + n]
        return TensorDataset(rows.X[first : first + n].view(-1, *shape), y.long() if self.loss.classes else y)

    def stack(self, dtype: torch.dtype) -> bool:
        """Let `rows_in` have all training rows as vectors in their own type, and return whether this can be done.

        It cannot if rows are drawn or made anew whenever they are read, or are not tensors of one shape.
        """
        if not self.items:
            return all(task.dataset is None for task in self.tasks)
        if not all(task.items and task.items.is_stored for task in self.tasks):
            return False
        parts = [inputs for k in range(len(self.tasks)) for inputs, _, _ in self.batches("train", k, ROWS_AT_ONCE)]
        if (
            not all(isinstance(each, Tensor) and each.ndim > 1 for each in parts)
            or len({each.shape[1:] for each in parts}) != 1
        ):
            return False
        self._rows[dtype] = replace(self.rows_in(dtype), X=torch.cat(parts).flatten(1).to(self.s.device))
        return True

    def batches(self, split: str, user: int, most: int) -> Iterator[tuple[Any, Any, int]]:
        """Yield the inputs, the targets and the number of rows of each batch of a user's split, of at most `most` rows.

        Also store the targets just read, since items may be sorted or drawn anew; measures compare predictions with
        these.
        """
        task, (targets, counts) = self.tasks[user], self._targets[split]
        x, y, first = getattr(task, f"x_{split}"), getattr(task, f"y_{split}"), int(counts[:user].sum())
        for at in torch.split(torch.arange(len(y)), most):
            if len(at) and task.items is None:
                yield x[at], y[at], len(at)
            elif len(at):
                inputs, own = task.items.batch(x[at, 0])
                if not task.items.is_stored and (read := task.targets_of(own, len(at))) is not None:
                    targets[first + at] = read.to(targets)
                yield inputs, own, len(at)

    def example(self) -> Any:
        """Return the inputs of two rows, on which a network is tried out, with labels if it computes its loss.

        If this process has no rows, these are zeros; for items, ones, which may also be lengths and masks.
        """
        if not self.tasks:
            if not self.items:
                return self.s.new_zeros(2, self.d)
            inputs, y = each_tensor(self.everybody[0].example, lambda each: torch.ones_like(each, device="cpu"))
        else:
            task = self.tasks[0]
            at = torch.tensor([0, min(1, len(task.y_train) - 1)])
            if task.items is None:
                return task.x_train[at].to(self.s)
            inputs, y = task.items.batch(at)
        is_own = isinstance(self.loss, TorchLoss) and self.loss.function is None
        if not is_own or y is None:
            return inputs
        if isinstance(inputs, Mapping):
            return {**inputs, TARGETS[0]: y}
        return [*(inputs if type(inputs) in (list, tuple) else [inputs]), y]

    @property
    def rows(self) -> Rows:
        """The training rows in double precision, which certificates need."""
        return self.rows_in(torch.float64)

    @cached_property
    def scores(self) -> tuple[Rows, ...]:
        """The rows once for each score of a prediction, with the labels of that score."""
        if not isinstance(self.loss, OneVsRest):
            return (self.rows,)
        signs = OneVsRest.signs(self.rows.y.new_empty(self.outputs), self.rows.y).unbind(-1)
        return tuple(replace(self.rows, y=sign.contiguous()) for sign in signs)

    def _predicted(self, scores: Tensor) -> Tensor:
        """Return scores [..., C] in the shape that the loss takes: [...] if C = 1."""
        return scores if self.loss.classes else scores[..., 0]

    @torch.no_grad()
    def predictions(self, W: Tensor, split: str) -> Tensor:
        """Return the predictions of each user's model on the rows of a split, [N] or [N, C]."""
        models = W.T.reshape(W.shape[1], self.outputs, self.d).mT
        y, counts = self._targets[split]
        predictions = models.new_empty(len(y), self.outputs)
        if split == "train" and not self.is_sparse:
            for users, rows, n in runs(self.here):
                x = self.rows.X[rows].view(-1, n, self.d)
                torch.bmm(x, models[users], out=predictions[rows].view(-1, n, self.outputs))
        else:
            for each, task, w in zip(torch.split(predictions, counts.tolist()), self.tasks, models, strict=True):
                each[:] = times(getattr(task, f"x_{split}"), w)
        return self._predicted(predictions)

    @torch.no_grad()
    def losses(self, predictions: Tensor) -> Tensor:
        """Return Σ_j s_kj ℓ(p_kj, y_kj) [K] for predictions on training rows, in double precision."""
        y, counts = self._targets["train"]
        return totals(self.weights * self.loss(predictions, y.to(predictions)), counts)

    @torch.no_grad()
    def conjugates(self, a: Tensor) -> Tensor:
        """Return Σ_j s_kj ℓ*(−a_kj) [K]."""
        y, counts = self._targets["train"]
        return totals(self.weights * self.loss.conjugate(self._predicted(a), y), counts)

    def combined(self, a: Tensor) -> Tensor:
        """Return V [d, K] from the duals, v_k = Σ_j s_kj a_kj x_kj."""
        weighted, V = self.weights[:, None] * a, a.new_empty(len(self.here), self.outputs, self.d)
        if self.is_sparse:
            for v, task, each in zip(V, self.tasks, torch.split(weighted, list(self.here)), strict=True):
                v[:] = times(task.x_train.T, each).T
        else:
            for users, rows, n in runs(self.here):
                each, x = weighted[rows].view(-1, n, self.outputs), self.rows.X[rows].view(-1, n, self.d)
                torch.bmm(each.mT, x, out=V[users])
        return V.flatten(1).T

    @cached_property
    def _targets(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The users' targets y [N], and numbers of rows [K], by split."""
        targets = {}
        for split in SPLITS:
            own = [getattr(task, f"y_{split}") for task in self.tasks]
            counts = torch.tensor([len(y) for y in own], dtype=torch.int64)
            y = torch.cat([torch.empty(0, dtype=torch.float64), *own])
            targets[split] = y.to(self.s.device, torch.float64), counts.to(self.s.device)
        return targets

    @torch.no_grad()
    def measure(self, split: str, predictions: Tensor, users: NDArray[np.int64] | None = None) -> dict[str, Tensor]:
        """Return the measures of predictions on the rows of a split, [N] or [N, C], of all users or some: [K] each."""
        y, counts = self._targets[split]
        tasks = self.tasks
        if users is not None:
            at = torch.from_numpy(rows_of(counts.tolist(), users)).to(y.device)
            y, counts, tasks = y[at], counts[torch.from_numpy(users).to(y.device)], [tasks[k] for k in users]
        if self.loss.measure == "mean squared error":  # own measures get targets as they were before any centering
            shift = torch.tensor([task.scaling.target_mean for task in tasks]).to(y).repeat_interleave(counts)
            predictions, y = predictions + shift, y + shift
        return {f"{split}_{name}": measure(predictions, y, counts) for name, measure in self.measures.items()}

    def is_measure(self, name: str) -> bool:
        """Return whether this is the name of a measure on the rows of a split, such as `test_error`."""
        return name.endswith(tuple(f"_{measure}" for measure in self.measures)) and bool(
            set(name.split("_")) & {*SPLITS}
        )

    def terms_of_figures(self, measured: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the users of this process add to the sums that `figures_of_sums` needs, float64 [K, ...].

        Args:
            measured: the measures of these users by name, [K] each, among further values.
        """
        terms = {}
        for name in filter(self.is_measure, measured):
            rows = next(part for part in name.split("_") if part in SPLITS)
            counts = [len(getattr(task, f"y_{rows}")) for task in self.tasks]
            terms[name] = terms_of_means(measured[name], torch.tensor(counts, device=measured[name].device))
        if self.loss.measure == "mean squared error":
            for split in self.splits:
                ys = [getattr(task.raw, f"y_{split}").double() for task in self.tasks]
                moments = [torch.stack([y.new_tensor(len(y)), y.sum(), y.square().sum()]) for y in ys]
                terms[f"targets {split}"] = torch.stack(moments) if moments else torch.zeros(0, 3, dtype=torch.float64)
        return terms

    def figures_of_sums(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return means of measures over the users whose `terms_of_figures` have been added up; in regression, R², too.

        Users without rows of a split are left out; if no user has any, nothing of the split is in the result.
        """
        figures = dict[str, float]()
        for name in filter(self.is_measure, sums):
            if sums[name][-1]:
                figures |= means(name, sums[name])
        for split in self.splits:
            if (name := f"targets {split}") in sums and (n := float(sums[name][0])):
                _, total, squares = sums[name].tolist()
                around_mean = squares - total**2 / n
                if around_mean > 1e-12 * squares:  # R² is undefined for constant targets
                    figures[f"{split}_r2"] = 1 - float(sums[f"{split}_error"][3]) / around_mean
        return figures

    def figures(self, split: str, measured: Mapping[str, Tensor]) -> dict[str, float]:
        """Summarize what `measure` returned, of all users; in regression, add R².

        R² is 1 − Σ(p − y)² / Σ(y − ȳ)² over the rows of all users, with their common mean ȳ before any centering (the
        "explained variance" of the multi-task literature). Users without such rows are left out; if no user has any,
        the result is empty.

        Args:
            split: one of `splits`, possibly with a prefix such as `global_`.
            measured: the measures of all users by name, [K] each, among further values.

        Ref: Bakker and Heskes 2003.
        """
        rows, figures = split.rpartition("_")[2], dict[str, float]()
        counts = torch.tensor([getattr(task, f"y_{rows}").numel() for task in self.everybody])
        if not counts.any():
            return {}
        for name in (f"{split}_{measure}" for measure in self.measures):
            if name in measured:
                figures |= summarize(name, measured[name].cpu(), counts)
        if self.loss.measure != "mean squared error" or split != rows:
            return figures
        y = torch.cat([getattr(task.raw, f"y_{split}") for task in self.everybody])
        if y.min() < y.max():  # R² is undefined for constant labels
            squares, total = figures[f"{split}_error_weighted"] * len(y), float((y - y.mean()).square().sum())
            figures[f"{split}_r2"] = 1 - squares / total
        return figures


def _check_task(task: Task, first: Task, loss: Loss) -> None:
    """Raise DataError if a task does not fit the first one, or if the loss cannot take its labels."""
    name, margin_losses = type(loss).__name__, "hinge, smooth_hinge or logistic"
    ys = (task.y_train, task.y_test, task.y_validation) if task.is_local else ()
    wrong = {float(y[bad][0]) for y in ys if loss.labels and (bad := ~torch.isin(y, y.new_tensor(loss.labels))).any()}
    if task.x_train.shape[1:] != first.x_train.shape[1:]:
        own, other = (" × ".join(map(str, each.x_train.shape[1:])) for each in (task, first))
        fault = (
            f"{own} columns, but task {first.name!r} has {other}: coupled models need the same features. Give all "
            "tasks the same columns."
        )
    elif (task.example is None) != (first.example is None):
        fault = f"rows of another kind than task {first.name!r}. Give all users Datasets, or all users Tasks."
    elif not task.has_numbers and not isinstance(loss, TorchLoss):
        kind, remedy = task.example[1], "a loss of your own, such as loss=lambda output, y: f(output, y)"
        if isinstance(kind, Tensor):
            loss_of_torch = "BCEWithLogitsLoss" if kind.is_floating_point() else "CrossEntropyLoss"
            remedy = f"a loss of torch, such as loss=torch.nn.{loss_of_torch}()"
        fault = f"targets that are not one number for each row, as {name} needs. Name {remedy}."
    elif task.classes != first.classes:
        fault = (
            f"classes={task.classes}, but task {first.name!r} has classes={first.classes}. Number the classes alike "
            "in all tasks."
        )
    elif task.classes and not loss.classes:
        fault = (
            f"{task.classes} classes, but {name} takes numbers: choose loss={margin_losses} or, with algorithm=fedu, "
            "fedavg or one of its relatives, cross_entropy. If y holds numbers to predict, set dataset.kind=regression."
        )
    elif loss.classes and not task.classes:
        fault = f"numbers to predict, but {name} needs classes: choose loss=squared, or give integers as classes."
    elif wrong:
        fault = (
            f"the label {min(wrong):g}, but {name} takes only {loss.labels}: choose loss=squared "
            "for numbers to predict; for classes, give integers or, in tables, set dataset.kind=classification."
        )
    elif task.class_weight and loss.measure == "mean squared error":
        fault = f"class_weight={task.class_weight}, but {name} predicts numbers: set dataset.class_weight=null."
    else:
        return
    raise DataError(f"Task {task.name!r} has {fault}")
