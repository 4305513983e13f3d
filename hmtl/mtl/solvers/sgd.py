"""Stochastic gradient descent on the users' networks, many users side by side.

K users, n rows each (padded), d features, m parameters; T steps on minibatches of at most B rows. User k takes
    w ← w − μ_t · n_k · (mean over the minibatch of s_kj ∇ℓ),    μ_t = μ/(1 + decay·t) in round t.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.losses import Loss
from hmtl.mtl.networks.copies import copies, group_size
from hmtl.mtl.networks.flat import FlatModel, seeded
from hmtl.mtl.problem import Rows
from hmtl.mtl.solvers.base import Ids, LocalSolver
from hmtl.rng import generator

MAX_STEP = torch.finfo(torch.float32).max  # networks may be of this type


@dataclass(frozen=True, eq=False)
class Proximal:
    """The term (weight/2)‖w − anchor_k‖² in the objective of each user k, with anchors [K, m]."""

    weight: float
    anchor: Tensor


@dataclass(frozen=True, eq=False)
class NetworkSubproblem:
    """Where the users' gradient descent starts.

    Attributes:
        model: the network.
        W: parameters [K, m].
        users: numbers of these users in the network [K].
        rate: step size μ_t.
        stream: seed and name of the random numbers that modules draw (dropout). Users k with the same k // G, where G
            is `group_size`, train side by side and draw together, from a stream of their own.
        proximal: the term that holds the models near an anchor, if any.
        correction: numbers added to the gradient of each step [K, m], if any.
        trained: names of the parameters that steps change; None: all.
    """

    model: FlatModel
    W: Tensor
    users: NDArray[np.int64]
    rate: float
    stream: tuple[int, *tuple[str | int, ...]]
    proximal: Proximal | None = None
    correction: Tensor | None = None
    trained: frozenset[str] | None = None


class LocalSGD(LocalSolver[NetworkSubproblem, Tensor]):
    """A solver that passes over a user's rows in random order, by minibatches; `solve` returns the new models [K, m].

    The last minibatch of a pass may be smaller.

    Args:
        step: step size μ > 0.
        epochs: passes per round.
        batch: rows in a minibatch, B.
        decay: how fast the step size falls from round to round, ≥ 0; with 0 it stays constant.

    Raises:
        ConfigError: a number is out of its range.
    """

    improves = "networks"

    def __init__(self, step: float = 0.03, epochs: int = 5, batch: int = 20, decay: float = 0.0) -> None:
        super().__init__()
        if not 0 < step < MAX_STEP or not 0 <= decay < MAX_STEP:
            raise ConfigError(f"step={step}, decay={decay}: give finite numbers with step > 0 and decay ≥ 0.")
        if epochs < 1 or batch < 1:
            raise ConfigError(f"epochs={epochs}, batch={batch}: each has to be at least 1.")
        self.step = step
        self.epochs = epochs
        self.batch = batch
        self.decay = decay

    def rate(self, round: int) -> float:
        """Return the step size μ_t of a round."""
        return self.step / (1 + self.decay * round)

    def steps(self, counts: Sequence[int]) -> Tensor:
        return torch.tensor([self.epochs * math.ceil(n / self.batch) for n in counts])

    def draw(self, seed: int, round: int, users: Ids, counts: Sequence[int]) -> Tensor:
        """Return minibatches [K, T, B] of row numbers, filled up with −1."""
        B = min(self.batch, max(counts))
        order = np.full((len(users), int(self.steps(counts).max()), B), -1)
        for minibatches, user, n in zip(order, map(int, users), counts, strict=True):
            passes = np.full((self.epochs, -(-n // self.batch) * B), -1)
            rows = np.broadcast_to(np.arange(n), (self.epochs, n))
            passes[:, :n] = generator(seed, "minibatches", round, user).permuted(rows, axis=1)
            minibatches[: passes.size // B] = passes.reshape(-1, B)
        return torch.from_numpy(order)

    def check_proximal(self, name: str, weight: float) -> None:
        """Raise ConfigError if steps on a proximal term diverge, given its weight, which the setting `name` has."""
        if not 0 <= weight < 2 / self.step:
            raise ConfigError(
                f"{name}={weight:g} is not in [0, 2/step), here below {2 / self.step:g}: the models would diverge. "
                f"Lower {name} or solver.step."
            )

    def solve(self, loss: Loss, rows: Rows, subproblem: NetworkSubproblem, order: Tensor, budgets: Tensor) -> Tensor:
        model, rate, proximal = subproblem.model, subproblem.rate, subproblem.proximal
        correction = subproblem.correction
        device = subproblem.W.device
        K, n, d = rows.X.shape
        W = subproblem.W.clone(memory_format=torch.contiguous_format)
        order, budgets = order.to(device), budgets.to(device)
        present, active = order >= 0, torch.arange(order.shape[1], device=device) < budgets[:, None]
        at = order.clamp_min(0) + n * torch.arange(K, device=device)[:, None, None]  # indices into all users' rows
        scale = rows.s.flatten()[at] * torch.tensor(rows.counts).to(W)[:, None, None]
        weights = (present & active[..., None]) * (scale / present.sum(2, keepdim=True).clamp_min(1))
        X, y, active = rows.X.reshape(K * n, d), rows.y.flatten()[at], active.to(W)[..., None]
        model.module.train()
        G = group_size(model, order.shape[2] * d, W)
        groups, firsts = np.unique(subproblem.users // G, return_index=True)
        for group, first, end in zip(groups.tolist(), firsts, [*firsts[1:], K], strict=True):
            users = slice(first, end)
            networks = copies(model, W[users], subproblem.trained)
            steps = (part[users, : int(budgets[users].max())].unbind(1) for part in (at, y, weights, active))
            # `seeded` lets trainings in other threads wait
            with seeded(*subproblem.stream, group, device=device) if model.random else nullcontext():
                for at_t, y_t, weights_t, active_t in zip(*steps, strict=True):
                    x = X.index_select(0, at_t.flatten()).view(*at_t.shape, d)
                    distance = active_t * (W[users] - proximal.anchor[users]) if proximal else None
                    networks.step(x, y_t, weights_t, loss, rate)
                    if proximal is not None and distance is not None:
                        W[users].sub_(distance, alpha=rate * proximal.weight)
                    if correction is not None:
                        W[users].sub_(active_t * correction[users], alpha=rate)
        return W
