"""A user's model to take home: a torch module of raw rows."""

import torch
from torch import Tensor, nn

from hmtl.data import Scaling


class UserModel(nn.Module):
    """Raw rows [n, ...] to scores: [n], or [n, C] of several classes. What preprocessing fitted is part of its state.

    Args:
        learned: takes prepared rows [n, D], or [n, *shape], to [n, C].
        scaling: what was fitted for this user.
        shape: of a row as `learned` takes it.

    Attributes:
        target_mean: added to scores, which are then in the units of y.
    """

    mean: Tensor
    scale: Tensor
    target_mean: Tensor

    def __init__(self, learned: nn.Module, scaling: Scaling, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.learned, self._shape, self._intercept = learned, shape, scaling.intercept
        self.register_buffer("mean", scaling.mean)
        self.register_buffer("scale", scaling.scale)
        self.register_buffer("target_mean", torch.tensor(scaling.target_mean, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        rows = rows if rows.dtype == torch.float32 else rows.double()  # as tasks keep them
        rows = Scaling(self.mean, self.scale, self._intercept).features(rows)
        scores: Tensor = self.learned(rows.to(next(self.learned.parameters())).view(len(x), *self._shape))
        return (scores if scores.shape[1] > 1 else scores.squeeze(1)) + self.target_mean


def linear(W: Tensor) -> nn.Linear:
    """The layer with weights W [C, D]."""
    C, D = W.shape
    layer = nn.Linear(D, C, bias=False, device="meta")  # whose numbers are not drawn
    layer.weight = nn.Parameter(W)
    return layer
