"""Users side by side, against a plain loop over one module: optimizers, ragged users, stragglers, what is added."""

from functools import partial

import numpy as np
import pytest
import torch
from networks import LAYERED, OTHER
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RMSprop
from torch.utils.data import TensorDataset

from hmtl.mtl import CrossEntropy, TorchTrainer
from hmtl.mtl.networks.copies import trains_side_by_side
from hmtl.mtl.networks.flat import FlatModel
from hmtl.mtl.problem import Rows
from hmtl.mtl.solvers.networks import NetworkSubproblem
from hmtl.mtl.solvers.trainers import SEPARABLE

D, C, BATCH, LAM = 9, 3, 4, 0.3
COUNTS = (5, 33, 4, 1, 12, 7)
BUDGETS = (3, 11, 2, 0, 6, 4)
OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": partial(Adam, lr=0.01, amsgrad=True),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
    "fused": partial(AdamW, lr=0.01, weight_decay=0.1, fused=True),
    "rmsprop": partial(RMSprop, lr=0.01, momentum=0.5, centered=True),
    "adagrad": partial(Adagrad, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.1),
    "adadelta": partial(Adadelta, lr=0.5, weight_decay=0.1),
    "adamax": partial(Adamax, lr=0.01),
    "nadam": partial(NAdam, lr=0.01),
}
FURTHER = {
    "plain": {},
    "anchor": {"anchored": True},
    "clip": {"clip": 0.05, "anchored": True},
    "only": {"only": True, "anchored": True},
    "correction": {"corrected": True},
}


def looped(module, start, rows, batches, optimizer, anchor, correction, clip, only):
    """Return the numbers of a module after a plain loop over its minibatches."""
    x, y, s = rows
    vector_to_parameters(start, module.parameters())
    for name, w in module.named_parameters():
        w.requires_grad_(only is None or name in only)
    trained = [w for w in module.parameters() if w.requires_grad]
    sizes = [w.numel() for w in module.parameters()]
    anchors, corrections = (
        [part.view_as(w) for part, w in zip(each.split(sizes), module.parameters(), strict=True)]
        for each in (anchor, correction)
    )
    steps = optimizer(trained)
    for at in batches:
        steps.zero_grad()
        (s[at] * nn.functional.cross_entropy(module(x[at]), y[at].long(), reduction="none")).mean().backward()
        for w, v, c in zip(module.parameters(), anchors, corrections, strict=True):
            if w.requires_grad:
                w.grad += c + (0 if v.isnan().any() else LAM * (w.detach() - v))
        if clip:
            nn.utils.clip_grad_norm_(trained, clip)
        steps.step()
    return parameters_to_vector(module.parameters()).detach()


@pytest.mark.parametrize("further", FURTHER)
@pytest.mark.parametrize("network", ["mlp", "gelu"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("group", [2, 100])
def test_users_side_by_side_take_the_steps_of_a_loop(optimizer, network, further, group, monkeypatch):
    how = FURTHER[further]
    if how.get("corrected") and optimizer != "sgd":
        pytest.skip("corrects gradient steps alone")
    draw, K = torch.Generator().manual_seed(1), len(COUNTS)
    x, y = torch.randn(sum(COUNTS), D, generator=draw), torch.randint(C, (sum(COUNTS),), generator=draw).float()
    s = torch.rand(len(x), generator=draw) + 0.5
    make = (LAYERED | OTHER)[network]
    model = FlatModel(make, x[:2], C, 1)
    model.side_by_side = trains_side_by_side(model, CrossEntropy(), x[:2], y[:2], BATCH)
    assert model.side_by_side
    m = len(model.start)
    monkeypatch.setattr("hmtl.mtl.networks.copies.CPU_BYTES", group * 4 * (m + BATCH * D))
    W, V, corrections = (0.3 * torch.randn(K, m, generator=draw) for _ in range(3))
    only = frozenset(list(model.shapes)[1:]) if how.get("only") else None
    trainer = TorchTrainer(OPTIMIZERS[optimizer], clip=how.get("clip"), epochs=2, batch=BATCH)
    anchor = (LAM, V) if how.get("anchored") else None
    correction = corrections if how.get("corrected") else None
    n = torch.tensor(COUNTS)
    rows = Rows(x, y, x[:, 0], COUNTS, s / n.repeat_interleave(n))
    data = [TensorDataset(*each) for each in zip(x.split(COUNTS), y.long().split(COUNTS), strict=True)].__getitem__
    start = NetworkSubproblem(model, W, np.arange(K), 0, (0, "dropout"), data, anchor, correction, only)
    order = trainer.draw(0, 0, range(K), COUNTS)
    got = trainer(CrossEntropy(), rows, start, order, torch.tensor(BUDGETS))
    module, orders = make(D, C), order.split(trainer.steps(COUNTS).tolist())
    for k, (own, first) in enumerate(zip(orders, rows.starts.tolist(), strict=True)):
        want = looped(
            module,
            W[k].clone(),
            [each[first : first + COUNTS[k]] for each in (x, y, s)],
            [at[at >= 0] for at in own[: BUDGETS[k]]],
            OPTIMIZERS[optimizer],
            V[k] if anchor else torch.full((m,), torch.nan),
            corrections[k] if correction is not None else torch.zeros(m),
            how.get("clip"),
            only,
        )
        torch.testing.assert_close(got[k], want, rtol=3e-5, atol=3e-5)


def test_all_optimizers_that_treat_each_number_alone_are_tested():
    assert {each.func for each in OPTIMIZERS.values()} == set(SEPARABLE)


def test_a_subproblem_needs_the_users_rows():
    """Users who train in turn read them; without any, each would fail in the midst of a round."""
    x = torch.ones(2, D)
    model = FlatModel(LAYERED["linear"], x, C, 1)
    with pytest.raises(TypeError, match="data"):
        NetworkSubproblem(model, model.start[None], np.arange(1), 0, (0, "dropout"))


@pytest.mark.parametrize("alone", [False, True])
def test_ragged_users_drop_different_numbers(alone):
    """A user who has left a group draws no more; those who stay do not share their draws."""
    x, counts = torch.ones(12, D), (2, 8, 2)
    model = FlatModel(lambda d, C: nn.Sequential(nn.Linear(d, 9), nn.Dropout(0.5), nn.Linear(9, C)), x[:2], C, 1)
    model.side_by_side = trains_side_by_side(model, CrossEntropy(), x[:2], x[:2, 0], 2)
    assert model.random
    rows = Rows(x, x[:, 0], x[:, 0], counts, torch.ones(12))
    data = [TensorDataset(each) for each in x.split(counts)].__getitem__
    start = NetworkSubproblem(model, model.start.expand(3, -1), np.arange(3), 0, (0, "dropout"), data)
    trainer = TorchTrainer(partial(Adam, lr=0.1), epochs=1, batch=2)
    budgets = torch.tensor([1, 4, 0 if alone else 1])
    got = trainer(CrossEntropy(), rows, start, trainer.draw(0, 0, range(3), counts), budgets)
    assert len(got.unique(dim=0)) == 3
    assert torch.equal(got[2], model.start) == alone
