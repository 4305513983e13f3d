"""Learning on duals where users need of each other no more than a few sums; each makes its own model of them.

K users, d features (C·d where there are C classes), q sums for each of them; int64 rows. User k sends what U_kᵀ v_k has
become minus what it was, both rounded to the grid, and r_k beside it where the learner is accelerated; all get one row,
s = Σ_l U_lᵀ v_l, with the bits of β.
"""

from typing import Any

import torch
from torch import Tensor

from hmtl.mtl.algorithms.base import NOBODY, Ids, with_rows
from hmtl.mtl.algorithms.dual import DualAggregator, DualUsers
from hmtl.mtl.regularizers import Regularizer
from hmtl.mtl.sums import Form, Grid


class SummingUsers(DualUsers):
    """User side: as `DualUsers`, and V [K, d], of which each user knows its own v_k. With q = 0 nothing travels.

    Args:
        form: of B, known to all.
        grid: of the sums.
        others: as in `DualUsers`.
    """

    state = (*DualUsers.state, "V")
    sums = True

    def __init__(self, *others: Any, form: Form, grid: Grid) -> None:
        super().__init__(*others)
        self.form, self.grid = form, grid
        self.numbers, self.V = form.q * self.problem.size, torch.zeros_like(self.W)

    @property
    def row_bits(self) -> tuple[int, int, int]:
        return 64 * self.problem.size, 64 * self.accelerated, 64 * self.accelerated

    def local_update(
        self, round: int, idle: Ids = NOBODY, order: Tensor | None = None, budgets: Tensor | None = None
    ) -> tuple[Ids, Tensor]:
        users, ivs = super().local_update(round, idle, order, budgets)
        new, old = (
            self.grid.rounded(self.form.terms(V, self._numbers(users))) for V in (self._moved(users), self.V[users])
        )
        r = [self.grid.fine(ivs[:, -1])] if self.accelerated else []
        return users, torch.cat([new - old, *r], dim=1)

    def commit(self, users: Ids) -> None:
        users = users[self.waiting[users]]
        super().commit(users)
        self.V = with_rows(self.V, users, self._moved(users))
        if not self.numbers:
            self.W = self.form.models(self.V, self.V[:, :0], torch.from_numpy(self.problem.users))

    def _numbers(self, users: Ids) -> Tensor:
        """Of these users in the network, where the form is that of all."""
        return torch.from_numpy(self.problem.users[users])

    def _moved(self, users: Ids) -> Tensor:
        """v_k of these users with their pending updates, [n, d]."""
        return self.V[users] + self.gamma * self.dV[users]

    def receive(self, users: Ids, models: Tensor) -> None:
        """Take the sums, a row for each of these users, all the same."""
        sums, extras = self.grid.values(models[:, : self.numbers]), models[:, self.numbers :].contiguous()
        W = self.form.models(self.V[users], sums, self._numbers(users))
        super().receive(users, torch.cat([W, extras.view(torch.float64)], dim=1))


class SummingAggregator(DualAggregator):
    """Aggregator side: s on the grid, int64 [1, q·d], and no user's v_k."""

    state = ("S", "rounds", "t")

    def __init__(self, regularizer: Regularizer, V: Tensor, gamma: float, **others: Any) -> None:
        super().__init__(regularizer, V[:, :0], gamma, **others)
        assert self.form is not None
        self.S = torch.zeros(1, self.form.q * V.shape[1], dtype=torch.int64, device=V.device)

    @torch.no_grad()
    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        """Sums of some users' rows each, together those of all who were heard, to the one row for everybody."""
        sums, n = ivs.sum(0, keepdim=True).to(self.S.device), self.S.shape[1]
        self.S = self.grid.added(self.S, sums[:, :n])
        self.rounds += 1
        if not self.accelerated:
            return self.S
        beta = self._beta(restart=self.grid.positive(sums[0, n:]), pause=False)
        return torch.cat([self.S, beta.view(torch.int64).view(1, 1).to(self.S)], dim=1)
