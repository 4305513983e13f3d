"""Networks side by side: against autograd on modules, and to the same bits however users are grouped."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from hmtl.mtl import CrossEntropy, Hinge, LocalSGD, Logistic, OneVsRest, SmoothHinge, Squared, cnn, mlp
from hmtl.mtl.networks.copies import ALIGNMENT, AnyCopies, LayeredCopies, aligned, apart, copies, group_size, groups
from hmtl.mtl.networks.models import FlatModel
from hmtl.mtl.problem import Rows

D, C = 7, 3


class Focal(CrossEntropy):
    """Somebody's own, made of another."""

    def forward(self, prediction, y):
        loss = super().forward(prediction, y)
        return (1 - torch.exp(-loss)).square() * loss


def tower(d, C, *between, bias=True):
    return nn.Sequential(nn.Linear(d, 6, bias=bias), *between, nn.Linear(6, C, bias=bias))


class Hooked(nn.Module):
    def __init__(self, d, C):
        super().__init__()
        self.linear = nn.Linear(d, C)

    def forward(self, x):
        return self.linear(x)


def hooked(d, C):
    linear = nn.Linear(d, C)
    linear.register_forward_hook(lambda module, of, out: 2 * out)
    return linear


def hooked_flat(d, C):
    network = nn.Sequential(nn.Flatten(), nn.Linear(d, C))
    network[0].register_forward_hook(lambda module, of, out: 2 * out)
    return network


def patched(d, C):
    linear = nn.Linear(d, C)
    linear.forward = lambda x: 2 * nn.functional.linear(x, linear.weight, linear.bias)
    return linear


def shared(d, C):
    middle = nn.Linear(6, 6)
    return nn.Sequential(nn.Linear(d, 6), nn.ReLU(), middle, nn.ReLU(), middle, nn.Linear(6, C))


def frozen(d, C):
    network = mlp(d, C)
    network[0].weight.requires_grad_(False)
    return network


def normed(d, C):
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(d, C)))


def shaped(d, C, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(d, C))


BY_HAND = {
    "linear": nn.Linear,
    "without bias": partial(nn.Linear, bias=False),
    "mlp": mlp,
    "deep": lambda d, C: nn.Sequential(nn.Linear(d, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, C)),
    "bent at the end": lambda d, C: nn.Sequential(nn.Linear(d, 5, bias=False), nn.ReLU(), nn.Linear(5, C), nn.Tanh()),
    "linear twice": tower,
    "flattened": lambda d, C: nn.Sequential(nn.Flatten(), nn.Linear(d, C)),
}
OTHERS = {
    "own": Hooked,
    "hooked": hooked,
    "hooked flat": hooked_flat,
    "patched": patched,
    "shared": shared,
    "frozen": frozen,
    "normed": normed,
    "gelu": lambda d, C: tower(d, C, nn.GELU()),
    "bent twice": lambda d, C: tower(d, C, nn.ReLU(), nn.Tanh()),
    "bent first": lambda d, C: nn.Sequential(nn.ReLU(), nn.Linear(d, C)),
    "nested": lambda d, C: nn.Sequential(nn.Sequential(nn.Linear(d, C))),
}


def flat(make, outputs=C, dtype=torch.float64, d=D, shape=()):
    return FlatModel(lambda d, C, **of: make(d, C, **of).to(dtype), torch.zeros(2, d, dtype=dtype), outputs, 1, shape)


@pytest.mark.parametrize("name", [*BY_HAND, *OTHERS])
def test_which_networks_are_computed_by_hand(name):
    kind = LayeredCopies if name in BY_HAND else AnyCopies
    model = flat((BY_HAND | OTHERS)[name])
    assert type(copies(model, 3, model.start)) is kind


