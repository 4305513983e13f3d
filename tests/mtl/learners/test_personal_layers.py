"""FedPer, FedRep and LG-FedAvg beside modules of torch, one for each user, whose shared parameters are averaged."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layers import COUNTS, FULL, KINDS, NAMES, C, D, K, deep, descend, several_classes, usual
from networks import OTHER, Tied
from torch import nn

from hmtl.errors import ConfigError
from hmtl.mtl import (
    FedPer,
    FedRep,
    LocalSGD,
    LowRank,
    Mean,
    NetworkAlgorithm,
    Participation,
)


def parameters(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach()


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(list(KINDS)),
    own=st.none() | st.sets(st.sampled_from(NAMES), min_size=1, max_size=5),
    coupled=st.booleans(),
    epochs=st.integers(1, 3),
    part=st.sampled_from([Participation(), Participation(0.2, dropout=0.3), Participation(fraction=0.5)]),
)
def test_every_round_is_that_of_modules(seed, kind, own, coupled, epochs, part):
    """With stragglers, absent users and falling steps; each user keeps its own numbers.

    Coupled ones then take a step on the penalty that is as long as all local steps on them.
    """
    if coupled and (part.fraction < 1 or part.dropout):  # what an absent user sent last counts, see test_coupling.py
        part = Participation(low=0.3)
    problem = several_classes(seed).regularized(Mean(0.2, 0.1))
    learner = KINDS[kind](own and sorted(own), coupled=coupled)
    algorithm = NetworkAlgorithm(learner, problem, LocalSGD(0.1, epochs, FULL, 0.5), deep, seed, part)
    own, A = own or set(usual(kind)), problem.regularizer.coupling(LowRank.multiple(K, K)).dense()
    modules, p = [deep(D, C) for _ in range(K)], torch.tensor(COUNTS).double() / sum(COUNTS)
    for module in modules:
        nn.utils.vector_to_parameters(algorithm.model.start.clone(), module.parameters())
    each = [dict(module.named_parameters()) for module in modules]
    first = copy.deepcopy({name: w.detach() for name, w in each[0].items()})
    phases = [own, set(NAMES) - own] if kind == "fedrep" else [set(NAMES)]
    for round in range(3):
        rate, before = 0.1 / (1 + 0.5 * round), copy.deepcopy(each[0])
        budgets = part.budgets(torch.full((K,), epochs * len(phases)), seed, round)
        for module, task, left in zip(modules, problem.tasks, budgets.tolist(), strict=True):
            for names, steps in zip(phases, (left // 2, left - left // 2) if len(phases) > 1 else (left,), strict=True):
                descend(module, task, names, steps, rate)
        here = budgets > 0
        for name in NAMES:
            new = torch.stack([own[name].detach() for own in each])
            if name not in own:
                start = before[name].detach()
                moved = torch.einsum("k,k...->...", p * here / p[here].sum(), new - start) if here.any() else 0
                new = (start + moved).expand_as(new)
            elif coupled:
                change, lengths = new - first[name], rate * (budgets // len(phases)).double()
                new = new - torch.einsum("k,kl,l...->k...", lengths, A, change)
            for mine, w in zip(each, new, strict=True):
                mine[name].data = w.clone()
        algorithm.step(round)
        torch.testing.assert_close(algorithm.W.T, torch.stack([*map(parameters, modules)]), rtol=0, atol=1e-11)
    losses = [
        nn.functional.cross_entropy(m(t.x_train), t.y_train.long()) for m, t in zip(modules, problem.tasks, strict=True)
    ]
    wrong = [(m(t.x_test).argmax(1) != t.y_test).double().mean() for m, t in zip(modules, problem.tasks, strict=True)]
    V = torch.stack(
        [torch.cat([(w - first[name]).detach().flatten() for name, w in mine.items() if name in own]) for mine in each]
    )
    penalty = 0.5 * float((A * (V @ V.T)).sum()) if coupled else 0.0
    now = algorithm.metrics()
    assert now["test_error"] == pytest.approx(float(sum(wrong)) / K), "the errors of whole models"
    assert now["primal"] == pytest.approx(float(sum(losses).detach()) + penalty, rel=1e-9)


def fedrep(**options):
    return NetworkAlgorithm(FedRep(), several_classes(), LocalSGD(0.3, 1, 4), deep, **options)


def test_each_phase_of_each_round_has_minibatches_of_its_own(monkeypatch):
    """FedRep's two phases would otherwise see the rows in the same order."""
    algorithm, numbers = fedrep(), []
    draw = LocalSGD.draw
    monkeypatch.setattr(LocalSGD, "draw", lambda self, seed, n, *rest: numbers.append(n) or draw(self, seed, n, *rest))
    for round in range(3):
        algorithm.step(round)
    assert len(set(numbers)) == len(numbers) == 6


