"""Checks of settings, and matrices that several regularizers are made of. K users."""

import math

import torch
from torch import Tensor

from hmtl.errors import ConfigError


def identity(Omega: Tensor) -> Tensor:
    """I [K, K], of the type and on the device of Omega."""
    return torch.eye(len(Omega), dtype=Omega.dtype, device=Omega.device)


def symmetric(half: Tensor) -> Tensor:
    """half · halfᵀ, symmetric to the last bit: a product alone is not, by rounding."""
    product = half @ half.T
    return (product + product.T) / 2


def below_one(name: str, value: float) -> float:
    """The value itself, if it is in (0, 1).

    Raises:
        ConfigError: it is not.
    """
    if not 0 < value < 1:
        raise ConfigError(f"{name}={value} is not in (0, 1): it is a share, say 1e-4.")
    return value


def positive(name: str, value: float) -> float:
    """The value itself, if it is finite and above zero.

    Raises:
        ConfigError: it is not.
    """
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={value} must be a finite number above 0: without it the optimum need not exist.")
    return value
