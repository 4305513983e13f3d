"""Coupled personal layers: beside modules of torch, over every pair of communicators, and when one section is lost."""

import copy

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import COUNTS, FULL, KINDS, NAMES, C, D, K, deep, descend, several_classes, usual
from torch import nn

from hmtl.communication import BySection, CodedHierarchical, Network, Sums, Uncoded
from hmtl.errors import ConfigError
from hmtl.mtl import Common, FedPer, Graph, LocalSGD, Mean, Participation, TaskRelationship
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, any_r

WEIGHTS = np.array([[0, 1, 0, 2], [1, 0, 0.5, 0], [0, 0.5, 0, 0], [2, 0, 0, 0]])


def coupled(kind, regularizer, seed=1, solver=None, **options):
    problem = several_classes(seed).regularized(regularizer)
    return KINDS[kind](problem, solver or LocalSGD(0.3, 2, FULL, 0.5), deep, seed=seed, coupled=True, **options)


def graph(tmp_path_factory, weights=WEIGHTS):
    path = tmp_path_factory.mktemp("graph") / "weights.csv"
    np.savetxt(path, weights, delimiter=",")
    return Graph(0.3, 0.2, path=path)


@pytest.fixture(scope="module", params=["graph", "mean"])
def fixed(request, tmp_path_factory):
    return graph(tmp_path_factory) if request.param == "graph" else Mean(0.2, 0.1)


