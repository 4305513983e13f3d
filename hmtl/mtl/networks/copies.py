"""Copies of a network side by side, each with its own parameters: their predictions and their gradient steps.

G copies, B rows per copy, d features, C outputs, m parameters.
"""

from collections.abc import Set

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from hmtl.mtl.losses import Loss
from hmtl.mtl.networks.flat import FlatModel, channels_last
from hmtl.mtl.networks.layers import outputs_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# memory of the copies that are computed at once: on a CPU it should fit in the cache; on a GPU, fewer calls are faster
CPU_BYTES = 4 << 20
GPU_BYTES = 1 << 30


def group_size(model: FlatModel, minibatch: int, like: Tensor) -> int:
    """Return how many users to compute side by side: the fastest choice for minibatches of `minibatch` numbers.

    It is 1 for convolutions on a CPU, which are slower side by side.
    """
    if like.is_cpu and any(isinstance(part, CONVOLUTIONS) for part in model.module.modules()):
        return 1
    nbytes = (len(model.start) + minibatch) * like.element_size()
    return max(1, (CPU_BYTES if like.is_cpu else GPU_BYTES) // nbytes)


class Copies:
    """Copies of any network, with gradients by torch.

    Args:
        model: the network.
        W: parameters of the copies [G, m], which steps change in place.
        trained: names of the parameters that steps change; None: all.
    """

    def __init__(self, model: FlatModel, W: Tensor, trained: Set[str] | None = None) -> None:
        self.model = model
        self.parameters = model.split(W)
        self.trained = self.parameters.keys() if trained is None else trained

    def predict(self, x: Tensor) -> Tensor:
        """Return predictions [G, B], or [G, B, C] for several outputs, for rows x [G, B, d]."""
        return torch.stack([self.model(self._placed(g), rows) for g, rows in enumerate(x)])

    def _placed(self, g: int) -> dict[str, Tensor]:
        """Return the parameters of one copy as the module runs fastest with them."""
        ordered = channels_last if self.model.channels_last else Tensor.detach
        return {name: ordered(part[g]) for name, part in self.parameters.items()}

    def step(self, x: Tensor, y: Tensor, weights: Tensor, loss: Loss, rate: float) -> None:
        """Set w ← w − rate · Σ_b weight_b ∇ℓ_b for each copy, for rows x [G, B, d], y and weights [G, B]."""

        def minibatch(parameters: dict[str, Tensor], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            losses: Tensor = loss(self.model(parameters, x), y)
            return (weight * losses).sum()

        if len(x) > 1:
            gradients = vmap(grad(minibatch), randomness="different")(self.parameters, x, y, weights)
        else:  # autograd alone is faster than vmap over one copy
            parameters = {
                name: part.detach().requires_grad_(name in self.trained) for name, part in self._placed(0).items()
            }
            trained = {name: part for name, part in parameters.items() if name in self.trained}
            value = minibatch(parameters, x[0], y[0], weights[0])
            each = torch.autograd.grad(value, list(trained.values()), materialize_grads=True)
            gradients = dict(zip(trained, each, strict=True))
        for name in self.trained:
            self.parameters[name].sub_(gradients[name], alpha=rate)


class LayeredCopies(Copies):
    """Copies of a network of linear maps and activations; gradients go straight into the parameters."""

    def predict(self, x: Tensor) -> Tensor:
        return self.model.predictions(outputs_of(self.model.layers, self.parameters, x)[-1])

    def step(self, x: Tensor, y: Tensor, weights: Tensor, loss: Loss, rate: float) -> None:
        outputs = outputs_of(self.model.layers, self.parameters, x)
        inputs = [x, *outputs[:-1]]
        g = loss.gradient(self.model.predictions(outputs[-1]), y).view(outputs[-1].shape) * weights[..., None]
        for n, layer in reversed(list(enumerate(self.model.layers))):
            weight = self.parameters[layer.weight]
            if layer.activation is not None:
                _, backward = layer.activation
                g = backward(g, outputs[n])
            before = torch.bmm(g, weight) if n else g
            if layer.weight in self.trained:
                weight.baddbmm_(g.mT, inputs[n], alpha=-rate)
            if layer.bias in self.trained and layer.bias is not None:
                self.parameters[layer.bias].sub_(g.sum(1), alpha=rate)
            g = before


def copies(model: FlatModel, W: Tensor, trained: Set[str] | None = None) -> Copies:
    """Return copies of a network, see `Copies`, of the fastest kind that it allows."""
    return (LayeredCopies if model.layers else Copies)(model, W, trained)
