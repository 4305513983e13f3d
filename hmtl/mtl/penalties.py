"""Penalties ½ tr(W A Wᵀ) and steps down them, by the structure of the coupling A [K, K]: dense or sparse.

K users, m parameters of a model; W is [K, m], one user per row. A coupling of low rank plus a diagonal is a `Form` (see
`hmtl.mtl.sums`), which has a `penalty`, too.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from hmtl.mtl.matrices import identity
from hmtl.mtl.sums import WORK


class Structure(ABC):
    """A symmetric coupling A."""

    @abstractmethod
    def penalty(self, W: Tensor) -> Tensor:
        """Return ½ Σ_kl A_kl w_k·w_l, a float64 scalar, for W [K, m]."""

    @abstractmethod
    def stepped(self, W: Tensor, lengths: Tensor, parts: int) -> Tensor:
        """Return W after the step w_k ← w_k − x_k Σ_l A_kl w_l of all users, in a number of equal parts.

        Args:
            W: models [K, m].
            lengths: x [K].
            parts: number of parts; each has length x/parts.
        """


class Dense(Structure):
    """Any A, by matrix products."""

    def __init__(self, A: Tensor) -> None:
        self.A = A

    def penalty(self, W: Tensor) -> Tensor:
        gram = W.new_zeros(len(W), len(W), dtype=torch.float64)
        for columns in _columns(W.shape[1], WORK * 64 // len(W)):
            part = W[:, columns].double()  # for similar models, large squares cancel
            gram += part @ part.T
        return 0.5 * (self.A * gram).sum()

    def stepped(self, W: Tensor, lengths: Tensor, parts: int) -> Tensor:
        part = identity(self.A) - lengths[:, None] / parts * self.A
        mixing = torch.linalg.matrix_power(part, parts).to(W)
        stepped = torch.empty_like(W, memory_format=torch.contiguous_format)
        for columns in _columns(W.shape[1], WORK * 64 // len(W)):
            stepped[:, columns] = mixing @ W[:, columns].contiguous()
        return stepped


class Sparse(Structure):
    """An A with few nonzero entries.

    Each row is computed separately from its neighbours in ascending order, and each product and sum is rounded. So a
    row has the same bits for any set of rows that contains its neighbours.
    """

    def __init__(self, A: Tensor) -> None:
        self.A = A
        self.neighbours = [row.nonzero()[:, 0].tolist() for row in A.cpu()]

    def penalty(self, W: Tensor) -> Tensor:
        pairs = [(k, other) for k, neighbours in enumerate(self.neighbours) for other in neighbours if other >= k]
        sums = W.new_zeros(len(pairs), dtype=torch.float64)
        for columns in _columns(W.shape[1], WORK):
            rows = W[:, columns].unbind()
            sums += torch.stack([(rows[k] * rows[other]).sum(dtype=torch.float64) for k, other in pairs])
        k, l = torch.tensor(pairs, device=W.device).T  # noqa: E741, as in A_kl
        return (torch.where(k == l, 0.5, 1.0) * self.A[k, l] * sums).sum()  # (k, l) stands for (l, k), too

    def stepped(self, W: Tensor, lengths: Tensor, parts: int) -> Tensor:
        part = (identity(self.A) - lengths[:, None] / parts * self.A).to(W).cpu()
        weights = [part[k, neighbours].tolist() for k, neighbours in enumerate(self.neighbours)]
        for _ in range(parts):
            stepped = torch.empty_like(W, memory_format=torch.contiguous_format)
            for columns in _columns(W.shape[1], WORK):
                old, product = W[:, columns].unbind(), W.new_empty(min(WORK, W.shape[1]))
                rows = stepped[:, columns].unbind()
                for new, neighbours, shares in zip(rows, self.neighbours, weights, strict=True):
                    torch.mul(old[neighbours[0]], shares[0], out=new)
                    for other, share in zip(neighbours[1:], shares[1:], strict=True):
                        new.add_(torch.mul(old[other], share, out=product[: len(new)]))
            W = stepped
        return W


def by_entries(A: Tensor) -> Structure:
    """Return the structure whose penalty takes less time.

    A nonzero entry costs `Sparse` many times what it costs `Dense`. For 30 to 300 users, both take the same time if
    between a quarter and a tenth of A is nonzero.
    """
    return Sparse(A) if float((A != 0).double().mean()) <= 1 / 8 else Dense(A)


def _columns(m: int, width: int) -> Iterator[slice]:
    """Yield slices of m columns, of at most `width` columns each."""
    for start in range(0, m, max(1, width)):
        yield slice(start, min(m, start + max(1, width)))
