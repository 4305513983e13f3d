"""Losses ℓ(p, y) of a prediction p = w·x, with their conjugates and exact dual steps.

The dual variable a of a row is signed, v = s Σ_j a_j x_j, so that classification and regression share all formulas; for
the hinge, a = b·y with b in [0, 1]. All functions are element-wise on tensors of one shape.
"""

import math
import re
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from hmtl.errors import ConfigError
from hmtl.io.described import Described
from hmtl.mtl.overriding import defined_below

NEWTON_STEPS = 6  # accurate to the last bit for any q up to 1e12, from the start in `Logistic.coordinate_step`


class Loss(Described, nn.Module, ABC):
    """A convex loss. Gradient methods need only `forward`; a dual solver states what else it needs."""

    labels: ClassVar[tuple[float, ...] | None] = (-1.0, 1.0)
    """Values that y may take; None: any number (regression)."""

    classes: ClassVar[bool] = False
    """Whether y is a class number and a prediction [..., C] has one score per class."""

    unbounded: ClassVar[bool] = False
    """Whether ℓ* is finite everywhere, so that any multiple of a dual is feasible."""

    @abstractmethod
    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Return ℓ(p, y)."""

    def gradient(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Return ∂ℓ/∂p, by autograd unless a subclass has a formula."""
        with torch.enable_grad():
            p = prediction.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(p, y).sum(), p)
        return gradient

    def conjugate(self, a: Tensor, y: Tensor) -> Tensor:
        """Return ℓ*(−a) = max_p (−a·p − ℓ(p, y)), which is infinite if a is infeasible."""
        raise NotImplementedError

    def coordinate_step(self, a: Tensor, prediction: Tensor, y: Tensor, q: Tensor) -> Tensor:
        """Return the a′ that maximizes −ℓ*(−a′) − (a′ − a)·p − (q/2)·(a′ − a)².

        A row of zeros has q = 0 and p = 0.
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The name in reports, such as smooth_hinge for SmoothHinge."""
        return snake_case(self)

    @property
    def measure(self) -> str:
        """What the mean of `error` measures."""
        return "mean squared error" if self.labels is None and not self.classes else "share misclassified"

    def scores(self, prediction: Tensor) -> Tensor:
        """Return what own measures get of predictions: all of them."""
        return prediction

    def error(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Return the test error per row: 1 for a wrong class or sign (0 has the wrong sign), or the squared error."""
        if self.classes:
            return (prediction.argmax(-1) != y).double()
        return (prediction - y).square() if self.labels is None else (prediction * y <= 0).to(y.dtype)


class Hinge(Loss):
    """ℓ(p, y) = max(0, 1 − y·p), y = ±1; ℓ*(−a) = −y·a for y·a in [0, 1].  Ref: Smith et al. 2017."""

    width = 0.0

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (1 - y * prediction).clamp_min(0)

    def conjugate(self, a: Tensor, y: Tensor) -> Tensor:
        b = y * a
        return torch.where((b >= 0) & (b <= 1), self.width / 2 * b.square() - b, math.inf)

    def coordinate_step(self, a: Tensor, prediction: Tensor, y: Tensor, q: Tensor) -> Tensor:
        b = y * a
        # q = width = 0 gives 1/0 = inf, which the clamp turns into b = 1, the right value
        return y * (b + (1 - y * prediction - self.width * b) / (q + self.width)).clamp_(0, 1)


class SmoothHinge(Hinge):
    """The hinge with its kink at margin 1 smoothed over a width δ, y = ±1.

    With m = y·p: ℓ = 0 for m ≥ 1, (1 − m)²/2δ for 1 − δ ≤ m ≤ 1, 1 − m − δ/2 below;
    $ℓ*(−a) = −b + δb²/2$ for b = y·a in [0, 1].

    Args:
        width: δ > 0.

    Raises:
        ConfigError: δ is not a finite number above zero.

    Ref: Shalev-Shwartz and Zhang 2013.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        if not 0 < width < math.inf:
            raise ConfigError(f"width={width} has to be a finite number above 0. For width 0, choose loss=hinge.")
        self.width = width

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        short = super().forward(prediction, y)
        return torch.where(short < self.width, short.square() / (2 * self.width), short - self.width / 2)


class Squared(Loss):
    """$ℓ(p, y) = (p − y)²/2$, y any number; $ℓ*(−a) = a²/2 − a·y$."""

    labels = None
    unbounded = True

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).square() / 2

    def conjugate(self, a: Tensor, y: Tensor) -> Tensor:
        return a.square() / 2 - a * y

    def coordinate_step(self, a: Tensor, prediction: Tensor, y: Tensor, q: Tensor) -> Tensor:
        return a + (y - prediction - a) / (1 + q)


