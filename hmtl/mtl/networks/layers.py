"""Networks that are linear maps with element-wise activations between them, as a list of layers."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

Activation = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
"""Forward pass of an element-wise function, in place; backward pass from the gradient of the output, and the output."""

ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: (Tensor.relu_, lambda g, out: torch.ops.aten.threshold_backward(g, out, 0)),
    nn.Tanh: (Tensor.tanh_, torch.ops.aten.tanh_backward),
    nn.Sigmoid: (Tensor.sigmoid_, torch.ops.aten.sigmoid_backward),
}


@dataclass(frozen=True)
class Layer:
    """A linear map, by the names of its parameters, and the activation that follows it."""

    weight: str
    bias: str | None
    activation: Activation | None


def outputs_of(layers: tuple[Layer, ...], parameters: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Return each layer's output, [G, B, its width], in G networks with `parameters` [G, ...] for rows x [G, B, d]."""
    outputs: list[Tensor] = []
    for layer in layers:
        weight = parameters[layer.weight].mT
        x = torch.bmm(x, weight) if layer.bias is None else torch.baddbmm(parameters[layer.bias][:, None], x, weight)
        if layer.activation is not None:
            forward, _ = layer.activation
            x = forward(x)
        outputs.append(x)
    return outputs


def layers_of(module: nn.Module, shape: tuple[int, ...]) -> tuple[Layer, ...]:
    """Return the layers of a network on rows of this shape; none if it does not consist of such layers alone.

    The layers have to give the module's own output and gradient on a few random rows, which detects a hook or a
    replaced `forward` that changes them.
    """
    names = {id(w): name for name, w in module.named_parameters() if w.requires_grad}
    parts = list(module) if type(module) is nn.Sequential else [module]
    if parts and type(parts[0]) is nn.Flatten and (parts[0].start_dim, parts[0].end_dim) == (1, -1):
        del parts[0]  # rows are kept as vectors
    elif len(shape) > 1:
        return ()
    layers: list[Layer] = []
    for part in parts:
        if type(part) is nn.Linear and all(id(w) in names for w in (part.weight, part.bias) if w is not None):
            layers.append(Layer(names[id(part.weight)], names.get(id(part.bias)), None))
        elif type(part) in ACTIVATIONS and layers and layers[-1].activation is None:
            layers[-1] = replace(layers[-1], activation=ACTIVATIONS[type(part)])
        else:
            return ()
    if [name for layer in layers for name in (layer.weight, layer.bias) if name] != list(names.values()):
        return ()  # a parameter is shared, or does not belong to a layer
    named = dict(module.named_parameters())
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)).to(named[layers[0].weight])
    with torch.enable_grad():
        expected = module(x)  # the first to say what does not fit
        outputs = outputs_of(tuple(layers), {name: w[None] for name, w in named.items()}, x.flatten(1)[None])
        trained = [named[name] for name in names.values()]
        results = [
            (each, *torch.autograd.grad(each.square().sum(), trained, materialize_grads=True))
            for each in (outputs[-1][0], expected)
        ]
    is_alike = all(torch.allclose(own, each, rtol=1e-3, atol=1e-3) for own, each in zip(*results, strict=True))
    return tuple(layers) if is_alike else ()
