"""Local stochastic gradient descent, all users side by side.

K users, n rows each (padded), d features, m parameters; T steps on minibatches of up to B rows. User k takes
    w ← w − μ_t · s_k n_k · (mean over the minibatch of ∇ℓ),    μ_t = μ/(1 + decay·t) in round t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hmtl.errors import ConfigError
from hmtl.mtl.losses import Loss
from hmtl.mtl.networks.copies import Copies, apart, by_place, copies, group_size, groups
from hmtl.mtl.networks.models import FlatModel, reseed, seeded
from hmtl.mtl.problem import Rows
from hmtl.rng import generator

LARGEST = torch.finfo(torch.float32).max  # networks may be of this type


@dataclass(frozen=True)
class LocalSGD:
    """Passes over a user's rows in random order, a minibatch at a time; the last one of a pass may be smaller.

    Args:
        step: μ > 0.
        epochs: passes per round.
        batch: B, rows in a minibatch.
        decay: ≥ 0; 0 keeps the step as it is.

    Raises:
        ConfigError: a number is out of its range.
    """

    step: float = 0.03
    epochs: int = 5
    batch: int = 20
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.step < LARGEST or not 0 <= self.decay < LARGEST:
            raise ConfigError(f"step={self.step}, decay={self.decay}: give finite numbers, step > 0 and decay ≥ 0.")
        if self.epochs < 1 or self.batch < 1:
            raise ConfigError(f"epochs={self.epochs}, batch={self.batch}: each is at least 1.")

    def rate(self, round: int) -> float:
        """μ_t, the step size in a round."""
        return self.step / (1 + self.decay * round)

    def steps(self, counts: Sequence[int]) -> Tensor:
        """The usual number of steps of users with so many rows, [K]."""
        return torch.tensor([self.epochs * -(-n // self.batch) for n in counts])

    def draw(
        self, seed: int, round: int, users: Sequence[int] | NDArray[np.int64], counts: Sequence[int], most: int = 0
    ) -> Tensor:
        """Minibatches [K, T, B] as numbers of rows, −1 where there is none; `most` is the longest count elsewhere."""
        B = min(self.batch, max(most, *counts))
        order = np.full((len(users), int(self.steps(counts).max()), B), -1)
        for into, user, n in zip(order, map(int, users), counts, strict=True):
            passes = np.full((self.epochs, -(-n // self.batch) * B), -1)
            rows = np.broadcast_to(np.arange(n), (self.epochs, n))
            passes[:, :n] = generator(seed, "minibatches", round, user).permuted(rows, axis=1)
            into[: passes.size // B] = passes.reshape(-1, B)
        return torch.from_numpy(order)

    def check_pull(self, name: str, pull: float) -> None:
        """Refuse a weight, called `name`, under which the steps of `solve` leap ever further over the anchor.

        Raises:
            ConfigError: it is not in [0, 2/step).
        """
        if not 0 <= pull < 2 / self.step:
            raise ConfigError(
                f"{name}={pull:g} is not in [0, 2/step), here below {2 / self.step:g}: the models would diverge. "
                f"Lower {name} or solver.step."
            )

    def solve(
        self,
        model: FlatModel,
        loss: Loss,
        rows: Rows,
        W: Tensor,
        order: Tensor,
        budgets: Tensor,
        round: int,
        pull: float = 0.0,
        anchor: Tensor | None = None,
        out: Tensor | None = None,
        group: int = 0,
        numbers: NDArray[np.int64] | None = None,
        everybody: int = 0,
        seed: int = 0,
        draws: Sequence[int | str] = (),
    ) -> Tensor:
        """Models [K, m] after the steps of a round.

        Args:
            rows: in the type of W.
            W: models [K, m] before, left as they are.
            order: as from `draw`.
            budgets: [K], how many of the steps each user takes, 0 (absent) to T.
            pull, anchor: with them, users minimise s_k Σ_j ℓ + (pull/2)‖w − anchor_k‖², anchor [K, m].
            out: where to put the models; None: in a new tensor.
            group: how many users learn side by side; 0: as many as is fastest.
            numbers, everybody: the users' numbers [K], ascending, among so many; None: they are 0..K−1 of K.
            seed, draws: of what modules draw (dropout), and its name.
        """
        K, n, d = rows.X.shape
        B, new = order.shape[2], torch.empty_like(W, memory_format=torch.contiguous_format) if out is None else out
        order, budgets = order.to(W.device), budgets.to(W.device)
        there, active = order >= 0, torch.arange(order.shape[1], device=W.device) < budgets[:, None]
        scale = (rows.s * torch.tensor(rows.counts).to(W))[:, None, None]
        weights = (there & active[..., None]) * (scale / there.sum(2, keepdim=True).clamp_min(1))
        at = order.clamp_min(0) + n * torch.arange(K, device=W.device)[:, None, None]  # of all users' rows, end to end
        X, y, at = rows.X.reshape(K * n, d), rows.y.flatten()[at], pad(at, (0, apart(B, d, W) - B))
        model.module.train()
        placed = by_place(model, W)
        if numbers is None or not placed:
            numbers, everybody = np.arange(K), K
        made: dict[int, Copies] = {}
        work = at, y, weights, active.to(W)
        with seeded(seed, *draws, device=W.device):
            for each in groups(numbers, everybody, group or group_size(model, B * d, W)):
                users, G, T = each.users, len(each.users), int(budgets[each.users].max())
                if G not in made:
                    made[G] = copies(model, G, W)
                if placed:
                    reseed(seed, *draws, each.number)
                networks, x = made[G], X.new_empty(G, at.shape[2], d)
                networks.load(W[users])
                steps = (part[users, :T].transpose(0, 1).contiguous() for part in work)
                for at_t, y_t, weights_t, active_t in zip(*steps, strict=True):
                    torch.index_select(X, 0, at_t.flatten(), out=x.view(-1, d))
                    away = networks.away(anchor[users], active_t) if pull and anchor is not None else {}
                    networks.step(x[:, :B], y_t, weights_t, loss, self.rate(round))
                    for name, distance in away.items():
                        networks.parameters[name].sub_(distance, alpha=self.rate(round) * pull)
                networks.store(new[each.here], each.places)
        return new
