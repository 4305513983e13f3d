"""Local SGD: minibatches, independence of who else is in a process, random streams, bounds of the settings."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import LAYERED, OTHER, images
from torch import nn
from torch.utils.data import TensorDataset

from hmtl.errors import ConfigError
from hmtl.mtl import CrossEntropy, LocalSGD
from hmtl.mtl.networks import flat
from hmtl.mtl.networks.copies import trains_side_by_side
from hmtl.mtl.networks.flat import FlatModel
from hmtl.mtl.problem import Rows
from hmtl.mtl.solvers.networks import NetworkSubproblem

D, C = 16, 3
COUNTS = (33, 20, 7, 12, 1, 5)


def dropping(d, C):
    return nn.Sequential(nn.Linear(d, 30), nn.Dropout(0.3), nn.ReLU(), nn.Linear(30, C))


NETWORKS = {**{name: (LAYERED | OTHER)[name] for name in ("linear", "mlp", "gelu", "tied")}, "images": images}


@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    epochs=st.integers(1, 3),
    batch=st.integers(1, 40),
)
def test_minibatches(seed, counts, epochs, batch):
    """Each pass visits each row once, and all minibatches of a pass but the last are full."""
    solver, users = LocalSGD(0.1, epochs, batch), range(5, 5 + len(counts))
    order, steps = solver.draw(seed, 2, users, counts), solver.steps(counts)
    assert len(order) == steps.sum()
    for k, (n, own) in enumerate(zip(counts, order.split(steps.tolist()), strict=True)):
        full, rest = divmod(n, batch)
        assert (own >= 0).sum(1).tolist() == ([batch] * full + [rest] * (rest > 0)) * epochs
        visited = own[own >= 0].view(epochs, n)
        assert (visited.sort(dim=1).values == torch.arange(n)).all()
        alone = solver.draw(seed, 2, [users[k]], [n])
        assert torch.equal(alone[alone >= 0], visited.flatten())


def test_orders_differ_by_user_round_epoch_and_seed():
    streams = ((0, 0, [0]), (0, 0, [1]), (0, 1, [0]), (1, 0, [0]))
    orders = [LocalSGD(0.1, 2, 30).draw(*stream, [30]).flatten().tolist() for stream in streams]
    assert len({tuple(order[half]) for order in orders for half in (slice(30), slice(30, 60))}) == 8


@pytest.mark.parametrize("name", NETWORKS)
def test_users_do_not_depend_on_each_other(name):
    """The models agree to 1e-6 for any set of users."""
    draw, K = torch.Generator().manual_seed(3), len(COUNTS)
    X, y = torch.randn(K, 33, D, generator=draw), torch.randint(C, (K, 33), generator=draw).float()
    model, s = FlatModel(NETWORKS[name], X[0], C, 1), 1 / torch.tensor(COUNTS)
    assert trains_side_by_side(model, CrossEntropy(), X[0, :2], y[0, :2], 7)
    model.side_by_side = True
    W = model.start + 0.1 * torch.randn(K, len(model.start), generator=draw)
    solver = LocalSGD(0.05, epochs=2, batch=7)
    budgets = torch.tensor([2, 6, 1, 0, 2, 1])

    def trained(users):
        own = tuple(COUNTS[k] for k in users)
        x, labels = (torch.cat([each[k, : COUNTS[k]] for k in users]) for each in (X, y))
        rows = Rows(x, labels, x.square().sum(1), own, s[users].repeat_interleave(torch.tensor(own)))
        anchor = 0.5, torch.zeros(len(users), 1)
        data = [TensorDataset(X[k, : COUNTS[k]], y[k, : COUNTS[k]]) for k in users].__getitem__
        start = NetworkSubproblem(model, W[users], np.array(users), 0, (5, "dropout", 0), data, anchor)
        return solver(CrossEntropy(), rows, start, solver.draw(0, 0, users, own), budgets[users])

    together = trained(list(range(K)))
    assert ((together != W).any(1) == (budgets > 0)).all()
    for users in ([0], [1, 4], [1, 2, 3, 5]):
        torch.testing.assert_close(trained(users), together[users], rtol=1e-6, atol=1e-6)


def test_random_draws_differ_by_user_and_name(monkeypatch):
    """Users draw in groups, from a stream for each group; a group draws the same whichever others are there."""
    x = torch.ones(2, D)
    model = FlatModel(dropping, x, C, 1)
    model.side_by_side = trains_side_by_side(model, CrossEntropy(), x, x[:, 0], 2)
    assert model.random
    monkeypatch.setattr("hmtl.mtl.networks.copies.CPU_BYTES", 2 * 4 * (len(model.start) + 2 * D))  # two users
    rows = Rows(x.repeat(4, 1), torch.ones(8), torch.ones(8), (2,) * 4, torch.ones(8))
    W, order = model.start.expand(4, -1), torch.arange(2).repeat(4, 1)
    models = []
    for stream, users in ((0, np.arange(4)), (1, np.arange(4)), (0, np.arange(2, 6))):
        start = NetworkSubproblem(model, W, users, 0, (0, "dropout", stream), [TensorDataset(x)].__getitem__)
        models.append(LocalSGD(epochs=1)(CrossEntropy(), rows, start, order, torch.ones(4, dtype=torch.int64)))
    assert len(torch.cat(models[:2]).unique(dim=0)) == 8
    assert torch.equal(models[0][2:], models[2][:2])


def test_networks_of_layers_do_not_wait_for_trainings_in_other_threads():
    """They draw nothing, so that they need no seed, of which there is one for all threads."""
    x = torch.ones(2, D)
    model, rows = (
        FlatModel(NETWORKS["mlp"], x, C, 1),
        Rows(x, torch.ones(2), x[:, 0], (2,), torch.ones(2)),
    )
    model.side_by_side = True
    start = NetworkSubproblem(model, model.start[None], np.arange(1), 0, (0, "dropout"), [TensorDataset(x)].__getitem__)
    order, budgets = torch.arange(2)[None], torch.ones(1, dtype=torch.int64)
    with ThreadPoolExecutor(1) as pool, flat._seeding:
        assert pool.submit(LocalSGD(), CrossEntropy(), rows, start, order, budgets).result(60).isfinite().all()


@pytest.mark.parametrize("wrong", [{"step": 0.0}, {"step": float("inf")}, {"decay": -1.0}, {"epochs": 0}, {"batch": 0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LocalSGD(**wrong)


def test_proximal_weights_that_diverge():
    for weight in (-1.0, 2 / 0.03, float("nan")):
        with pytest.raises(ConfigError, match="lam"):
            LocalSGD(0.03).check_proximal("lam", weight)
    LocalSGD(0.03).check_proximal("lam", 60.0)