def test_a_straggler_of_fedrep_trains_the_shared_layers_for_which_it_counts():
    """A user at less than half speed counts in full in the average."""
    users = fedrep(participation=Participation(speeds=[0.2, 0.4, 0.6, 1.0])).users
    active, ivs = users.local_update(0)
    assert active.tolist() == [0, 1, 2, 3]
    assert (ivs != users.held["averaged"].all()).any(1).all()


def personal(make, wanted):
    return NetworkAlgorithm(FedPer(wanted), several_classes(), LocalSGD(), make).describe()["personal"]


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
        assert personal(make, wanted) == sorted(want)
    else:
        with pytest.raises(ConfigError, match="nothing"):
            personal(make, wanted)


def with_adapters(d, C):
    """Each layer as peft leaves it: a frozen map, and two adapters by name."""

    def layer(n, m):
        adapters = {
            f"lora_{each}": nn.ModuleDict({"default": nn.Linear(n, m), "own": nn.Linear(n, m)}) for each in "AB"
        }
        return nn.ModuleDict(adapters | {"base_layer": nn.Linear(n, m).requires_grad_(False)})

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([layer(d, 3), layer(3, C)]).double()

        def forward(self, x):
            for each in self.layers:
                x = sum(part(x) for name in ("lora_A", "lora_B") for part in each[name].values())
            return x

    return Module()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("*lora_B*", lambda name: "lora_B" in name),
        ("*.own", lambda name: ".own." in name),
        (["*.own.bias", "layers.?.lora_A.default"], lambda name: ".own.bias" in name or "lora_A.default" in name),
        ("layers.1", lambda name: ".1." in name),
    ],
)
def test_patterns_choose_adapters(kind, wanted, chosen):
    """For all learners with personal layers: `*` and `?` in names of parameters and of modules."""
    algorithm = NetworkAlgorithm(KINDS[kind](wanted), several_classes(), LocalSGD(0.1), with_adapters)
    algorithm.step(0)
    personal = algorithm.describe()["personal"]
    assert personal == sorted(name for name in algorithm.model.shapes if chosen(name))
    assert all("lora" in name for name in personal)
    for name, w in algorithm.model.split(algorithm.W.T).items():
        assert (name in personal) == bool((w != w[:1]).any())


def test_the_last_layer_may_lack_a_bias():
    def make(d, C):
        return nn.Sequential(nn.Linear(d, 3), nn.GELU(), nn.Linear(3, C, bias=False)).double()

    assert personal(make, None) == ["2.weight"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["1"], "'1' is none of"),  # an activation
        ("0.weights", "'0.weights' is none of.*0.weight"),
        (["4", "40"], "'40'"),
        ("*lora_B*", "lora_B.*pattern"),
        ("*", "nothing shared"),
        ([], "nothing personal"),
        ([0, 2, 4], "nothing shared"),
    ],
)
def test_refusals(wanted, message):
    with pytest.raises(ConfigError, match=message) as error:
        personal(deep, wanted)
    assert "\n" not in str(error.value)
