"""FedPer, FedRep and LG-FedAvg beside modules of torch, one for each user, whose shared parameters are averaged."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import COUNTS, FULL, KINDS, NAMES, C, D, K, deep, descend, several_classes, usual
from networks import OTHER, Tied
from torch import nn

from hmtl.communication import CodedHierarchical, Network, Sums, Uncoded
from hmtl.errors import ConfigError
from hmtl.mtl import CrossEntropy, FedAvg, FedPer, LGFedAvg, LocalSGD, Participation, Problem, Ridge
from hmtl.topology import any_r


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(list(KINDS)),
    own=st.none() | st.sets(st.sampled_from(NAMES), min_size=1, max_size=5),
    epochs=st.integers(1, 3),
    part=st.sampled_from([Participation(), Participation(0.2, dropout=0.3), Participation(fraction=0.5)]),
)
def test_every_round_is_that_of_modules(seed, kind, own, epochs, part):
    """With stragglers, absent users and falling steps; each user keeps its own numbers."""
    problem, solver = several_classes(seed), LocalSGD(0.3, epochs, FULL, 0.5)
    learner = KINDS[kind](problem, solver, deep, own and sorted(own), seed=seed, participation=part)
    own = own or set(usual(kind))
    modules = [deep(D, C) for _ in range(K)]
    for module in modules:
        nn.utils.vector_to_parameters(learner.model.start.clone(), module.parameters())
    phases = [own, set(NAMES) - own] if kind == "fedrep" else [set(NAMES)]
    p = np.array(COUNTS) / sum(COUNTS)
    for round in range(3):
        before = {name: w.detach().clone() for name, w in modules[0].named_parameters()}
        budgets = part.budgets(torch.full((K,), epochs * len(phases)), seed, round).tolist()
        for k, left in enumerate(budgets):
            for names, steps in zip(phases, (left // 2, left - left // 2) if len(phases) > 1 else (left,), strict=True):
                descend(modules[k], problem.tasks[k], names, steps, 0.3 / (1 + 0.5 * round))
        each = [dict(module.named_parameters()) for module in modules]
        for name in set(NAMES) - own:
            here = [k for k in range(K) if budgets[k]]
            moved = sum(p[k] / p[here].sum() * (each[k][name].detach() - before[name]) for k in here)
            mean = before[name] + moved
            for parameters in each:
                parameters[name].data = mean.clone()
        learner.step(round)
        want = torch.stack([nn.utils.parameters_to_vector(module.parameters()) for module in modules], dim=1)
        torch.testing.assert_close(learner.W, want.detach(), rtol=0, atol=1e-11)
    wrong = [(m(t.x_test).argmax(1) != t.y_test).double().mean() for m, t in zip(modules, problem.tasks, strict=True)]
    assert learner.metrics()["test_error"] == pytest.approx(float(sum(wrong)) / K), "the errors of whole models"


def test_each_phase_of_each_round_has_minibatches_of_its_own(monkeypatch):
    """FedRep's two phases would otherwise see the rows in the same order."""
    learner, numbers = KINDS["fedrep"](several_classes(), LocalSGD(0.3, 1, 4), deep), []
    draw = LocalSGD.draw
    monkeypatch.setattr(LocalSGD, "draw", lambda self, seed, n, *rest: numbers.append(n) or draw(self, seed, n, *rest))
    for round in range(3):
        learner.step(round)
    assert len(set(numbers)) == len(numbers) == 6


def test_a_straggler_of_fedrep_trains_the_shared_layers_for_which_it_counts():
    """A user at less than half speed counts in full in the average."""
    slow = Participation(speeds=[0.2, 0.4, 0.6, 1.0])
    learner = KINDS["fedrep"](several_classes(), LocalSGD(0.3, 3, 4), deep, participation=slow)
    users, ivs = learner.users.local_update(0)
    assert users.tolist() == [0, 1, 2, 3]
    assert (ivs != learner.users.W).any(1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_only_shared_parameters_travel(kind):
    """The ledger counts their bits alone, over any communicator."""
    shared = sum(w.numel() for name, w in deep(D, C).named_parameters() if name not in usual(kind))
    t = any_r(K=K, H=3, r=2, seed=1)
    for communicator, bits in ((Sums(t), 64), (Uncoded(t), 64), (CodedHierarchical(t, Network()), 64)):
        messages = "sums" if isinstance(communicator, Sums) else "ivs"
        learner = KINDS[kind](several_classes(), LocalSGD(0.3), deep, messages=messages)
        communicator.round(0, learner.users, learner.aggregator)
        assert communicator.V_bits == bits * shared
        assert communicator.ledger.bits("users_to_relays").payload == K * bits * shared


@given(network=st.sampled_from(["tied", "gelu", "deep"]), data=st.data())
def test_which_parameters_are_personal(network, data):
    """A wanted name is that of a parameter or of a module, and never a part of one: 1 does not stand for 10."""
    make = {"tied": lambda d, C: Tied(d, C).double(), "gelu": OTHER["gelu"], "deep": deep}[network]
    module = make(D, C)
    names = [name for name, _ in module.named_parameters()]
    modules = [name for name, part in module.named_modules() if name and next(part.parameters(), None) is not None]
    wanted = data.draw(st.lists(st.sampled_from(names + modules), max_size=3))
    within = {name: [name.split(".")[:n] for n in range(1, name.count(".") + 2)] for name in names}
    want = {name for name in names if any(each.split(".") in within[name] for each in wanted)}
    if 0 < len(want) < len(names):
        assert FedPer(several_classes(), LocalSGD(0.3), make, wanted).describe()["personal"] == sorted(want)
    else:
        with pytest.raises(ConfigError, match="nothing"):
            FedPer(several_classes(), LocalSGD(0.3), make, wanted)


def test_the_last_layer_may_lack_a_bias():
    def make(d, C):
        return nn.Sequential(nn.Linear(d, 3), nn.GELU(), nn.Linear(3, C, bias=False)).double()

    assert FedPer(several_classes(), LocalSGD(0.3), make).describe()["personal"] == ["2.weight"]


@pytest.mark.parametrize(
    ("make", "personal", "message"),
    [
        (deep, ["1"], "'1' is none of"),  # an activation
        (deep, "0.weights", "'0.weights' is none of.*0.weight"),
        (deep, ["4", "40"], "'40'"),
        (deep, [], "nothing personal"),
        (deep, [0, 2, 4], "nothing shared"),
        (nn.Linear, None, "nothing shared.*mlp"),
    ],
)
def test_refusals(make, personal, message):
    with pytest.raises(ConfigError, match=message) as error:
        FedPer(several_classes(), LocalSGD(0.3), make, personal)
    assert "\n" not in str(error.value)


def test_with_equal_users_all_is_fedavg():
    """Users with the same rows have the same personal layers, as if these were averaged."""
    task = several_classes().tasks[0]
    problem = Problem([task, task], CrossEntropy(), Ridge(1.0))
    models = []
    for kind in (FedAvg, FedPer, LGFedAvg):
        learner = kind(problem, LocalSGD(0.3, 2, FULL), deep)
        for round in range(3):
            learner.step(round)
        models.append(learner.W)
    for other in models[1:]:
        torch.testing.assert_close(other, models[0], rtol=0, atol=1e-9)
