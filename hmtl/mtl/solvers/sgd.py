"""Stochastic gradient descent on the users' networks, many users side by side.

K users, N rows of all users, d features, m parameters; T steps on minibatches of at most B rows. User k, with n_k rows,
takes
    w ← w − μ_t · n_k · (mean over the minibatch of s_kj ∇ℓ),    μ_t = μ/(1 + decay·t) in round t.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.losses import Loss
from hmtl.mtl.networks.copies import copies, group_size
from hmtl.mtl.networks.flat import FlatModel, seeded
from hmtl.mtl.problem import Problem, Rows
from hmtl.mtl.solvers.networks import MinibatchSolver, NetworkSubproblem
from hmtl.mtl.torch_loss import TorchLoss

MAX_STEP = torch.finfo(torch.float32).max  # networks may be of this type
LOOKED_UP = 1 << 16  # rows of minibatches that are looked up at once


class LocalSGD(MinibatchSolver):
    """A solver that takes gradient steps on minibatches, for many users side by side.

    G users train side by side, see `group_size`. If networks draw random numbers, these are users k with the same
    k // G, and they draw together, from a stream of their own.

    Args:
        step: step size μ > 0.
        epochs: passes per round.
        batch: rows in a minibatch, B.
        decay: how fast the step size falls from round to round, ≥ 0; with 0 it stays constant.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(self, step: float = 0.03, epochs: int = 5, batch: int = 20, decay: float = 0.0) -> None:
        super().__init__(epochs, batch)
        if not 0 < step < MAX_STEP or not 0 <= decay < MAX_STEP:
            raise ConfigError(f"step={step}, decay={decay}: give finite numbers with step > 0 and decay ≥ 0.")
        self.step = step
        self.decay = decay

    def rate(self, round: int) -> float:
        """Return the step size μ_t of a round."""
        return self.step / (1 + self.decay * round)

    def check_network(self, model: FlatModel, problem: Problem) -> None:
        if isinstance(problem.loss, TorchLoss):
            raise ConfigError(f"solver=sgd cannot use {problem.loss.name}, a loss of batches. Choose solver=torch.")
        problem.stack(model.start.dtype)
        if problem.tasks:
            X = problem.rows_in(model.start.dtype).X
            model.check_training(X[torch.tensor([0, min(1, len(X) - 1)])])
        else:
            model.check_training(problem.example())

    def check_correction(self) -> None:
        pass

    def check_proximal(self, name: str, weight: float) -> None:
        """Raise ConfigError if steps on a proximal term of this weight, which the setting `name` has, diverge."""
        if not 0 <= weight < 2 / self.step:
            raise ConfigError(
                f"{name}={weight:g} is not in [0, 2/step), here below {2 / self.step:g}: the models would diverge. "
                f"Lower {name} or solver.step."
            )

    def forward(self, loss: Loss, rows: Rows, subproblem: NetworkSubproblem, order: Tensor, budgets: Tensor) -> Tensor:
        model, rate, correction = subproblem.model, self.rate(subproblem.round), subproblem.correction
        lam, anchor = subproblem.anchor or (0.0, None)
        moves = model.moving(subproblem.trained)
        device = subproblem.W.device
        K, B, d = len(budgets), order.shape[1], rows.X.shape[1]
        W = subproblem.W.clone(memory_format=torch.contiguous_format)
        usual = self.steps(rows.counts)
        order, budgets, starts = (each.to(device) for each in (order, budgets, usual.cumsum(0) - usual))

        def steps(users: slice) -> Iterator[tuple[Tensor, ...]]:
            """Yield, for each step, the minibatches' rows in X, y, weights, and which users are active."""
            most = int(budgets[users].max())
            width = max(1, LOOKED_UP // (B * (users.stop - users.start)))
            for t in range(0, most, width):
                step = torch.arange(t, min(t + width, most), device=device)
                active = (step < budgets[users, None])[..., None]
                own = order[(starts[users, None] + step).clamp_max(len(order) - 1)].where(active, -1)
                present, at = own >= 0, own.clamp_min(0) + rows.starts[users, None, None]
                scale = rows.s[at] * rows.n[users, None, None].to(W)
                weights = present * (scale / present.sum(2, keepdim=True).clamp_min(1))
                yield from zip(*(each.unbind(1) for each in (at, rows.y[at], weights, active.to(W))), strict=True)

        model.to_train(model.module)
        G = group_size(model, B * d, W)
        numbers = subproblem.users if model.random else np.arange(K)  # only draws depend on who trains side by side
        groups, firsts = np.unique(numbers // G, return_index=True)
        for group, first, end in zip(groups.tolist(), firsts.tolist(), [*firsts.tolist()[1:], K], strict=True):
            users = slice(first, end)
            networks = copies(model, W[users], subproblem.trained)
            # `seeded` lets trainings in other threads wait
            with seeded(*subproblem.stream, group, device=device) if model.random else nullcontext():
                for at_t, y_t, weights_t, active_t in steps(users):
                    x = rows.X.index_select(0, at_t.flatten()).view(*at_t.shape, d)
                    distance = None if anchor is None else active_t * moves * (W[users] - anchor[users])
                    networks.step(x, y_t, weights_t, loss, rate)
                    if distance is not None:
                        W[users].sub_(distance, alpha=rate * lam)
                    if correction is not None:
                        W[users].sub_(active_t * moves * correction[users], alpha=rate)
        return W
