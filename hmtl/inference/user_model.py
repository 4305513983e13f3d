"""The torch module of one user: preprocessing and model in one, for raw rows."""

import torch
from torch import Tensor, nn

from hmtl.data import Scaling


class UserModel(nn.Module):
    """A user's model for raw rows; the fitted preprocessing is part of its state.

    Maps raw rows [n, ...] to scores, [n] or, for several classes, [n, C].

    Args:
        learned: module that maps preprocessed rows [n, D], or [n, *shape], to [n, C].
        scaling: the scaling that was fitted for this user.
        shape: shape of a row as `learned` expects it.

    Attributes:
        mean, scale: [d], see `Scaling`.
        target_mean: number added to the scores, which are then in the units of y.
    """

    mean: Tensor
    scale: Tensor
    target_mean: Tensor

    def __init__(self, learned: nn.Module, scaling: Scaling, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.learned = learned
        self._shape = shape
        self._intercept = scaling.intercept
        self.register_buffer("mean", scaling.mean)
        self.register_buffer("scale", scaling.scale)
        self.register_buffer("target_mean", torch.tensor(scaling.target_mean, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        rows = rows if rows.dtype == torch.float32 else rows.double()  # the dtypes of a Task
        rows = Scaling(self.mean, self.scale, self._intercept).features(rows)
        scores: Tensor = self.learned(rows.to(next(self.learned.parameters())).view(len(x), *self._shape))
        return (scores if scores.shape[1] > 1 else scores.squeeze(1)) + self.target_mean


def linear(W: Tensor) -> nn.Linear:
    """Return a linear layer with the weights W [C, D] and no bias."""
    C, D = W.shape
    layer = nn.Linear(D, C, bias=False, device="meta")  # draws no random weights
    layer.weight = nn.Parameter(W)
    return layer
