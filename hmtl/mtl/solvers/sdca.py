"""Stochastic dual coordinate ascent (SDCA): local passes over the users' duals, in compiled code or in torch.

K users, N rows of all users, one user after the other, d features. User k, with n rows, maximizes over a′, w_k fixed,
    −Σ_j s_j ℓ*(−a′_j) − w_k·Δv_k − ½ c_k ‖Δv_k‖²,    Δv_k = Σ_j s_j (a′_j − a_j) x_kj,
where s_j are the weights of the user's rows, and the curvature c_k bounds the effect of what the other users change
meanwhile.

A pass keeps a local model. A visit costs d multiplications, and d more if the dual changes; d counts only the non-zeros
of the row if rows are sparse.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor

from hmtl.data.sparse import Features, stored
from hmtl.errors import ConfigError
from hmtl.io.arrays import Floats, Ints
from hmtl.io.compiled import jit
from hmtl.mtl.losses import NEWTON_STEPS, Hinge, Logistic, Loss, SmoothHinge, Squared
from hmtl.mtl.problem import Rows, runs
from hmtl.mtl.solvers.base import LocalSolver, SomeIds
from hmtl.rng import generator

VISITS = 1 << 17  # of all users, whose rows are looked up at once in torch

MARGIN, SQUARED, LOGISTIC = range(3)
LOSS_KERNELS: dict[type[Loss], int] = {Hinge: MARGIN, SmoothHinge: MARGIN, Squared: SQUARED, Logistic: LOGISTIC}
"""Losses with a compiled step, by exact type: a subclass may redefine its step."""

# the compiler may reorder sums, so that it can vectorize them; NaN and infinity keep their meaning
FASTMATH_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}}


@dataclass(frozen=True, eq=False)
class DualSubproblem:
    """Where the users' dual ascent starts.

    Attributes:
        a: duals [N].
        W: models [K, d].
        curvature: c [K].
    """

    a: Tensor
    W: Tensor
    curvature: Tensor


DualSolver = LocalSolver[DualSubproblem, tuple[Tensor, Tensor]]
"""A solver of the users' dual subproblems: calling it returns a′ [N] and Δv [K, d]."""


