"""The local pass of SDCA compiled for CPUs (numba), users spread over threads; in torch, see `solvers.batched_pass`.

K users, n rows each (padded), d features, S rows to visit. Each user's numbers depend on nothing but its own, so they
are the same, to the last bit, for any number of threads.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from hmtl.mtl.losses import NEWTON_STEPS, Hinge, Logistic, Loss, SmoothHinge, Squared
from hmtl.mtl.problem import Rows

MARGIN, SQUARED, LOGISTIC = range(3)
KINDS: dict[type[Loss], int] = {Hinge: MARGIN, SmoothHinge: MARGIN, Squared: SQUARED, Logistic: LOGISTIC}
"""Losses with a compiled step. By exact type: a subclass may have redefined its step."""

WORTH_A_THREAD = 500_000  # multiplications; starting a thread costs as much as a tenth of them

Floats = NDArray[np.float64]
# sums may be reordered, once and for all when compiling, so that they become vector instructions; nan and inf count
jit = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


def applies(loss: Loss, X: Tensor) -> bool:
    """Is there a compiled pass for this loss and these rows?"""
    return type(loss) in KINDS and X.device.type == "cpu" and X.dtype == torch.float64


def compiled_pass(
    loss: Loss, rows: Rows, a: Tensor, W: Tensor, curvature: Tensor, order: Tensor, budgets: Tensor
) -> tuple[Tensor, Tensor]:
    """What `SDCA.solve` promises, for a loss that `applies`."""
    kind, width = KINDS[type(loss)], loss.width if isinstance(loss, SmoothHinge) else 0.0
    given = rows.X, rows.y, rows.square_norms, a, W, curvature, rows.s, order, budgets
    X, y, square_norms, old, models, c, s, *work = (tensor.contiguous().numpy() for tensor in given)
    new, Z = old.copy(), models.copy()
    numbers = X, y, square_norms, new, Z, c * s, np.array(rows.counts), *work
    K, d = W.shape
    threads = max(1, min(torch.get_num_threads(), K, int(budgets.sum()) * d // WORTH_A_THREAD))
    if threads == 1:
        _passes(0, K, kind, width, *numbers)
    else:
        shares = np.linspace(0, K, min(4 * threads, K) + 1).astype(int).tolist()  # more than threads: users are unequal
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda first, last: _passes(first, last, kind, width, *numbers), shares[:-1], shares[1:]))
    return torch.from_numpy(new), torch.from_numpy((Z - models) / c[:, None])


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
            x, y_j, old = X[k, j], y[k, j], a[k, j]
            prediction = 0.0
            for i in range(len(z)):
                prediction += x[i] * z[i]
            q = kappa[k] * square_norms[k, j]
            if kind == MARGIN:
                b = y_j * old
                # q = width = 0, a row of zeros, divides 1 by 0, and b = 1 is right
                b += (1 - y_j * prediction - width * b) / (q + width)
                new = y_j * min(max(b, 0.0), 1.0)
            elif kind == SQUARED:
                new = old + (y_j - prediction - old) / (1 + q)
            else:
                new = y_j * _logistic(y_j * old, y_j * prediction, q)
            if new != old:
                a[k, j] = new
                step = kappa[k] * (new - old)
                for i in range(len(z)):
                    z[i] += step * x[i]


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
