"""Steps on the penalty ½ tr(Wᵀ A W), for all users at once.

K users, m parameters of a model. A is the coupling [K, K], symmetric; W holds the models [K, m], one user per row; x
holds the lengths of the steps [K].
"""

import torch
from torch import Tensor

from hmtl.mtl.sums import WORK


def gradient_step(A: Tensor, W: Tensor, lengths: Tensor, parts: int) -> Tensor:
    """Return W after gradient steps w_k ← w_k − x_k Σ_l A_kl w_l in equal parts, each of length x/parts."""
    part = torch.eye(len(A)).to(A) - lengths[:, None] / parts * A
    return _mixed(torch.linalg.matrix_power(part, parts), W)


def implicit_step(A: Tensor, W: Tensor, lengths: Tensor) -> Tensor:
    """Return the W′ with w′_k = w_k − x_k Σ_l A_kl w′_l, which is stable for steps of any length.

    W′ minimises Σ_k ‖w′_k − w_k‖²/(2x_k) + ½ tr(W′ᵀ A W′), and leaves users with x_k = 0 where they are.
    """
    return _mixed(torch.linalg.inv(torch.eye(len(A)).to(A) + lengths[:, None] * A), W)


def _mixed(mixing: Tensor, W: Tensor) -> Tensor:
    """Return the product of a matrix [K, K] and W [K, m], a few columns at a time."""
    mixing = mixing.to(W)
    stepped, width = torch.empty_like(W, memory_format=torch.contiguous_format), max(1, WORK * 64 // len(W))
    for old, new in zip(torch.split(W, width, 1), torch.split(stepped, width, 1), strict=True):
        new.copy_(mixing @ old.contiguous())
    return stepped
