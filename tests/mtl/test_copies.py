"""Networks side by side: against autograd on modules, and to the same bits however users are grouped."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call

from hmtl.mtl import CrossEntropy, Hinge, LocalSGD, Logistic, OneVsRest, SmoothHinge, Squared, cnn, mlp
from hmtl.mtl.copies import ALIGNMENT, AnyCopies, LayeredCopies, aligned, apart, copies, groups
from hmtl.mtl.models import FlatModel
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


@pytest.mark.parametrize("name", [*BY_HAND, *OTHERS])
@pytest.mark.parametrize(
    "loss",
    [CrossEntropy(), Focal(), OneVsRest(SmoothHinge()), Logistic(), Squared(), Hinge()],
    ids=lambda loss: loss.name,
)
def test_steps_and_predictions_beside_autograd(name, loss):
    """Two steps of three copies, and what they predict then."""
    outputs = C if loss.classes else 1
    model, draw = flat((BY_HAND | OTHERS)[name], outputs), torch.Generator().manual_seed(2)
    W = model.start + 0.3 * torch.randn(3, len(model.start), dtype=torch.float64, generator=draw)
    x = torch.randn(2, 3, 4, D, dtype=torch.float64, generator=draw)
    y = (
        torch.randint(outputs, (2, 3, 4), generator=draw)
        if loss.classes
        else torch.tensor([1.0, -1.0, -1.0, 1.0]).expand(2, 3, 4)
    )
    weights, rates = torch.rand(2, 3, 4, dtype=torch.float64, generator=draw), (0.1, 0.3)
    side_by_side = copies(model, 3, W)
    side_by_side.load(W)
    for each in zip(x, y.double(), weights, rates, strict=True):
        side_by_side.step(*each[:3], loss, each[3])
    found, predictions = torch.empty_like(W), side_by_side.predict(x[0])
    side_by_side.store(found)
    for k in range(3):
        parameters = {name: w.clone().requires_grad_() for name, w in model.split(W[k]).items()}
        for t, rate in enumerate(rates):
            prediction = functional_call(model.module, parameters, (x[t, k],))
            value = loss(prediction, y[t, k]) if loss.classes else loss(prediction[:, 0], y[t, k])
            gradients = torch.autograd.grad((weights[t, k] * value).sum(), list(parameters.values()))
            parameters = {
                name: (w - rate * g).detach().requires_grad_()
                for (name, w), g in zip(parameters.items(), gradients, strict=True)
            }
        want = torch.cat([w.flatten() for w in parameters.values()])
        torch.testing.assert_close(found[k], want.detach(), rtol=0, atol=1e-12)
        want = functional_call(model.module, parameters, (x[0, k],)).detach()
        torch.testing.assert_close(predictions[k], want if outputs > 1 else want[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make", [nn.Linear, partial(mlp, hidden=5), partial(cnn, channels=2)], ids=["linear", "mlp", "cnn"]
)
@pytest.mark.parametrize(("d", "batch", "outputs"), [(16, 3, 3), (36, 20, 1), (64, 32, 1), (49, 7, 10)])
def test_no_bit_depends_on_the_group(make, d, batch, outputs):
    """Nor on where in memory a user's model lies."""
    draw = torch.Generator().manual_seed(3)
    model, K, n = flat(make, outputs, torch.float32, d), 7, 33
    X, loss = torch.randn(K, n, d, generator=draw), CrossEntropy() if outputs > 1 else Logistic()
    y = torch.randint(outputs, (K, n), generator=draw).float() if outputs > 1 else torch.ones(K, n)
    W = model.start + 0.1 * torch.randn(K, len(model.start), generator=draw)
    solver = LocalSGD(0.05, epochs=1, batch=batch)
    budgets = torch.tensor([1, 2, 9, 2, 0, 1, 2]).clamp_max(int(solver.steps([n])))

    def trained(users):
        rows = Rows(X[users], y[users], X[users].square().sum(2), (n,) * len(users), torch.full((len(users),), 1 / n))
        order = solver.draw(0, 0, users, rows.counts)
        return solver.solve(model, loss, rows, W[users], order, budgets[users], 0, group=3)

    whole = trained(list(range(K)))
    assert not torch.equal(whole, W)
    for parts in ([range(1), range(1, 7)], [range(4), range(4, 7)], [range(2), range(2, 3), range(3, 7)]):
        assert torch.equal(torch.cat([trained(list(part)) for part in parts]), whole)
    alone = trained([2])
    assert torch.equal(alone[0], whole[2])


def test_groups():
    assert [users.tolist() for users in groups(5, 2)] == [[0, 1], [2, 3], [4, 4]]
    assert [users.tolist() for users in groups(1, 8)] == [[0, 0]]
    assert [users.tolist() for users in groups(3, 1)] == [[0], [1], [2]]
    assert list(groups(0, 2)) == []


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
