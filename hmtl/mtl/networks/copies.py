"""Copies of a network with parameters of their own, side by side: how they predict, and how they make a step.

G users of a group, B rows of each, d features, C outputs, m parameters.

How a product is rounded depends on where its operands lie in memory, and on whether it is one of many. So that nobody's
model depends on who else is in a group, all that is of one user begins at a multiple of ALIGNMENT bytes, and groups
have one place each, or all have more. That is not enough for what torch makes by itself in `AnyCopies`, nor for types
of which it chooses how to multiply by the size of all products together: there, each user has a place of its own in
groups that are the same in each process, see `by_place`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import grad, vmap

from hmtl.mtl.losses import Loss
from hmtl.mtl.networks.models import FlatModel

ALIGNMENT = 64  # bytes: a line of cache, the widest vector, and what torch gives to a tensor
# What users of one group have in work at once: it should stay in the processor's cache; other devices pay per call
CPU_BYTES = 2 << 20
DEVICE_BYTES = 1 << 30


def group_size(model: FlatModel, minibatch: int, like: Tensor) -> int:
    """How many users make a group, each with so many numbers in a minibatch: as many as is fastest.

    One where there are convolutions, which are slower side by side on a processor.
    """
    if like.is_cpu and any(isinstance(part, CONVOLUTIONS) for part in model.module.modules()):
        return 1
    bytes = (len(model.start) + minibatch) * like.element_size()
    return max(1, (CPU_BYTES if like.is_cpu else DEVICE_BYTES) // bytes)


def by_place(model: FlatModel, like: Tensor) -> bool:
    """Whether the last bits of a user's steps may hang on the size of its group, and on its place there.

    Of other devices than processors no such bits are promised, since there a group has many more places than users.
    """
    return like.is_cpu and (layers(model) is None or like.dtype not in (torch.float32, torch.float64))


@dataclass(frozen=True)
class Group:
    """Some users side by side.

    Attributes:
        number: of the group.
        users: who is at each place, [G]; where its user is not here, another one instead, whose steps there are lost.
        here: the users themselves, who come one after the other, and
        places: [n], where they are.
    """

    number: int
    users: Tensor
    here: slice
    places: Tensor


def groups(numbers: NDArray[np.int64], K: int, size: int) -> Iterator[Group]:
    """Of K users those whose numbers [n] these are, ascending: k in group k // size at place k % size, whoever is here.

    The last group of all has fewer places; if that leaves one, it has two.
    """
    first = 0
    for number, n in zip(*np.unique(numbers // size, return_counts=True), strict=True):
        G = min(size, max(2, K - int(number) * size))
        here, users = slice(first, first + n), torch.full((G,), first)
        places = torch.from_numpy(numbers[here] % size)
        users[places] = torch.arange(first, first + n)
        yield Group(int(number), users, here, places)
        first += int(n)


def apart(rows: int, width: int, like: Tensor) -> int:
    """The least number of rows of so many numbers, from `rows` on, that ends at a multiple of ALIGNMENT bytes."""
    step = ALIGNMENT // like.element_size()
    step //= math.gcd(step, width)
    return -(-rows // step) * step


def aligned(like: Tensor, G: int, *shape: int) -> Tensor:
    """An empty tensor [G, *shape], of whose parts [*shape] each begins at a multiple of ALIGNMENT bytes."""
    size = math.prod(shape)
    return like.new_empty(G, apart(size, 1, like))[:, :size].view(G, *shape)


class Copies(ABC):
    """G copies of a network.

    Args:
        model: the network.
        G: their number.
        like: of the type and on the device of their parameters.
    """

    def __init__(self, model: FlatModel, G: int, like: Tensor) -> None:
        self.model = model
        self.parameters = {name: aligned(like, G, *shape) for name, shape in model.shapes.items()}

    def load(self, W: Tensor) -> None:
        """Take these parameters, [G, m]."""
        for name, part in self.model.split(W).items():
            self.parameters[name].copy_(part)

    def store(self, W: Tensor, places: Tensor) -> None:
        """Put the parameters of the copies at these places [n] into W [n, m]."""
        for name, part in self.model.split(W).items():
            part.copy_(self.parameters[name][places])

    def away(self, W: Tensor, share: Tensor) -> dict[str, Tensor]:
        """Of each parameter, a share [G] of the distance from those of W [G, m]."""
        return {
            name: share.view(-1, *[1] * (part.ndim - 1)) * (self.parameters[name] - part)
            for name, part in self.model.split(W).items()
        }

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor:
        """Predictions [G, B] or, of several outputs, [G, B, C], for rows x [G, B, d]."""

    @abstractmethod
    def step(self, x: Tensor, y: Tensor, weights: Tensor, loss: Loss, rate: float) -> None:
        """w ← w − rate · Σ_b weight_b ∇ℓ of each copy, for x [G, B, d], y and weights [G, B]."""


class AnyCopies(Copies):
    """Of any network, by torch."""

    def predict(self, x: Tensor) -> Tensor:
        each = [{name: part[g] for name, part in self.parameters.items()} for g in range(len(x))]
        return torch.stack([self.model(parameters, rows) for parameters, rows in zip(each, x, strict=True)])

    def step(self, x: Tensor, y: Tensor, weights: Tensor, loss: Loss, rate: float) -> None:
        def minibatch(parameters: dict[str, Tensor], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            losses: Tensor = loss(self.model(parameters, x), y)
            return (weight * losses).sum()

        if len(x) > 1:
            gradients = vmap(grad(minibatch), randomness="different")(self.parameters, x, y, weights)
        else:  # faster
            own = {name: part[0].detach().requires_grad_() for name, part in self.parameters.items()}
            value = minibatch(own, x[0], y[0], weights[0])
            found = torch.autograd.grad(value, list(own.values()), materialize_grads=True)
            gradients = dict(zip(own, found, strict=True))
        for name, gradient in gradients.items():
            self.parameters[name].sub_(gradient, alpha=rate)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Bend = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
BENDS: dict[type[nn.Module], Bend] = {
    nn.ReLU: (Tensor.relu_, lambda g, out: torch.ops.aten.threshold_backward(g, out, 0)),
    nn.Tanh: (Tensor.tanh_, torch.ops.aten.tanh_backward),
    nn.Sigmoid: (Tensor.sigmoid_, torch.ops.aten.sigmoid_backward),
}
"""Functions of each number: in place, and the gradient before them, of that behind them and of what they gave."""


@dataclass(frozen=True)
class Layer:
    """A linear map and, maybe, a function of each number: the names of its parameters."""

    weight: str
    bias: str | None
    bend: Bend | None


def layers(model: FlatModel) -> list[Layer] | None:
    """The network as linear maps with functions of each number between them; None where it is something else."""
    module = model.module
    parts = (
        [*module._modules.items()] if type(module) is nn.Sequential else [("", module)]
    )  # also if one is there twice
    if any(_altered(part) for part in (module, *(part for _, part in parts))):
        return None
    if parts and type(parts[0][1]) is nn.Flatten and (parts[0][1].start_dim, parts[0][1].end_dim) == (1, -1):
        del parts[0]  # rows are vectors as they come
    elif len(model.shape) > 1:
        return None
    found: list[Layer] = []
    for name, part in parts:
        if type(part) is nn.Linear:
            weight, bias = (f"{name}.{each}".lstrip(".") for each in ("weight", "bias"))
            found.append(Layer(weight, bias if part.bias is not None else None, None))
        elif type(part) in BENDS and found and found[-1].bend is None:
            found[-1] = replace(found[-1], bend=BENDS[type(part)])
        else:
            return None
    names = [name for layer in found for name in (layer.weight, layer.bias) if name is not None]
    return found if names == list(model.shapes) else None  # else some are shared, or frozen


def _altered(part: nn.Module) -> bool:
    """Whether it does something else than its type says."""
    hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks
    return any(hooks) or "forward" in vars(part)


class LayeredCopies(Copies):
    """Of linear maps with functions of each number between them: gradients go straight into the parameters."""

    def __init__(self, model: FlatModel, G: int, like: Tensor, layers: Sequence[Layer]) -> None:
        super().__init__(model, G, like)
        self.layers = [
            (self.parameters[each.weight], self.parameters[each.bias][:, None] if each.bias else None, each.bend)
            for each in layers
        ]
        self._rooms: dict[tuple[str, int, int], Tensor] = {}

    def predict(self, x: Tensor) -> Tensor:
        return self._predicted(self._forward(x, lambda n, weight: x.new_empty(len(x), x.shape[1], weight.shape[1]))[-1])

    def step(self, x: Tensor, y: Tensor, weights: Tensor, loss: Loss, rate: float) -> None:
        seen = [x, *self._forward(x, lambda n, weight: self._room(f"out {n}", x, weight.shape[1]))]
        g = loss.gradient(self._predicted(seen[-1]), y).view(seen[-1].shape) * weights[..., None]
        for n in reversed(range(len(self.layers))):
            weight, bias, bend = self.layers[n]
            if bend is not None:
                g = bend[1](g, seen[n + 1])
            behind = self._room(f"gradient {n}", x, g.shape[2])
            behind.copy_(g)
            if n:
                g = torch.bmm(behind, weight, out=self._room(f"gradient before {n}", x, weight.shape[2]))
            weight.baddbmm_(behind.mT, seen[n], alpha=-rate)
            if bias is not None:
                bias.sub_(behind.sum(1, keepdim=True), alpha=rate)

    def _forward(self, x: Tensor, room: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        """What each layer gives, [G, B, its width]."""
        outs: list[Tensor] = []
        for n, (weight, bias, bend) in enumerate(self.layers):
            out = room(n, weight)
            if bias is None:
                torch.bmm(x, weight.mT, out=out)
            else:
                out.copy_(bias.expand_as(out)).baddbmm_(x, weight.mT)
            x = out if bend is None else bend[0](out)
            outs.append(x)
        return outs

    def _room(self, name: str, x: Tensor, width: int) -> Tensor:
        """The same memory [G, B, width] in each step."""
        key = name, x.shape[1], width
        if key not in self._rooms:
            self._rooms[key] = aligned(x, len(x), x.shape[1], width)
        return self._rooms[key]

    def _predicted(self, out: Tensor) -> Tensor:
        return out if self.model.C > 1 else out.squeeze(-1)


def copies(model: FlatModel, G: int, like: Tensor) -> Copies:
    """G copies of a network, by the fastest way there is for it."""
    found = layers(model)
    return AnyCopies(model, G, like) if found is None else LayeredCopies(model, G, like, found)
