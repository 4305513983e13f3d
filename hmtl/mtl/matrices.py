"""Small matrices over pairs of users, [K, K]."""

import torch
from torch import Tensor


def identity(like: Tensor) -> Tensor:
    """Return I [K, K] in the type and on the device of a matrix [K, K]."""
    return torch.eye(len(like), dtype=like.dtype, device=like.device)


def gram(half: Tensor) -> Tensor:
    """Return half · halfᵀ, symmetric to the last bit in spite of rounding."""
    product = half @ half.T
    return (product + product.T) / 2


def sigma_prime(B: Tensor) -> float:
    """Return `σ′ = max_k Σ_l |B_kl| / B_kk`, which makes it safe to add all users' updates.  Ref: Smith et al. 2017."""
    return float((B.abs().sum(1) / B.diagonal()).max())
