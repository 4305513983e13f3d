"""Architectures by name: `mlp` and `cnn`. d features, C outputs."""

import math
from collections.abc import Sequence

from torch import nn

from hmtl.errors import ConfigError


def mlp(d: int, C: int, hidden: int = 64) -> nn.Module:
    """Return a network with one hidden layer of `hidden` units."""
    return nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, C))


def cnn(d: int, C: int, channels: int = 8, shape: Sequence[int] = ()) -> nn.Module:
    """Return a network for images: two convolutions, each followed by pooling, and a linear layer.

    Args:
        channels: output channels of the first convolution; the second has twice as many.
        shape: [channels, height, width] or [height, width] of an image. Vectors become square images of one channel.

    Raises:
        ConfigError: d is not the number of pixels of a square image, or an image is smaller than 4 × 4.
    """
    unflatten: list[nn.Module] = []
    if len(shape) < 2:
        side = math.isqrt(d)
        if side**2 != d or side < 4:
            raise ConfigError(f"d={d} is not side² with side ≥ 4, and cnn reads vectors as square images. Choose mlp.")
        shape, unflatten = (1, side, side), [nn.Unflatten(-1, (1, side, side))]
    elif len(shape) == 2:
        shape, unflatten = (1, *shape), [nn.Unflatten(-2, (1, shape[0]))]
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ConfigError(f"Rows of shape {tuple(shape)} are not images of at least 4 × 4, as cnn needs. Choose mlp.")
    depth, height, width = shape
    return nn.Sequential(
        *unflatten,
        nn.Conv2d(depth, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * (height // 4) * (width // 4), C),
    )
