"""Steps down the penalty ½ tr(W A Wᵀ) of all users at once: w_k ← w_k − x_k Σ_l A_kl w_l, in a number of equal parts.

K users, m parameters of a model. A is the coupling [K, K], symmetric; W has the models [K, m], one user per row; x has
the lengths of the steps [K], and each part has length x/parts.
"""

import torch
from torch import Tensor

from hmtl.mtl.sums import WORK


def dense_step(A: Tensor, W: Tensor, lengths: Tensor, parts: int) -> Tensor:
    """Return W after the step, by matrix products."""
    part = torch.eye(len(A)).to(A) - lengths[:, None] / parts * A
    mixing = torch.linalg.matrix_power(part, parts).to(W)
    stepped, width = torch.empty_like(W, memory_format=torch.contiguous_format), max(1, WORK * 64 // len(W))
    for old, new in zip(torch.split(W, width, 1), torch.split(stepped, width, 1), strict=True):
        new.copy_(mixing @ old.contiguous())
    return stepped


def sparse_step(A: Tensor, W: Tensor, lengths: Tensor, parts: int) -> Tensor:
    """Return W after the step, for an A with few nonzero entries.

    Each row is computed separately from its neighbours in ascending order, and each product and sum is rounded. So a
    row has the same bits for any set of rows that contains its neighbours.
    """
    part = (torch.eye(len(A)).to(A) - lengths[:, None] / parts * A).to(W).cpu()
    neighbours = [row.nonzero()[:, 0].tolist() for row in A.cpu()]
    weights = [part[k, others].tolist() for k, others in enumerate(neighbours)]
    for _ in range(parts):
        stepped = torch.empty_like(W, memory_format=torch.contiguous_format)
        for old, new in zip(torch.split(W, WORK, 1), torch.split(stepped, WORK, 1), strict=True):
            rows, product = old.unbind(), torch.empty_like(new[0])
            for row, others, shares in zip(new.unbind(), neighbours, weights, strict=True):
                torch.mul(rows[others[0]], shares[0], out=row)
                for other, share in zip(others[1:], shares[1:], strict=True):
                    row.add_(torch.mul(rows[other], share, out=product))
        W = stepped
    return W
