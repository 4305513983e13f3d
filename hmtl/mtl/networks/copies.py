"""Copies of a network side by side, each with its own parameters: their predictions and their gradients.

G copies, B rows per copy, d features, C outputs, m parameters.
"""

import random
import warnings
from collections.abc import Mapping, Set
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from hmtl.mtl.losses import Loss
from hmtl.mtl.networks.calls import called, scores_of
from hmtl.mtl.networks.flat import BATCH_NORMS, CPU_BYTES, GPU_BYTES, FlatModel, place_of, seeded
from hmtl.mtl.networks.layers import outputs_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CPU_RESULT_BYTES = 16 << 20  # of results that a step keeps for its gradient
LONG = 16  # a matrix with as many times the numbers of its factors has a norm that these give sooner
MAX_SMALL_RESULT = 1 << 14  # numbers in a result whose computation takes no longer than the call of the operation


def group_size(model: FlatModel, minibatch: int, like: Tensor) -> int:
    """Return how many users to compute side by side: the fastest choice for minibatches of `minibatch` numbers.

    It is 1 for convolutions on a CPU, which are slower side by side.
    """
    if like.is_cpu and any(isinstance(part, CONVOLUTIONS) for part in model.module.modules()):
        return 1
    nbytes = (len(model.start) + minibatch) * like.element_size()
    return max(1, min(model.most_at_once, (CPU_BYTES if like.is_cpu else GPU_BYTES) // nbytes))


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
        # a copy of the rows, as a module may write into them
        return torch.stack([self.model(self._placed(g), rows.clone()) for g, rows in enumerate(x)])

    def _placed(self, g: int) -> dict[str, Tensor]:
        """Return the parameters of one copy as the module runs fastest with them."""
        return self.model.placed({name: part[g] for name, part in self.parameters.items()})

    def add_gradients(
        self,
        x: Tensor,
        y: Tensor,
        weights: Tensor,
        loss: Loss,
        to: Mapping[str, Tensor],
        scale: float,
        clip: float | None = None,
    ) -> None:
        """Add scale · Σ_b weight_b ∇ℓ_b to tensors by name of the parameter [G, ...]; these may be the parameters.

        Rows x are [G, B, d], y and weights [G, B]. If a copy's sum has a norm above `clip`, it is shortened to that.
        """

        def minibatch(parameters: dict[str, Tensor], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            losses: Tensor = loss(self.model(parameters, x), y)
            return (weight * losses).sum()

        if len(x) > 1:
            with sdpa_kernel(SDPBackend.MATH):  # the only attention that vmap does not compute copy by copy
                gradients = vmap(grad(minibatch), randomness="different")(self.parameters, x, y, weights)
        else:  # autograd alone is faster than vmap over one copy
            parameters = {
                name: part.detach().requires_grad_(name in self.trained) for name, part in self._placed(0).items()
            }
            trained = {name: part for name, part in parameters.items() if name in self.trained}
            value = minibatch(parameters, x[0], y[0], weights[0])
            each = torch.autograd.grad(value, list(trained.values()), materialize_grads=True)
            gradients = {name: part[None] for name, part in zip(trained, each, strict=True)}
        _add({name: gradients[name] for name in self.trained}, {}, to, scale, clip)


class LayeredCopies(Copies):
    """Copies of a network of linear maps and activations; gradients go straight into the parameters."""

    def predict(self, x: Tensor) -> Tensor:
        return self.model.predictions(outputs_of(self.model.layers, self.parameters, x)[-1])

    def add_gradients(
        self,
        x: Tensor,
        y: Tensor,
        weights: Tensor,
        loss: Loss,
        to: Mapping[str, Tensor],
        scale: float,
        clip: float | None = None,
    ) -> None:
        products, gradients = dict[str, tuple[Tensor, Tensor]](), dict[str, Tensor]()
        outputs = outputs_of(self.model.layers, self.parameters, x)
        inputs = [x, *outputs[:-1]]
        g = loss.gradient(self.model.predictions(outputs[-1]), y).view(outputs[-1].shape) * weights[..., None]
        for n, layer in reversed(list(enumerate(self.model.layers))):
            weight = self.parameters[layer.weight]
            if layer.activation is not None:
                _, backward = layer.activation
                g = backward(g, outputs[n])
            if layer.weight in self.trained:
                products[layer.weight] = g.mT, inputs[n]
            if layer.bias in self.trained and layer.bias is not None:
                gradients[layer.bias] = g.sum(1)
            g = torch.bmm(g, weight) if n else g
        _add(gradients, products, to, scale, clip)


def _add(
    gradients: Mapping[str, Tensor],
    products: Mapping[str, tuple[Tensor, Tensor]],
    to: Mapping[str, Tensor],
    scale: float,
    clip: float | None,
) -> None:
    """Add scale times gradients, see `Copies.add_gradients`, of which some are products [G, o, B] · [G, B, i]."""
    if clip is None or not (gradients or products):
        for name, (a, b) in products.items():
            to[name].baddbmm_(a, b, alpha=scale)
        for name, each in gradients.items():
            to[name].add_(each, alpha=scale)
        return
    sizes = {name: a[0].numel() + b[0].numel() for name, (a, b) in products.items()}
    long = {name: pair for name, pair in products.items() if LONG * sizes[name] < to[name][0].numel()}
    gradients = {**gradients, **{name: torch.bmm(*pair) for name, pair in products.items() if name not in long}}
    norms = [each.reshape(len(each), each[0].numel()).norm(dim=1) for each in gradients.values()]  # a shape may be ()
    for pair in long.values():  # ‖AB‖² = Σ (AᵀA) ∘ (BBᵀ), whose terms may nearly cancel
        a, b = (each.double() for each in pair)
        norms.append((torch.bmm(a.mT, a) * torch.bmm(b, b.mT)).sum((1, 2)).clamp_min(0).sqrt().to(pair[0]))
    share = (clip / (torch.stack(norms).norm(dim=0) + 1e-6)).clamp_max(1)
    for name, (a, b) in long.items():
        to[name].baddbmm_(a * share[:, None, None], b, alpha=scale)
    for name, each in gradients.items():
        to[name].addcmul_(each, share.view(-1, *[1] * (each.ndim - 1)), value=scale)


def copies(model: FlatModel, W: Tensor, trained: Set[str] | None = None) -> Copies:
    """Return copies of a network, see `Copies`, of the fastest kind that it allows."""
    return (LayeredCopies if model.layers else Copies)(model, W, trained)


def trains_side_by_side(model: FlatModel, loss: Loss, x: Tensor, y: Tensor, B: int) -> bool:
    """Return whether `Copies` have the gradients of one module after the other, and are faster for B rows.

    They lack those of modules that mix the rows of a batch, change buffers or attributes, or branch on the values of a
    tensor. Two rows x [2, d] with y [2] show it: the second one has the weight 0, as rows have that only fill a
    minibatch up.

    They are faster if most of the time is spent on calling operations, that is, if their results are small.

    Sets `model.random` and `model.most_at_once`.
    """
    if model.layers or model.buffers or model.types:
        return bool(model.layers)
    module, _ = (model.to_train(each) for each in (model.lent(model.start), model.module))
    if any(isinstance(part, BATCH_NORMS) and part.training for part in module.modules()):
        return False
    before, saved = {name: each.clone() for name, each in module.named_buffers()}, list[Tensor]()

    def keep(result: Tensor) -> Tensor:
        saved.append(result)
        return result

    with seeded(0, "check", device=x.device), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            others = random.getstate(), np.random.get_state()[2]  # type: ignore[index]  # noqa: NPY002
            named = dict(chain(module.named_parameters(), module.named_buffers()))
            places = {name: place_of(each) for name, each in named.items()}
            called(module, model.inputs(x))
            named = dict(chain(module.named_parameters(), module.named_buffers()))
            if (  # vmap would leave its tensors there, which may end the process
                model.keeps_notes
                or places != {name: place_of(each) for name, each in named.items()}
                or not all(torch.equal(named[name], each) for name, each in model.split(model.start).items())
            ):
                return False
            state = _random_state(x.device)
            called(module, model.inputs(x))
            is_other = others != (random.getstate(), np.random.get_state()[2])  # type: ignore[index]  # noqa: NPY002
            model.random = not torch.equal(state, _random_state(x.device))
            for each in (module, model.module) if model.random else ():
                each.eval()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
                predictions = model.predictions(scores_of(called(module, model.inputs(x[:1]))))
            trained = {name: w for name, w in module.named_parameters() if w.requires_grad}
            alone = torch.autograd.grad(loss(predictions, y[:1]).sum(), list(trained.values()))
            sums = torch.zeros(2, len(model.start)).to(model.start)
            networks, parts = copies(model, model.start.repeat(2, 1)), model.split(sums)
            networks.add_gradients(x.expand(2, *x.shape), y.expand(2, 2), y.new_tensor([[1, 0]] * 2), loss, parts, 1)
        except Exception:  # a module may raise anything; training one user after the other will say what is wrong
            return False
    storages = {each.untyped_storage().data_ptr() for each in chain(module.parameters(), module.buffers())}
    results = [each.numel() for each in saved if each.untyped_storage().data_ptr() not in storages]
    if model.start.is_cpu:
        model.most_at_once = CPU_RESULT_BYTES // (sum(results) * B * model.start.element_size() + 1)
    return (
        sum(results) * B <= MAX_SMALL_RESULT * len(results)
        and not is_other
        and not any("performance drop" in str(each.message) for each in caught)
        and all(torch.equal(each, before[name]) for name, each in module.named_buffers())
        and all(
            torch.allclose(parts[name], each.to(sums), rtol=1e-3, atol=1e-5)
            for name, each in zip(trained, alone, strict=True)
        )
    )


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
