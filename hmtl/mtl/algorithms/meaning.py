"""What users' rows mean if a server needs only sums of them: how terms are made of rows, and models of sums.

The users of a process hold a meaning, and make terms, or the aggregator does on behalf of all users; see
`hmtl.communication.sides.RowMeaning`. What stands in a row is said in `learner_sides` and `mocha_users`. K users; n of
them in a process; m numbers in a row and e further ones, e′ in a model; q sums per number, L = q·m words in a row of
terms.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from hmtl.io.arrays import Ids
from hmtl.mtl.algorithms.held_rows import of_rows, with_rows
from hmtl.mtl.sums import HELD, Grid, LazyRows, RowsByUsers, blocks
from hmtl.mtl.symmetric import Symmetric


class Meaning(nn.Module, ABC):
    """How terms are made of rows, and models of sums.

    Attributes:
        words: L, numbers in a row of terms, and of sums.
        further: words beside terms.
        answers: words beside sums.
        common: the type of the model, if it is the same for all users; None: each user has its own.
        private: whether terms get noise that hides single users, so that their users have to make them.
    """

    words: int
    further: int = 0
    answers: int = 0
    common: torch.dtype | None = None
    private: bool = False

    @abstractmethod
    def terms(self, round: int, users: Ids, rows: Tensor | LazyRows) -> Tensor | LazyRows:
        """Return the terms of rows [n, m + e] of these users, int64 [n, L + further], which count once committed."""

    @abstractmethod
    def total_of(self, users: Ids, rows: Tensor) -> Tensor:
        """Return the sum of the terms of these users, [1, L + further], which count now."""

    def commit(self, users: Ids) -> None:
        """Note that the terms that were made last of these users' rows counted."""

    @abstractmethod
    def models(self, users: Ids, row: Tensor) -> Tensor:
        """Return the models [n, m + e′] of these users, given a row of sums, int64 [1, L + answers].

        It may keep what comes beside the sums.
        """


class SumsOfVectors(Meaning):
    """The meaning of rows that move a vector x_k of each user, if (M x)_k is needed, M = δI + U C Uᵀ.

    Then the sums Σ_l U_lᵀ x_l suffice.

    A user's terms are the change of U_kᵀ x_k, rounded to the grid, so that sums of terms are sums of rounded vectors.

    Buffers: `sent` [n, m], the vectors that counted last; `pending` [n, m], those that count if the users' terms do.

    Args:
        M: the matrix.
        grid: grid of the terms.
        start: the vectors before the first round [n, m].
        ids: the numbers of these users in the network [n].
    """

    M: Symmetric
    sent: Tensor
    pending: Tensor

    def __init__(self, M: Symmetric, grid: Grid, start: Tensor, ids: Ids) -> None:
        super().__init__()
        object.__setattr__(self, "M", M)  # no state of the users
        self.grid, self.ids, self.m = grid, ids, start.shape[1]
        self.q, self.words = M.q, M.q * self.m
        self.register_buffer("sent", start)
        self.register_buffer("pending", start)

    @abstractmethod
    def moved(self, users: Ids, rows: Tensor) -> Tensor:
        """Return the vectors [n, m] to which rows [n, m + e] move those of these users.

        It may note what else the rows tell, which counts once `commit` or `total_of` says so.
        """

    def terms(self, round: int, users: Ids, rows: Tensor | LazyRows) -> Tensor | LazyRows:
        new, old, ids = self.moved(users, rows[:]), of_rows(self.sent, users), self.indices(users)
        self.pending = with_rows(self.pending, users, new)

        def changes(some: slice) -> Tensor:
            return self._changes(new[some], old[some], ids[some])

        at_once = max(1, HELD // max(1, self.words))
        return RowsByUsers((len(users), self.words), torch.int64, new.device, changes, at_once)

    def total_of(self, users: Ids, rows: Tensor) -> Tensor:
        new, old, ids = self.moved(users, rows), of_rows(self.sent, users), self.indices(users)
        total = torch.zeros(self.q, self.m, dtype=torch.int64, device=new.device)
        for some, columns in blocks(*new.shape):
            part = self._changes(new[some, columns], old[some, columns], ids[some])
            total[:, columns] += part.sum(0).view(self.q, -1)
        self.pending = self.sent = with_rows(self.sent, users, new)
        return total.view(1, -1)

    def commit(self, users: Ids) -> None:
        self.sent = with_rows(self.sent, users, of_rows(self.pending, users))

    def indices(self, users: Ids) -> Tensor:
        """Return the numbers of these users in the network, by which M is indexed."""
        return torch.from_numpy(self.ids[users])

    def _changes(self, new: Tensor, old: Tensor, ids: Tensor) -> Tensor:
        """Return the changes of the terms of vectors [n, m] of these users, int64 [n, q·m]."""
        terms = new.new_empty(len(new), self.q, new.shape[1], dtype=torch.int64)
        for some, columns in blocks(*new.shape):
            now, before = (self.grid.rounded(self.M.terms(x[some, columns].double(), ids[some])) for x in (new, old))
            part = terms[some, :, columns]
            part.copy_(now.sub_(before).view_as(part))
        return terms.flatten(1)
