"""What a coupling A [K, K] costs by its structure: the penalty ½ tr(W A Wᵀ), and steps down it.

K users, m parameters of a model; here W is [K, m], a user's model per row. A sum of low rank and a diagonal is a `Form`
(see `hmtl.mtl.sums`), which has the same `penalty`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from hmtl.mtl.matrices import identity
from hmtl.mtl.sums import WORK


class Structure(ABC):
    """A coupling A, symmetric."""

    @abstractmethod
    def penalty(self, W: Tensor) -> Tensor:
        """½ Σ_kl A_kl w_k·w_l, float64, a scalar, for W [K, m]."""

    @abstractmethod
    def stepped(self, W: Tensor, lengths: Tensor, parts: int) -> Tensor:
        """W after a step w_k ← w_k − x_k Σ_l A_kl w_l of all users, `lengths` x [K], made in so many equal parts."""


class Dense(Structure):
    """Any A."""

    def __init__(self, A: Tensor) -> None:
        self.A = A

    def penalty(self, W: Tensor) -> Tensor:
        gram = W.new_zeros(len(W), len(W), dtype=torch.float64)
        for columns in _columns(W.shape[1], WORK * 64 // len(W)):
            part = W[:, columns].double()  # models near each other leave little of large squares
            gram += part @ part.T
        return 0.5 * (self.A * gram).sum()

    def stepped(self, W: Tensor, lengths: Tensor, parts: int) -> Tensor:
        part = identity(self.A) - lengths[:, None] / parts * self.A
        mixing = torch.linalg.matrix_power(part, parts).to(W)
        made = torch.empty_like(W, memory_format=torch.contiguous_format)
        for columns in _columns(W.shape[1], WORK * 64 // len(W)):
            made[:, columns] = mixing @ W[:, columns].contiguous()
        return made


class Sparse(Structure):
    """An A of few entries other than zero.

    Rows are computed each for itself, with its neighbours in ascending order, and products and sums are rounded apart
    from each other: that gives the same bits wherever a row's neighbours are known.
    """

    def __init__(self, A: Tensor) -> None:
        self.A, rows = A, A.cpu()
        self.near = [row.nonzero()[:, 0].tolist() for row in rows]

    def penalty(self, W: Tensor) -> Tensor:
        pairs = [(k, other) for k, others in enumerate(self.near) for other in others if other >= k]
        sums = W.new_zeros(len(pairs), dtype=torch.float64)
        for columns in _columns(W.shape[1], WORK):
            rows = W[:, columns].unbind()
            sums += torch.stack([(rows[k] * rows[other]).sum(dtype=torch.float64) for k, other in pairs])
        of, to = torch.tensor(pairs, device=W.device).T
        return (torch.where(of == to, 0.5, 1.0) * self.A[of, to] * sums).sum()  # each pair is there once of twice

    def stepped(self, W: Tensor, lengths: Tensor, parts: int) -> Tensor:
        part = (identity(self.A) - lengths[:, None] / parts * self.A).to(W).cpu()
        weights = [part[k, others].tolist() for k, others in enumerate(self.near)]
        for _ in range(parts):
            made = torch.empty_like(W, memory_format=torch.contiguous_format)
            for columns in _columns(W.shape[1], WORK):
                old, room = W[:, columns].unbind(), W.new_empty(min(WORK, W.shape[1]))
                for new, others, shares in zip(made[:, columns].unbind(), self.near, weights, strict=True):
                    torch.mul(old[others[0]], shares[0], out=new)
                    for other, share in zip(others[1:], shares[1:], strict=True):
                        new.add_(torch.mul(old[other], share, out=room[: len(new)]))
            W = made
        return W


def by_entries(A: Tensor) -> Structure:
    """The one whose penalty takes less time.

    A pair costs `Sparse` many times what it costs `Dense`: from 30 to 300 users both take as long where a quarter to a
    tenth of A is other than zero.
    """
    return Sparse(A) if float((A != 0).double().mean()) <= 1 / 8 else Dense(A)


def _columns(m: int, width: int) -> Iterator[slice]:
    for start in range(0, m, max(1, width)):
        yield slice(start, min(m, start + max(1, width)))