def test_rows_with_a_shape():
    x = torch.zeros(2, 16, dtype=torch.float64)
    model = FlatModel(lambda d, C, shape: shaped(d, C, shape).double(), x, C, 1, (4, 4))
    assert type(copies(model, 2, model.start)) is LayeredCopies
    model = FlatModel(
        lambda d, C, shape: nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(16, C)), x, C, 1, (4, 4)
    )
    assert type(copies(model, 2, model.start)) is AnyCopies


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of weight_norm under vmap, by torch
@pytest.mark.parametrize("name", [*BY_HAND, *OTHERS])
@pytest.mark.parametrize(
    "loss",
    [CrossEntropy(), Focal(), OneVsRest(SmoothHinge()), Logistic(), Squared(), Hinge()],
    ids=lambda loss: loss.name,
)
def test_steps_and_predictions_beside_autograd(name, loss):
    """Steps of three copies and of one by itself, on 4 rows and on 3, and what they predict then."""
    outputs = C if loss.classes else 1
    model, draw = flat((BY_HAND | OTHERS)[name], outputs), torch.Generator().manual_seed(2)
    W = model.start + 0.3 * torch.randn(3, len(model.start), dtype=torch.float64, generator=draw)
    x = torch.randn(2, 3, 4, D, dtype=torch.float64, generator=draw)
    y = (
        torch.randint(outputs, (2, 3, 4), generator=draw)
        if loss.classes
        else torch.tensor([1.0, -1.0, -1.0, 1.0]).expand(2, 3, 4)
    )
    weights, steps = torch.rand(2, 3, 4, dtype=torch.float64, generator=draw), ((0.1, 4), (0.3, 3))
    found = []
    for users in ([0, 1, 2], [1]):
        side_by_side = copies(model, len(users), W)
        side_by_side.load(W[users])
        for t, (rate, B) in enumerate(steps):
            side_by_side.step(*(part[t, users, :B] for part in (x, y.double(), weights)), loss, rate)
        new, predictions = torch.empty_like(W[users]), side_by_side.predict(x[0, users])
        side_by_side.store(new, torch.arange(len(users)))
        found += zip(users, new, predictions, strict=True)
    for k, new, predictions in found:
        parameters = {name: w.clone().requires_grad_() for name, w in model.split(W[k]).items()}
        for t, (rate, B) in enumerate(steps):
            prediction = functional_call(model.module, parameters, (x[t, k, :B],))
            value = loss(prediction, y[t, k, :B]) if loss.classes else loss(prediction[:, 0], y[t, k, :B])
            gradients = torch.autograd.grad((weights[t, k, :B] * value).sum(), list(parameters.values()))
            parameters = {
                name: (w - rate * g).detach().requires_grad_()
                for (name, w), g in zip(parameters.items(), gradients, strict=True)
            }
        want = torch.cat([w.flatten() for w in parameters.values()])
        torch.testing.assert_close(new, want.detach(), rtol=0, atol=1e-12)
        want = functional_call(model.module, parameters, (x[0, k],)).detach()
        torch.testing.assert_close(predictions, want if outputs > 1 else want[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "own"])
def test_shares_of_the_distance(name):
    model, draw = flat((BY_HAND | OTHERS)[name]), torch.Generator().manual_seed(2)
    V, W = torch.randn(2, 3, len(model.start), dtype=torch.float64, generator=draw)
    side_by_side, share = copies(model, 3, W), torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    side_by_side.load(V)
    found = torch.cat([part.flatten(1) for part in side_by_side.away(W, share).values()], dim=1)
    torch.testing.assert_close(found, share.diag() @ (V - W))


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self, d, C):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d, 30), nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, C))
        self.layers[2].weight = self.layers[1].weight

    def forward(self, x):
        for layer in self.layers[:3]:
            x = torch.sigmoid(layer(x))
        return self.layers[3](x)


def images(d, C, share=0.0):
    side = math.isqrt(d)
    lead = nn.Unflatten(-1, (1, side, side)), nn.Conv2d(1, 4, 3, padding=1)
    return nn.Sequential(*lead, nn.GroupNorm(2, 4), nn.GELU(), nn.Dropout(share), nn.Flatten(), nn.Linear(4 * d, C))


NETWORKS = {
    "linear": nn.Linear,
    "mlp": partial(mlp, hidden=30),
    "gelu": lambda d, C: nn.Sequential(nn.Linear(d, 30), nn.GELU(), nn.Linear(30, C)),
    "normed": lambda d, C: nn.Sequential(nn.Linear(d, 30), nn.LayerNorm(30), nn.SiLU(), nn.Linear(30, C)),
    "tied": Tied,
    "dropping": lambda d, C: nn.Sequential(nn.Linear(d, 30), nn.Dropout(0.3), nn.ReLU(), nn.Linear(30, C)),
    "cnn": partial(cnn, channels=2),
    "images": images,
    "dropping images": partial(images, share=0.3),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("d", "batch", "outputs"), [(16, 3, 3), (49, 1, 1), (36, 5, 3), (64, 32, 1), (49, 7, 10)])