@pytest.fixture(scope="module", params=["graph", "mean", "Ω"])
def regularizer(request, tmp_path_factory):
    return {"graph": graph(tmp_path_factory), "mean": Mean(0.2, 0.1), "Ω": Common(0.1)}[request.param]


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(list(KINDS)),
    epochs=st.integers(1, 3),
    low=st.sampled_from([0.3, 1]),
)
def test_every_round_is_that_of_modules(fixed, seed, kind, epochs, low):
    """Shared layers are averaged; then personal ones take a step on the penalty, as long as all local steps on them."""
    problem, part, phases = several_classes(seed), Participation(low=low), 1 + (kind == "fedrep")
    learner = coupled(kind, fixed, seed, LocalSGD(0.1, epochs, FULL), participation=part)
    own, A = usual(kind), learner.problem.regularizer.coupling(K * torch.eye(K).double())
    modules = [deep(D, C) for _ in range(K)]
    for module in modules:
        nn.utils.vector_to_parameters(learner.model.start.clone(), module.parameters())
    for round in range(3):
        before = copy.deepcopy(dict(modules[0].named_parameters()))
        budgets = part.budgets(torch.full((K,), epochs * phases), seed, round)
        for module, task, left in zip(modules, problem.tasks, budgets.tolist(), strict=True):
            if kind == "fedrep":
                descend(module, task, own, left // 2, 0.1)
                descend(module, task, set(NAMES) - set(own), left - left // 2, 0.1)
            else:
                descend(module, task, NAMES, left, 0.1)
        for name in NAMES:
            each = torch.stack([dict(module.named_parameters())[name].detach() for module in modules])
            if name in own:
                new = each - 0.1 * torch.einsum("k,kl,l...->k...", (budgets // phases).double(), A, each)
            else:
                p = torch.tensor(COUNTS).double() / sum(COUNTS)
                new = (before[name].detach() + torch.einsum("k,k...->...", p, each - before[name].detach())).expand_as(
                    each
                )
            for module, w in zip(modules, new, strict=True):
                dict(module.named_parameters())[name].data = w.clone()
        learner.step(round)
        want = torch.stack([nn.utils.parameters_to_vector(module.parameters()) for module in modules], dim=1)
        torch.testing.assert_close(learner.W, want.detach(), rtol=0, atol=1e-11)
    V = torch.stack(
        [torch.cat([w.detach().flatten() for n, w in module.named_parameters() if n in own]) for module in modules]
    )
    losses = [
        nn.functional.cross_entropy(m(t.x_train), t.y_train.long()) for m, t in zip(modules, problem.tasks, strict=True)
    ]
    primal = float(sum(losses).detach()) + 0.5 * float((A * (V @ V.T)).sum())
    assert learner.metrics()["primal"] == pytest.approx(primal, rel=1e-9)


@settings(max_examples=6)
@given(t=topologies(max_H=4, max_K=4), gone=st.sampled_from((0.0, 0.3)), seed=st.integers(0, 1000))
def test_every_pair_of_communicators_gives_the_same_bits(regularizer, t: Topology, gone: float, seed: int):
    """For any users and relays that drop out; and the ledger has the bits of both sections."""
    if t.K != K:
        t = any_r(K=K, H=3, r=2, seed=seed)
    rng, results = np.random.default_rng(seed), []
    always = int(np.flatnonzero(t.G.any(axis=1))[0])
    away = [set(np.flatnonzero(rng.random(t.H) < gone).tolist()) - {always} for _ in range(4)]
    pairs = [(Sums, CodedHierarchical), (Uncoded, Uncoded), (CodedHierarchical, Uncoded)]
    pairs += [(Sums, Sums)] if isinstance(regularizer, Mean) else []
    for pair in pairs:
        shared, personal = ("sums" if kind is Sums else "ivs" for kind in pair)
        part = Participation(low=0.4, dropout=gone)
        learner = coupled("fedrep", regularizer, messages=shared, personal_messages=personal, participation=part)
        parts = [kind(t) for kind in pair]
        communicator, models = BySection(*parts), []
        communicator.setup(*learner.setup())
        for round, absent in enumerate(away):
            outcome = communicator.round(round, learner.users, learner.aggregator, absent)
            assert set(outcome.users.tolist()) <= set(learner.users.shared.active.tolist())
            models.append(learner.W.clone())
        results.append((torch.stack(models), learner.metrics()))
        sizes = [64 * side.numbers for side in learner.users.sections]
        assert [own.V_bits for own in parts] == sizes
        assert communicator.V_bits == sum(sizes)
        for tier in communicator.describe()["loads"]:
            assert communicator.ledger.bits(tier) == tuple(
                map(sum, zip(*(own.ledger.bits(tier) for own in parts), strict=True))
            )
    for models, figures in results[1:]:
        assert torch.equal(models, results[0][0])
        assert figures == results[0][1]


def test_each_section_settles_its_own_updates(regularizer):
    """A user whose shared update counted, and whose personal one got lost, keeps the last personal numbers."""
    learner = coupled("fedper", regularizer)
    learner.step(0)
    shared, personal = learner.users.sections
    before = shared.V.clone()
    users, ivs = shared.local_update(1)
    models = learner.aggregator.shared.update(users, ivs)
    shared.commit(users)
    shared.receive(users, models)
    active, ivs = personal.local_update(1, idle=np.array([2]))
    assert active.tolist() == [0, 1, 3]
    personal.roll_back(active[:1])
    personal.commit(active[1:])
    models = learner.aggregator.personal.update(active[1:], ivs[1:])
    personal.receive(active[1:], models[torch.from_numpy(active[1:])])
    assert (before != shared.V).any(dim=1).tolist() == [False, True, False, True]
    assert not (shared.W[0] != shared.W).any()


def test_a_state_continues(regularizer):
    whole, again = (coupled("fedrep", regularizer, participation=Participation(dropout=0.3)) for _ in range(2))
    for round in range(2):
        whole.step(round)
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert whole.metrics() == again.metrics()
    for learner in (whole, again):
        learner.step(2)
    assert torch.equal(whole.W, again.W)
    assert whole.metrics() == again.metrics()


def test_over_a_file_of_links_the_sections_take_their_time_one_after_the_other(tmp_path):
    path, link = tmp_path / "links.yaml", {"up_bps": 1e6, "down_bps": 1e6, "latency_s": 0.01}
    relays, hosts = (dict.fromkeys(range(3), link), {"all": {**link, "users": list(range(K))}})
    path.write_text(yaml.safe_dump({"server": link, "relays": relays, "hosts": hosts}))
    t, network = any_r(K=K, H=3, r=2, seed=1), Network(links=str(path))
    parts = [Sums(t, network), CodedHierarchical(t, network)]
    learner = coupled("fedper", Mean(0.1), messages="sums", personal_messages="ivs")
    communicator = BySection(*parts)
    communicator.setup(*learner.setup())
    communicator.round(0, learner.users, learner.aggregator)
    assert communicator.seconds() == sum(part.seconds() for part in parts) > max(part.seconds() for part in parts) > 0


def test_refusals(tmp_path_factory):
    from hmtl.communication import InProcess

    class Lossy(InProcess):
        reliable = False

    with pytest.raises(ConfigError, match="engine=in_process"):
        BySection(Sums(any_r(K=K, H=3, r=2, seed=1)), Uncoded(any_r(K=K, H=3, r=2, seed=1), links=Lossy))
    for regularizer in (graph(tmp_path_factory), TaskRelationship(0.1)):
        with pytest.raises(ConfigError, match="communicator=coded"):
            coupled("fedper", regularizer, personal_messages="sums")
    assert FedPer(several_classes().regularized(Mean(0.1)), LocalSGD(), deep).describe().keys().isdisjoint({"lam"})
