"""The local passes of SDCA compiled for CPUs (numba), users spread over threads; in torch, see `solvers.batched_pass`.

K users, n rows each (padded), d features, S rows to visit. Each user's numbers depend on nothing but its own, so they
are the same, to the last bit, for any number of threads.

There are two ways. One keeps a local model: a visit costs d multiplications, and d more where the dual changes. The
other keeps the predictions of all rows, by the Gram matrix XXᵀ: a visit costs nothing, and n where the dual changes,
which after a few passes is seldom. It is for several passes, where that matrix is not too large.
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
from hmtl.mtl.rows import Rows

MARGIN, SQUARED, LOGISTIC = range(3)
KINDS: dict[type[Loss], int] = {Hinge: MARGIN, SmoothHinge: MARGIN, Squared: SQUARED, Logistic: LOGISTIC}
"""Losses with a compiled step. By exact type: a subclass may have redefined its step."""

WORTH_A_THREAD = 500_000  # multiplications; starting a thread costs as much as a tenth of them

Function = TypeVar("Function", bound=Callable[..., Any])
Floats = NDArray[np.float64]
# sums may be reordered, once and for all when compiling, so that they become vector instructions; nan and inf count
SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}


def jit(function: Function) -> Function:
    """The function, compiled when it is first called, and kept for other runs where a folder can be written to."""
    compiled: Function
    try:
        compiled = njit(cache=True, **SETTINGS)(function)
    except RuntimeError:  # neither beside this file nor in the home
        compiled = njit(**SETTINGS)(function)
    return compiled


def applies(loss: Loss, X: Tensor) -> bool:
    """Is there a compiled pass for this loss and these rows?"""
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
    """What `SDCA.solve` promises, for a loss that `applies`; `by_gram` chooses the way."""
    kind, width = KINDS[type(loss)], loss.width if isinstance(loss, SmoothHinge) else 0.0
    given = rows.X, rows.y, rows.square_norms, a, W, curvature, rows.s, order, budgets
    X, y, square_norms, old, models, c, s, *work = (tensor.contiguous().numpy() for tensor in given)
    new, out = old.copy(), models.copy()
    numbers = y, square_norms, new, out, c * s, np.array(rows.counts), *work
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
        shares = np.linspace(0, K, min(4 * threads, K) + 1).astype(int).tolist()  # more than threads: users are unequal
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(passes, shares[:-1], shares[1:]))
    return torch.from_numpy(new), torch.from_numpy(out if by_gram else (out - models) / c[:, None])


@jit
def _step(kind: int, width: float, y: float, old: float, prediction: float, q: float) -> float:
    """`Loss.coordinate_step`."""
    if kind == MARGIN:
        b = y * old
        # q = width = 0, a row of zeros, divides 1 by 0, and b = 1 is right
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
    """The passes of users first..last−1: changes a [K, n] and Z = W + κu [K, d] in place."""
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
    """The same by G = XXᵀ [K, n, n]: changes a [K, n] in place, and puts Δv in the place of W [K, d]."""
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
    """As `Logistic.coordinate_step`, where it is explained, of b = y·a at the margin m."""
    turned = m + q * (0.5 - b) < 0
    if turned:
        b, m = 1 - b, -m
    c = m - q * b
    L = math.log(q / 2) - c if q > 0 else -math.inf
    t = max(c + (L - math.log(L) if L > 1 else 0.0), 0.0)
    for _ in range(NEWTON_STEPS):
        b = 1 / (1 + math.exp(t))
        t = max(t - (t - c - q * b) / (1 + q * b * (1 - b)), 0.0)
    return 1 / (1 + math.exp(-t if turned else t))