class SDCA(DualSolver):
    """A solver that takes exact steps on one dual variable after another, in random order.

    On a CPU, the losses of this package run in compiled code. Any other loss or device runs in torch. The results agree
    up to rounding.

    Args:
        passes: number of passes over a user's rows per round, in a new order every round. A number below 1 visits that
            share of the rows, but at least one row. A user with more visits than rows repeats the order.

    Raises:
        ConfigError: passes is not in (0, 1e9].

    Ref: Shalev-Shwartz and Zhang 2013; Smith et al. 2017.
    """

    improves = "duals"
    needs = ("conjugate", "coordinate_step")

    def __init__(self, passes: float = 10.0) -> None:
        super().__init__()
        if not 0 < passes <= 1e9:
            raise ConfigError(
                f"passes={passes} is not in (0, 1e9]. Give the number of passes over the local rows per round."
            )
        self.passes = passes

    def describe(self) -> dict[str, float]:
        return {"passes": self.passes}

    def steps(self, counts: Sequence[int]) -> Tensor:
        return torch.tensor([max(1, math.floor(self.passes * n)) for n in counts], dtype=torch.int64)

    def draw(self, seed: int, round: int, users: SomeIds, counts: Sequence[int]) -> Tensor:
        """Return each user's rows [N] in the order of their visits; a user with more visits repeats them."""
        # SplitMix64: row j of user k is sorted by number k·2³² + j of the round's stream, for any set of users
        place = np.repeat(np.asarray(users, dtype=np.uint64) << np.uint64(32), counts)
        for _, rows, n in runs(counts):
            place[rows].reshape(-1, n)[:] |= np.arange(n, dtype=np.uint64)
        with np.errstate(over="ignore"):
            z = generator(seed, "order", round).integers(2**64, dtype=np.uint64) + place * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
        order = np.empty(len(z), dtype=np.int64)
        for _, rows, n in runs(counts):
            order[rows] = z[rows].reshape(-1, n).argsort(axis=1).ravel()
        return torch.from_numpy(order)

    def forward(
        self, loss: Loss, rows: Rows, subproblem: DualSubproblem, order: Tensor, budgets: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not applies(loss, rows.X):
            return torch_pass(loss, rows, subproblem, order, budgets)
        return compiled_pass(loss, rows, subproblem, order, budgets)


def torch_pass(loss: Loss, rows: Rows, start: DualSubproblem, order: Tensor, budgets: Tensor) -> tuple[Tensor, Tensor]:
    """Run `SDCA` on any device, for any loss with a coordinate step; all users step at the same time."""
    X: Any = rows.X
    a, device = start.a.clone(), rows.y.device
    order, budgets = order.to(device), budgets.to(device)
    Z = start.W.clone()  # W + c Δv: the local models
    x, product = torch.empty_like(Z), torch.empty_like(Z)

    def visits(first: int, last: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the rows of these visits, what a step needs of them, and which users work."""
        visit = torch.arange(first, last, device=device)[:, None]
        at = rows.starts + order[rows.starts + visit % rows.n]
        kappa = start.curvature * rows.s[at]
        facts = at, rows.y[at], kappa, kappa * rows.square_norms[at], visit < budgets
        yield from zip(*(each.unbind() for each in facts), strict=True)

    # a step spends its time on calls, not on arithmetic: hence few calls, into preallocated memory
    most, width = int(budgets.max()), max(1, VISITS // len(Z))
    steps = (step for first in range(0, most, width) for step in visits(first, min(first + width, most)))
    for at_t, y_t, kappa_t, q_t, working_t in steps:
        if issparse(X):
            X[at_t.numpy()].toarray(out=x.numpy())  # one row of each user
        else:
            torch.index_select(X, 0, at_t, out=x)
        prediction = torch.mul(x, Z, out=product).sum(1)
        old = a.index_select(0, at_t)
        new = torch.where(working_t, loss.coordinate_step(old, prediction, y_t, q_t), old)
        a.index_copy_(0, at_t, new)
        Z.addcmul_(x, (kappa_t * (new - old))[:, None])
    return a, (Z - start.W) / start.curvature[:, None]


def applies(loss: Loss, X: Features) -> bool:
    """Return whether there is a compiled pass for this loss and these rows."""
    numbers = stored(X)
    return type(loss) in LOSS_KERNELS and numbers.device.type == "cpu" and numbers.dtype == torch.float64


class Arrays(NamedTuple):
    """The arrays that a compiled pass reads, and those that it writes: the duals `a`, and `dV` for Δv.

    The names are those of `Rows` and `DualSubproblem`. The features are passed beside them: X [N, d]; or the data,
    columns and starts of sparse rows.
    """

    y: Floats
    square_norms: Floats
    s: Floats
    counts: Ints
    starts: Ints
    a: Floats
    dV: Floats
    W: Floats
    curvature: Floats
    order: Ints
    budgets: Ints


def compiled_pass(
    loss: Loss, rows: Rows, start: DualSubproblem, order: Tensor, budgets: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `SDCA` for a loss and rows for which `applies` is true."""
    kind, width = LOSS_KERNELS[type(loss)], loss.width if isinstance(loss, Hinge) else 0.0
    a, dV = start.a.clone(memory_format=torch.contiguous_format), start.W.new_zeros(start.W.shape)
    X: Any = rows.X
    of_rows = (rows.y, rows.square_norms, rows.s, rows.n, rows.starts)
    of_users = (a, dV, start.W, start.curvature, order, budgets)
    arrays = Arrays(*(tensor.contiguous().numpy() for tensor in (*of_rows, *of_users)))
    if issparse(X):
        _sparse_passes(kind, width, arrays, X.data, X.indices, X.indptr)
    else:
        _passes(kind, width, arrays, X.contiguous().numpy())
    return a, dV


@jit(**FASTMATH_OPTIONS)
def _own(users: Arrays, k: int) -> tuple[Floats, Floats, Floats, Floats, Ints]:
    """Return y, ‖x‖², s, a and the order of a user's rows, as views."""
    rows = slice(users.starts[k], users.starts[k] + users.counts[k])
    return users.y[rows], users.square_norms[rows], users.s[rows], users.a[rows], users.order[rows]


@jit(**FASTMATH_OPTIONS)
def _passes(kind: int, width: float, users: Arrays, rows: Floats) -> None:
    """Run the passes of all users."""
    for k in range(len(users.counts)):
        y, square_norms, s, a, order = _own(users, k)
        w, n, c = users.W[k], users.counts[k], users.curvature[k]
        X = rows[users.starts[k] : users.starts[k] + n]
        z = w.copy()  # w + c Δv
        for visit in range(users.budgets[k]):
            j = order[visit % n]
            x, old, prediction, kappa = X[j], a[j], 0.0, c * s[j]
            for i in range(len(z)):
                prediction += x[i] * z[i]
            new = _step(kind, width, y[j], old, prediction, kappa * square_norms[j])
            if new != old:
                a[j] = new
                step = kappa * (new - old)
                for i in range(len(z)):
                    z[i] += step * x[i]
        for i in range(len(z)):
            users.dV[k, i] = (z[i] - w[i]) / c


@jit(**FASTMATH_OPTIONS)
def _sparse_passes(kind: int, width: float, users: Arrays, data: Floats, columns: Ints, starts: Ints) -> None:
    """Run the passes of all users on sparse rows; a visit costs the non-zeros of its row."""
    for k in range(len(users.counts)):
        y, square_norms, s, a, order = _own(users, k)
        w, n, c = users.W[k], users.counts[k], users.curvature[k]
        z = w.copy()  # w + c Δv
        for visit in range(users.budgets[k]):
            j = order[visit % n]
            row = users.starts[k] + j
            x, at = data[starts[row] : starts[row + 1]], columns[starts[row] : starts[row + 1]]
            old, prediction, kappa = a[j], 0.0, c * s[j]
            for i in range(len(x)):
                prediction += x[i] * z[at[i]]
            new = _step(kind, width, y[j], old, prediction, kappa * square_norms[j])
            if new != old:
                a[j] = new
                step = kappa * (new - old)
                for i in range(len(x)):
                    z[at[i]] += step * x[i]
        for i in range(len(z)):
            users.dV[k, i] = (z[i] - w[i]) / c


@jit(**FASTMATH_OPTIONS)
def _step(kind: int, width: float, y: float, old: float, prediction: float, q: float) -> float:
    """Return `Loss.coordinate_step` for one row."""
    if kind == MARGIN:
        b = y * old
        # q = width = 0 (a row of zeros) gives 1/0 = inf, which the next line turns into b = 1, the right value
        b += (1 - y * prediction - width * b) / (q + width)
        return y * min(max(b, 0.0), 1.0)
    if kind == SQUARED:
        return old + (y - prediction - old) / (1 + q)
    return y * _logistic(y * old, y * prediction, q)


@jit(**FASTMATH_OPTIONS)
def _logistic(b: float, m: float, q: float) -> float:
    """Return the step of b = y·a at the margin m; `Logistic.coordinate_step` explains it."""
    flipped = m + q * (0.5 - b) < 0
    if flipped:
        b, m = 1 - b, -m
    c = m - q * b
    L = math.log(q / 2) - c if q > 0 else -math.inf
    t = max(c + (L - math.log(L) if L > 1 else 0.0), 0.0)
    for _ in range(NEWTON_STEPS):
        b = 1 / (1 + math.exp(t))
        t = max(t - (t - c - q * b) / (1 + q * b * (1 - b)), 0.0)
    return 1 / (1 + math.exp(-t if flipped else t))
