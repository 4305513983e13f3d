"""Stochastic dual coordinate ascent (SDCA): local passes over the users' duals.

K users, n rows each (padded), d features, S rows in a user's order. User k maximises over a′, with w_k fixed,
    −s_k Σ_j ℓ*(−a′_j) − w_k·Δv_k − ½ c_k ‖Δv_k‖²,    Δv_k = s_k Σ_j (a′_j − a_j) x_kj,
where the curvature c_k bounds what the other users change meanwhile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.losses import Loss
from hmtl.mtl.solvers.base import Ids, LocalSolver
from hmtl.mtl.solvers.compiled import applies, compiled_pass
from hmtl.mtl.training_rows import Rows
from hmtl.rng import generator

MAX_PASSES = 1e9
MAX_GRAM = 4  # largest memory of the Gram matrices, relative to that of the rows


@dataclass(frozen=True, eq=False)
class DualSubproblem:
    """Where the users' dual ascent starts.

    Attributes:
        a: duals [K, n].
        W: models [K, d].
        curvature: c [K].
    """

    a: Tensor
    W: Tensor
    curvature: Tensor


DualSolver = LocalSolver[DualSubproblem, tuple[Tensor, Tensor]]
"""A solver of the users' dual subproblems: `solve` returns a′ [K, n] and Δv [K, d]."""


class SDCA(DualSolver):
    """Exact steps on one dual variable after another, in random order.

    On a CPU, the losses of this package run in compiled code; several passes use the Gram matrix of the rows if it is
    not much larger than the rows. Any other loss or device runs in torch. The results agree up to rounding.

    Args:
        passes: number of passes over a user's rows per round, each round in a new order. A fraction visits that share
            of the rows, and at least one. A user with more visits than rows repeats the order.

    Raises:
        ConfigError: passes is not in (0, 1e9].

    Ref: Shalev-Shwartz and Zhang 2013; Smith et al. 2017.
    """

    improves = "duals"
    needs = ("conjugate", "coordinate_step")

    def __init__(self, passes: float = 10.0) -> None:
        super().__init__()
        if not 0 < passes <= MAX_PASSES:
            raise ConfigError(
                f"passes={passes} is not in (0, {MAX_PASSES:.0e}]. Give the number of passes over the local rows "
                "per round."
            )
        self.passes = passes

    def describe(self) -> dict[str, float]:
        return {"passes": self.passes}

    def steps(self, counts: Sequence[int]) -> Tensor:
        return torch.tensor([max(1, math.floor(self.passes * n)) for n in counts], dtype=torch.int64)

    def draw(self, seed: int, round: int, users: Ids, counts: Sequence[int]) -> Tensor:
        """Return the rows [K, S] in the order of their visits."""
        most = max(counts)
        # SplitMix64: the numbers k·2³² + j of the round's stream order the rows of user k, for any set of users
        place = np.asarray(users, dtype=np.uint64)[:, None] << np.uint64(32) | np.arange(most, dtype=np.uint64)
        with np.errstate(over="ignore"):
            z = generator(seed, "order", round).integers(2**64, dtype=np.uint64) + place * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
        z[np.arange(most) >= np.asarray(counts)[:, None]] = 2**64 - 1  # the padding comes last
        return torch.from_numpy(z.argsort(axis=1)[:, : int(self.steps(counts).max())])

    def solve(
        self, loss: Loss, rows: Rows, subproblem: DualSubproblem, order: Tensor, budgets: Tensor
    ) -> tuple[Tensor, Tensor]:
        start = subproblem.a, subproblem.W, subproblem.curvature
        if not applies(loss, rows.X):
            return torch_pass(loss, rows, *start, order, budgets)
        by_gram = self.passes >= 2 and rows.X.shape[1] <= MAX_GRAM * rows.X.shape[2]
        return compiled_pass(loss, rows, *start, order, budgets, by_gram)


def torch_pass(
    loss: Loss, rows: Rows, a: Tensor, W: Tensor, curvature: Tensor, order: Tensor, budgets: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `SDCA.solve` on any device and for any loss with a coordinate step; all users step together."""
    K, n, d = rows.X.shape
    X, a = rows.X.reshape(K * n, d), a.flatten().clone()
    order, budgets = order.to(X.device), budgets.to(X.device)
    kappa = curvature * rows.s
    visit = torch.arange(int(budgets.max()), device=X.device)[:, None]
    place = (visit % torch.tensor(rows.counts, device=X.device)).clamp_max(order.shape[1] - 1)
    at = order.gather(1, place.T).T + n * torch.arange(K, device=X.device)  # indices into the rows of all users
    working = visit < budgets
    y, q = rows.y.flatten()[at], kappa * rows.square_norms.flatten()[at]
    Z = W.clone()  # W + κu: the local models
    x, product = torch.empty_like(W), torch.empty_like(W)
    # the time of a step is that of its calls, not of the arithmetic: few calls, into preallocated memory
    for at_t, y_t, q_t, working_t in zip(at.unbind(), y.unbind(), q.unbind(), working.unbind(), strict=True):
        torch.index_select(X, 0, at_t, out=x)
        prediction = torch.mul(x, Z, out=product).sum(1)
        old = a.index_select(0, at_t)
        new = torch.where(working_t, loss.coordinate_step(old, prediction, y_t, q_t), old)
        a.index_copy_(0, at_t, new)
        Z.addcmul_(x, (kappa * (new - old))[:, None])
    return a.view(K, n), (Z - W) / curvature[:, None]