class Logistic(Loss):
    """ℓ(p, y) = log(1 + exp(−y·p)), y = ±1; ℓ*(−a) = b log b + (1 − b) log(1 − b) for b = y·a in [0, 1].

    Ref: Yu, Huang and Lin 2011 (its dual).
    """

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return -nn.functional.logsigmoid(y * prediction)

    def conjugate(self, a: Tensor, y: Tensor) -> Tensor:
        b = y * a
        negative: Tensor = torch.special.entr(b) + torch.special.entr(1 - b)  # entr: 0 at 0, −∞ below
        return -negative

    def coordinate_step(self, a: Tensor, prediction: Tensor, y: Tensor, q: Tensor) -> Tensor:
        """Solve t = m − q·b + q·σ(−t) for t = log(1/b′ − 1) at the margin m, by Newton's method.

        In t, unlike in b′, nothing cancels for b′ near 0 or 1. Labels are flipped where that makes the root positive:
        for t > 0, t − q·σ(−t) is concave, so that steps from below rise to the root without passing it.
        """
        b, m = y * a, y * prediction
        flipped = m + q * (0.5 - b) < 0
        b, m = torch.where(flipped, 1 - b, b), torch.where(flipped, -m, m)
        c = m - q * b
        # σ(−t) ≥ exp(−t)/2 bounds the root from below by c + W(exp(L)), and Lambert's W(exp(L)) ≥ L − log L
        L = (q / 2).log() - c
        t = (c + torch.where(L > 1, L - L.clamp_min(1).log(), 0.0)).clamp_(min=0)
        for _ in range(NEWTON_STEPS):
            b = torch.sigmoid(-t)
            t = (t - (t - c - q * b) / (1 + q * b * (1 - b))).clamp_(min=0)
        return y * torch.sigmoid(torch.where(flipped, t, -t))


class CrossEntropy(Loss):
    """$ℓ(p, y) = log Σ_c exp(p_c) − p_y$, for scores p [..., C] and y [...] in 0..C−1."""

    labels = None
    classes = True

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        if prediction.ndim == 2:  # the same bits, sooner
            return nn.functional.cross_entropy(prediction, y.long(), reduction="none")
        return -prediction.log_softmax(-1).gather(-1, y.long()[..., None])[..., 0]

    def gradient(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Return softmax(p), minus 1 at the class y."""
        if "forward" in defined_below(CrossEntropy, type(self)):  # the formula is wrong for another loss
            return super().gradient(prediction, y)
        probabilities, own = prediction.softmax(-1), y.long()[..., None]
        return probabilities.scatter_add_(-1, own, probabilities.new_full((), -1.0).expand(own.shape))


class OneVsRest(Loss):
    """Σ_c ℓ(p_c, ±1) for scores p [..., C] and y [...] in 0..C−1: each class against the rest.

    A `Problem` with several classes wraps its margin loss ℓ in this one. Duals have the shape of scores; a dual solver
    works on one class at a time, with ℓ itself.

    Args:
        binary: margin loss ℓ.

    Ref: Rifkin and Klautau 2004.
    """

    labels = None
    classes = True

    def __init__(self, binary: Loss) -> None:
        super().__init__()
        self.binary = binary

    @property
    def name(self) -> str:
        return f"{self.binary.name}, one against the rest"

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        losses: Tensor = self.binary(prediction, self.signs(prediction, y)).sum(-1)
        return losses

    def conjugate(self, a: Tensor, y: Tensor) -> Tensor:
        return self.binary.conjugate(a, self.signs(a, y)).sum(-1)

    @staticmethod
    def signs(like: Tensor, y: Tensor) -> Tensor:
        """Return 1 at the class y and −1 elsewhere, [..., C] in the type of `like`."""
        own = y[..., None] == torch.arange(like.shape[-1], device=like.device)
        return torch.where(own, 1.0, -1.0).to(like.dtype)


def snake_case(part: object) -> str:
    """Return the name of a part's class as the configuration spells it: task_relationship for TaskRelationship."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(part).__name__).lower()
