"""Losses ℓ(p, y) of a prediction p = w·x, with what a dual method needs of them.

The dual variable a of a row is signed, v = s Σ_j a_j x_j, so that classification and regression are written alike:
for the hinge a = b·y with b in [0, 1]. All functions work element by element on tensors of one shape.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn


class Loss(nn.Module, ABC):
    """A convex loss. `forward` is all that a gradient method needs; a dual solver says what it needs besides."""

    labels: ClassVar[tuple[float, ...] | None] = (-1.0, 1.0)
    """The values that y may take; None where it is any number (regression)."""

    @abstractmethod
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        """ℓ(p, y)."""

    def conjugate(self, a: Tensor, y: Tensor) -> Tensor:
        """ℓ*(−a) = max_p (−a·p − ℓ(p, y)); infinite where a is infeasible."""
        raise NotImplementedError

    def coordinate_step(self, a: Tensor, prediction: Tensor, y: Tensor, q: Tensor) -> Tensor:
        """The a′ that maximises −ℓ*(−a′) − (a′ − a)·p − (q/2)·(a′ − a)²; q = 0 (a row of zeros) comes with p = 0."""
        raise NotImplementedError

    def error(self, prediction: Tensor, y: Tensor) -> Tensor:
        """What a test counts per row: 1 for a wrong sign (0 is wrong too), or the squared error in regression."""
        return (prediction - y).square() if self.labels is None else (prediction * y <= 0).to(y.dtype)


class Hinge(Loss):
    """ℓ(p, y) = max(0, 1 − y·p), y = ±1; ℓ*(−a) = −y·a for y·a in [0, 1].  Ref: Smith et al. 2017."""

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (1 - y * prediction).clamp_min(0)

    def conjugate(self, a: Tensor, y: Tensor) -> Tensor:
        b = y * a
        return torch.where((b >= 0) & (b <= 1), -b, math.inf)

    def coordinate_step(self, a: Tensor, prediction: Tensor, y: Tensor, q: Tensor) -> Tensor:
        # q = 0 divides 1 by 0, and the clamp makes the right b = 1 of it
        return y * (y * a + (1 - y * prediction) / q).clamp_(0, 1)
