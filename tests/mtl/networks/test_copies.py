"""Copies of a network side by side, against autograd on one module at a time."""

import pytest
import torch
from networks import LAYERED, OTHER, images
from torch import nn
from torch.func import functional_call

from hmtl.mtl import CrossEntropy, Hinge, Logistic, OneVsRest, SmoothHinge, Squared, cnn
from hmtl.mtl.networks.copies import Copies, LayeredCopies, copies, group_size
from hmtl.mtl.networks.flat import FlatModel

D, C = 7, 3


class Focal(CrossEntropy):
    """A user's own loss that inherits from one with a gradient by hand."""

    def forward(self, prediction, y):
        loss = super().forward(prediction, y)
        return (1 - torch.exp(-loss)).square() * loss


def flat(make, outputs=C, dtype=torch.float64, d=D):
    return FlatModel(lambda d, C: make(d, C).to(dtype), torch.zeros(2, d, dtype=dtype), outputs, 1)


LOSSES = [CrossEntropy(), Focal(), OneVsRest(SmoothHinge()), Logistic(), Squared(), Hinge()]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch, about weight_norm under vmap
@pytest.mark.parametrize("name", [*LAYERED, *OTHER])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize(("clip", "long"), [(None, 16), (0.1, 16), (0.1, 0), (1e9, 0)])
def test_steps_and_predictions(name, loss, clip, long, monkeypatch):
    """Two steps of three copies and of one alone, of all parameters or of one; on 4 rows and then on 3.

    Gradients of linear maps are clipped by their own norm, or by that of their factors.
    """
    monkeypatch.setattr("hmtl.mtl.networks.copies.LONG", long)
    outputs = C if loss.classes else 1
    model, draw = flat((LAYERED | OTHER)[name], outputs), torch.Generator().manual_seed(2)
    start = model.start + 0.3 * torch.randn(3, len(model.start), dtype=torch.float64, generator=draw)
    x = torch.randn(2, 3, 4, D, dtype=torch.float64, generator=draw)
    if loss.classes:
        y = torch.randint(outputs, (2, 3, 4), generator=draw)
    else:
        y = torch.tensor([1.0, -1.0, -1.0, 1.0]).expand(2, 3, 4)
    weights, steps = torch.rand(2, 3, 4, dtype=torch.float64, generator=draw), ((0.1, 4), (0.3, 3))
    first, *_, last = [*model.shapes] * 2
    for users, trained in (([0, 1, 2], None), ([1], None), ([0, 2], {first}), ([1], {last})):
        W = start[users]
        networks = copies(model, W, trained)
        assert type(networks) is (LayeredCopies if name in LAYERED else Copies)
        for t, (rate, B) in enumerate(steps):
            rows = (each[t, users, :B] for each in (x, y.double(), weights))
            networks.add_gradients(*rows, loss, networks.parameters, -rate, clip)
        predictions = networks.predict(x[0, users])
        for k, new, prediction in zip(users, W, predictions, strict=True):
            parameters = {name: w.clone().requires_grad_() for name, w in model.split(start[k]).items()}
            for t, (rate, B) in enumerate(steps):
                p = functional_call(model.module, parameters, (x[t, k, :B],))
                value = loss(p if loss.classes else p[:, 0], y[t, k, :B])
                gradients = torch.autograd.grad((weights[t, k, :B] * value).sum(), list(parameters.values()))
                for (part, w), g in zip(parameters.items(), gradients, strict=True):
                    w.grad = g if trained is None or part in trained else torch.zeros_like(w)
                if clip:
                    torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
                parameters = {name: (w - rate * w.grad).detach().requires_grad_() for name, w in parameters.items()}
            want = torch.cat([w.flatten() for w in parameters.values()]).detach()
            torch.testing.assert_close(new, want, rtol=0, atol=1e-12)
            want = functional_call(model.module, parameters, (x[0, k],)).detach()
            torch.testing.assert_close(prediction, want if outputs > 1 else want[:, 0], rtol=0, atol=1e-12)


def test_group_sizes(monkeypatch):
    model = flat(nn.Linear, dtype=torch.float32)
    for size, bytes in ((1, 10), (1, len(model.start) * 8), (3, 12 * (len(model.start) + 5) + 3)):
        monkeypatch.setattr("hmtl.mtl.networks.copies.CPU_BYTES", bytes)
        assert group_size(model, 5, model.start) == size


@pytest.mark.parametrize("make", [cnn, images])
def test_alone_where_copies_are_slow(make):
    model = flat(make, d=16)
    assert group_size(model, 5, model.start) == 1
