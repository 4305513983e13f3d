"""Networks for tests: some that are linear maps with activations between them, and others."""

import math
from functools import partial

import torch
from torch import nn

from hmtl.mtl import mlp


def tower(d, C, *between):
    return nn.Sequential(nn.Linear(d, 6), *between, nn.Linear(6, C))


class Own(nn.Module):
    def __init__(self, d, C):
        super().__init__()
        self.linear = nn.Linear(d, C)

    def forward(self, x):
        return self.linear(x)


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self, d, C):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, C))
        self.layers[2].weight = self.layers[1].weight

    def forward(self, x):
        for layer in self.layers[:3]:
            x = torch.sigmoid(layer(x))
        return self.layers[3](x)


def shared(d, C):
    middle = nn.Linear(6, 6)
    return nn.Sequential(nn.Linear(d, 6), nn.ReLU(), middle, nn.ReLU(), middle, nn.Linear(6, C))


def frozen(d, C):
    network = mlp(d, C, hidden=5)
    network[0].weight.requires_grad_(False)
    return network


def images(d, C, share=0.0):
    side = math.isqrt(d)
    convolution = nn.Unflatten(-1, (1, side, side)), nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(
        *convolution, nn.GroupNorm(2, 4), nn.GELU(), nn.Dropout(share), nn.Flatten(), nn.Linear(4 * d, C)
    )


LAYERED = {
    "linear": nn.Linear,
    "without bias": partial(nn.Linear, bias=False),
    "mlp": partial(mlp, hidden=5),
    "deep": lambda d, C: nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, C)),
    "activation last": lambda d, C: nn.Sequential(nn.Linear(d, 5, bias=False), nn.ReLU(), nn.Linear(5, C), nn.Tanh()),
    "linear twice": tower,
    "flattened": lambda d, C: nn.Sequential(nn.Flatten(), nn.Linear(d, C)),
}
OTHER = {
    "own": Own,
    "tied": Tied,
    "shared": shared,
    "frozen": frozen,
    "normed": lambda d, C: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(d, C))),
    "gelu": lambda d, C: tower(d, C, nn.GELU()),
    "two activations": lambda d, C: tower(d, C, nn.ReLU(), nn.Tanh()),
    "activation first": lambda d, C: nn.Sequential(nn.ReLU(), nn.Linear(d, C)),
    "nested": lambda d, C: nn.Sequential(nn.Sequential(nn.Linear(d, C))),
}
