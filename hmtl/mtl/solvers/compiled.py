"""SDCA's local passes compiled for CPUs by numba, with the users spread over threads.

K users, n rows each (padded), d features, S rows to visit. The result of a user depends on its own numbers only, so it
has the same bits for any number of threads.

A pass by model keeps a local model: a visit costs d multiplications, and d more if the dual changes. A pass by Gram
matrix keeps the predictions of all rows: a visit costs n multiplications if the dual changes, which becomes rare after
a few passes, and nothing otherwise. It suits several passes, if the Gram matrices XXᵀ fit in memory.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from hmtl.mtl.losses import NEWTON_STEPS, Hinge, Logistic, Loss, SmoothHinge, Squared
from hmtl.mtl.training_rows import Rows

MARGIN, SQUARED, LOGISTIC = range(3)
KINDS: dict[type[Loss], int] = {Hinge: MARGIN, SmoothHinge: MARGIN, Squared: SQUARED, Logistic: LOGISTIC}
"""Losses with a compiled step, by exact type: a subclass may redefine its step."""

WORTH_A_THREAD = 500_000  # multiplications; starting a thread takes the time of a tenth of them

Function = TypeVar("Function", bound=Callable[..., Any])
Floats = NDArray[np.float64]
# the compiler may reorder sums, which it then vectorises; NaN and infinity keep their meaning
SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}


def jit(function: Function) -> Function:
    """Return the function compiled at its first call, and cached for other runs if there is a writable folder."""
    compiled: Function
    try:
        compiled = njit(cache=True, **SETTINGS)(function)
    except RuntimeError:  # neither the package's folder nor the home is writable
        compiled = njit(**SETTINGS)(function)
    return compiled


def applies(loss: Loss, X: Tensor) -> bool:
    """Return whether there is a compiled pass for this loss and these rows."""
    return type(loss) in KINDS and X.device.type == "cpu" and X.dtype == torch.float64


def compiled_pass(
    loss: Loss,
    rows: Rows,
    a: Tensor,
    W: Tensor,
    curvature: Tensor,
    order: Tensor,
    budgets: Tensor,
    by_gram: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run `SDCA.solve` by model or by Gram matrix, for a loss and rows for which `applies` is true."""
    kind, width = KINDS[type(loss)], loss.width if isinstance(loss, SmoothHinge) else 0.0
    tensors = rows.X, rows.y, rows.square_norms, a, W, curvature, rows.s, order, budgets
    X, y, square_norms, old, models, c, s, *visits = (tensor.contiguous().numpy() for tensor in tensors)
    new, out = old.copy(), models.copy()
    numbers = y, square_norms, new, out, c * s, np.array(rows.counts), *visits
    K, d = W.shape
    threads = max(1, min(torch.get_num_threads(), K, int(budgets.sum()) * d // WORTH_A_THREAD))
    gram = rows.gram().numpy() if by_gram else X

    def passes(first: int, last: int) -> None:
        if by_gram:
            _gram_passes(first, last, kind, width, X, gram, s, *numbers)
        else:
            _passes(first, last, kind, width, X, *numbers)

    if threads == 1:
        passes(0, K)
    else:
        shares = np.linspace(0, K, min(4 * threads, K) + 1).astype(int).tolist()  # many, as users are unequal
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(passes, shares[:-1], shares[1:]))
    return torch.from_numpy(new), torch.from_numpy(out if by_gram else (out - models) / c[:, None])


@jit
def _step(kind: int, width: float, y: float, old: float, prediction: float, q: float) -> float:
    """Return `Loss.coordinate_step` for one row."""
    if kind == MARGIN:
        b = y * old
        # q = width = 0 (a row of zeros) gives 1/0 = inf, and the right b = 1 below
        b += (1 - y * prediction - width * b) / (q + width)
        return y * min(max(b, 0.0), 1.0)
    if kind == SQUARED:
        return old + (y - prediction - old) / (1 + q)
    return y * _logistic(y * old, y * prediction, q)


@jit
def _passes(
    first: int,
    last: int,
    kind: int,
    width: float,
    X: Floats,
    y: Floats,
    square_norms: Floats,
    a: Floats,
    Z: Floats,
    kappa: Floats,
    counts: NDArray[np.int64],
    order: NDArray[np.int64],
    budgets: NDArray[np.int64],
) -> None:
    """Run the passes of users first..last−1 by model: change a [K, n] and Z = W + κu [K, d] in place."""
    for k in range(first, last):
        z, place = Z[k], 0
        for _ in range(budgets[k]):
            j = order[k, place]
            place += 1
            if place == counts[k]:
                place = 0
            x, old = X[k, j], a[k, j]
            prediction = 0.0
            for i in range(len(z)):
                prediction += x[i] * z[i]
            new = _step(kind, width, y[k, j], old, prediction, kappa[k] * square_norms[k, j])
            if new != old:
                a[k, j] = new
                step = kappa[k] * (new - old)
                for i in range(len(z)):
                    z[i] += step * x[i]


@jit
def _gram_passes(
    first: int,
    last: int,
    kind: int,
    width: float,
    X: Floats,
    G: Floats,
    s: Floats,
    y: Floats,
    square_norms: Floats,
    a: Floats,
    W: Floats,
    kappa: Floats,
    counts: NDArray[np.int64],
    order: NDArray[np.int64],
    budgets: NDArray[np.int64],
) -> None:
    """Run the passes by G = XXᵀ [K, n, n]: change a [K, n] in place, and overwrite W [K, d] by Δv."""
    for k in range(first, last):
        n, w, place = counts[k], W[k], 0
        predictions, before = np.zeros(n), a[k, :n].copy()
        for j in range(n):
            x, prediction = X[k, j], 0.0
            for i in range(len(w)):
                prediction += x[i] * w[i]
            predictions[j] = prediction
        for _ in range(budgets[k]):
            j = order[k, place]
            place += 1
            if place == n:
                place = 0
            old = a[k, j]
            new = _step(kind, width, y[k, j], old, predictions[j], kappa[k] * square_norms[k, j])
            if new != old:
                a[k, j] = new
                step, g = kappa[k] * (new - old), G[k, j]
                for i in range(n):
                    predictions[i] += step * g[i]
        w[:] = 0
        for j in range(n):
            change = s[k] * (a[k, j] - before[j])
            if change != 0:
                x = X[k, j]
                for i in range(len(w)):
                    w[i] += change * x[i]


@jit
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