def test_no_bit_depends_on_who_else_is_here(make, dtype, d, batch, outputs):
    """Nor on where in memory a user's model lies."""
    draw, rng = torch.Generator().manual_seed(3), np.random.default_rng(d + batch)
    model, K = flat(make, outputs, dtype, d), 9
    counts = (33, 20, 7, 33, 12, 1, 30, 33, 5)
    X, loss = torch.randn(K, 33, d, generator=draw).to(dtype), CrossEntropy() if outputs > 1 else Logistic()
    y = torch.randint(outputs, (K, 33), generator=draw).to(dtype) if outputs > 1 else torch.ones(K, 33, dtype=dtype)
    W = (model.start + 0.1 * torch.randn(K, len(model.start), generator=draw)).to(dtype)
    solver, s = LocalSGD(0.05, epochs=2, batch=batch), 1 / torch.tensor(counts).to(dtype)
    budgets = torch.tensor([1, 2, 9, 2, 0, 1, 2, 9, 5]).minimum(solver.steps(counts))

    def trained(users, group):
        own = tuple(counts[k] for k in users)
        rows = Rows(X[users], y[users], X[users].square().sum(2), own, s[users])
        order, numbers = solver.draw(0, 0, users, own, max(counts)), np.array(users)
        how = {"group": group, "numbers": numbers, "everybody": K, "draws": ("dropout",)}
        return solver.solve(model, loss, rows, W[users], order, budgets[users], 0, **how)

    for group in (0, 2, 4):
        whole = trained(list(range(K)), group)
        assert ((whole != W).any(1) == (budgets > 0)).all()
        for size in (1, 1, 2, 4, 7, 8):
            users = sorted(rng.choice(K, size, replace=False).tolist())
            assert torch.equal(trained(users, group), whole[users])


def test_draws_are_each_users_own_in_each_round():
    """Of users alike in all else, in groups of one and of many, nobody drops what another does, nor the same again."""
    model, X = flat(NETWORKS["dropping"], dtype=torch.float32), torch.ones(4, 2, D)
    rows = Rows(X, torch.ones(4, 2), X.square().sum(2), (2,) * 4, torch.ones(4))
    order, budgets = torch.arange(2).expand(4, 1, 2), torch.ones(4, dtype=torch.int64)
    W = model.start.expand(4, -1)
    found = [
        LocalSGD().solve(model, CrossEntropy(), rows, W, order, budgets, 0, group=group, draws=("dropout", round))
        for group in (1, 2, 4)
        for round in (0, 1)
    ]
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert len(torch.cat([first, second]).unique(dim=0)) == 8


def test_groups():
    def of(numbers, K, size):
        return [
            (each.number, each.users.tolist(), each.here, each.places.tolist())
            for each in groups(np.array(numbers, dtype=np.int64), K, size)
        ]

    assert of(range(5), 5, 2) == [
        (0, [0, 1], slice(0, 2), [0, 1]),
        (1, [2, 3], slice(2, 4), [0, 1]),
        (2, [4, 4], slice(4, 5), [0]),
    ]
    assert of([1, 6, 8], 11, 3) == [(0, [0, 0, 0], slice(0, 1), [1]), (2, [1, 1, 2], slice(1, 3), [0, 2])]
    assert of([10], 11, 4) == [(2, [0, 0, 0], slice(0, 1), [2])]
    assert of([0], 1, 8) == [(0, [0, 0], slice(0, 1), [0])]
    assert of([3, 4], 7, 1) == [(3, [0], slice(0, 1), [0]), (4, [1], slice(1, 2), [0])]
    assert of([], 5, 2) == []


def test_group_sizes(monkeypatch):
    model = flat(nn.Linear, dtype=torch.float32)
    for size, bytes in ((1, 10), (1, len(model.start) * 8), (3, 12 * (len(model.start) + 5) + 3)):
        monkeypatch.setattr("hmtl.mtl.networks.copies.CPU_BYTES", bytes)
        assert group_size(model, 5, model.start) == size
    assert group_size(flat(cnn, dtype=torch.float32, d=16), 5, model.start) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 8, 16, 784])
def test_alignment(dtype, width):
    like = torch.empty(0, dtype=dtype)
    made = aligned(like, 3, 5, width)
    assert made.shape == (3, 5, width)
    assert all(part.data_ptr() % ALIGNMENT == 0 and part.is_contiguous() for part in made)
    rows = apart(5, width, like)
    assert rows * width * like.element_size() % ALIGNMENT == 0
    assert not any(r * width * like.element_size() % ALIGNMENT == 0 for r in range(5, rows))
