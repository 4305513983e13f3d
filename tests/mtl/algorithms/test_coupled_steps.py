"""Coupled sections: steps on the penalty beside numpy, beside averages in one row, over every communicator."""

import copy

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from layers import FULL, K, deep, several_classes
from problems import make as make_problem
from torch import nn

from hmtl.communication import CodedHierarchical, Network, Sums, Uncoded
from hmtl.errors import ConfigError, RangeError
from hmtl.mtl import (
    Common,
    FedPer,
    FedRep,
    FedU,
    Graph,
    LocalSGD,
    Logistic,
    LowRank,
    Mean,
    NetworkAlgorithm,
    Participation,
    TaskRelationship,
)
from hmtl.mtl.algorithms import meaning
from hmtl.mtl.algorithms.coupled_steps import Coupler, StepsOfAll
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, any_r
from hmtl.training.carrier import carrier_of

WEIGHTS = np.array([[0, 1, 0, 2], [1, 0, 0.5, 0], [0, 0.5, 0, 0], [2, 0, 0, 0]])
KINDS = {"Ω": TaskRelationship, "common and Ω": Common}


def graph(tmp_path, lam=0.3, lam2=0.2, weights=WEIGHTS):
    np.savetxt(tmp_path / "weights.csv", weights, delimiter=",")
    return Graph(lam, lam2, path=tmp_path / "weights.csv")


@pytest.fixture(scope="module", params=["graph", "mean", "Ω"])
def regularizer(request, tmp_path_factory):
    if request.param == "graph":
        return graph(tmp_path_factory.mktemp("graph"))
    return Mean(0.2, 0.1) if request.param == "mean" else Common(0.1)


def coupled(learner, regularizer, seed=1, solver=None, make=deep, problem=None, **options):
    problem = (problem or several_classes(seed)).regularized(regularizer)
    solver = solver or LocalSGD(0.3, 2, FULL, 0.5)
    return NetworkAlgorithm(learner, problem, solver, make, seed=seed, **options)


def answer(aggregator, K, users, ivs):
    """The models of all users, which follow from the IVs of some."""
    if not (means := aggregator.hold_meaning()):
        return aggregator.update(users, ivs)
    return means.models(np.arange(K), aggregator.update(users, means.total_of(users, ivs)))


def away(t, gone, seed):
    """The relays that are absent in each of 4 rounds; one of those that hear somebody never is."""
    rng, always = np.random.default_rng(seed), int(np.flatnonzero(t.G.any(axis=1))[0])
    return [set(np.flatnonzero(rng.random(t.H) < gone).tolist()) - {always} for _ in range(4)]


def ring(size, hops=1):
    """Each user next to the one before and the one after, by weights drawn."""
    rng, a = np.random.default_rng(0), np.zeros((size, size))
    for k in range(size):
        for hop in range(1, hops + 1):
            a[k, (k + hop) % size] = rng.uniform(0.1, 2)
    return np.maximum(a, a.T) * (1 - np.eye(size))


@pytest.mark.parametrize("fixed", [Graph(0.2, neighbors=1), Mean(0.2)], ids=["graph", "mean"])
def test_aggregators_take_the_steps_that_messages_name(fixed):
    """Whatever anybody had agreed on."""
    slow, plain = (coupled(FedU(), fixed, participation=Participation(low=low, high=0.6)) for low in (0.2, 0.6))
    usual = slow.solver.steps(slow.problem.counts)
    for round in range(3):
        users, ivs = slow.users.local_update(round)
        steps = ivs[:, -1].long()
        assert torch.equal(steps, slow.participation.budgets(usual, 1, round))
        assert torch.equal(*(answer(each.aggregator, K, users, ivs.clone()) for each in (slow, plain)))


def on_graph(weights, lam, lam2, tmp_path):
    """FedU of as many users as the graph has, coupled by it."""
    problem = make_problem(3, K=len(weights), loss=Logistic()).problem
    regularizer, solver = graph(tmp_path, lam, lam2, weights), LocalSGD(0.05, epochs=2, batch=4)
    return coupled(FedU(), regularizer, 0, solver, nn.Linear, problem)


@pytest.mark.parametrize(("lam", "mean"), [(0.2, False), (2.0, False), (3e8, False), (0.1, True), (20.0, True)])
def test_a_coupling_step_is_a_product(lam, mean, tmp_path):
    """The models are (I − D A)^parts W, by dense matrices, also if A has few entries or there are very many parts."""
    algorithm = on_graph(ring(40), lam, 0.1, tmp_path)
    if mean:  # from sums, if all steps are equally long
        algorithm = coupled(FedU(), Mean(lam, 0.1), 0, LocalSGD(0.1, 3, FULL), nn.Linear, algorithm.problem)
    users, ivs = algorithm.users.local_update(0)
    x, W = algorithm.solver.rate(0) * ivs[:, -1].double(), ivs[:, :-1].double()
    A = algorithm.problem.regularizer.coupling(LowRank.multiple(1, 40)).dense()
    longest = float(x.max() * torch.linalg.eigvalsh(A)[-1])
    parts = int(np.ceil(longest)) if longest >= 2 else 1
    assert (parts == 1) == (lam < 1)
    part = torch.eye(40, dtype=torch.float64) - x[:, None] / parts * A
    want = torch.linalg.matrix_power(part, parts) @ W
    torch.testing.assert_close(answer(algorithm.aggregator, 40, users, ivs).double(), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "lam"),
    [(ring(24), 0.2), (ring(24), 1000.0), (ring(23), 0.2), (ring(12, hops=4), 0.2)],
    ids=["few", "few in many parts", "some", "many"],
)
def test_the_penalty_for_few_and_many_entries(weights, lam, tmp_path):
    """The penalty is exact even if the models are close to each other, where squares cancel."""
    aggregator = on_graph(weights, lam, 1e-9, tmp_path).aggregator
    noise = np.random.default_rng(1).normal(size=(len(weights), 7)).astype(np.float32)
    for W in (noise, 1 + np.float32(1e-3) * noise):
        distances = np.square(W[:, None].astype(float) - W).sum(2)
        want = lam / 4 * (weights * distances).sum() + 5e-10 * np.square(W, dtype=float).sum()
        assert float(aggregator.steps.A.quadratic(torch.from_numpy(W))) == pytest.approx(want, rel=1e-6)


def best_sigma(U, floor):
    """Σ ∝ (UᵀU)^½ with floored eigenvalues, for U [m, K], and the trace 1, in the span of U if m < K."""
    m, K = U.shape
    _, s, V = np.linalg.svd(U)
    floored = np.maximum(np.pad(s, (0, K - len(s))), floor**0.5 * s[0])
    return (V.T * (floored / floored[: min(m, K)].sum())) @ V


@given(
    kind=st.sampled_from(list(KINDS)),
    K=st.integers(2, 6),
    m=st.integers(1, 9),
    lam=st.sampled_from((1e-3, 0.3, 50.0)),
    seed=st.integers(0, 10**6),
)
def test_a_step_is_that_of_numpy(kind, K, m, lam, seed):
    """w′ + X A w′ = w with the best Ω for w, for users with any numbers of steps, and some who were not heard."""
    rng, regularizer = np.random.default_rng(seed), KINDS[kind](lam)
    start, trained = torch.from_numpy(rng.normal(size=m)).expand(K, m), rng.normal(size=(K, m)) + rng.normal(size=m)
    aggregator = Coupler(start, StepsOfAll(regularizer, K, m), LocalSGD(0.5, decay=1.0))
    W, Sigma, w0 = start.numpy(), np.eye(K) / K, 0.0
    for round in range(3):
        heard = np.flatnonzero(rng.random(K) < 0.8)
        steps = np.zeros(K)
        steps[heard] = rng.integers(1, 20, len(heard))
        W = W.copy()
        W[heard] = trained[heard] * (1 + round)
        ivs = torch.from_numpy(np.column_stack([W, steps])[heard])
        models = aggregator.update(heard, ivs).numpy()
        B = np.zeros((K, K))
        if kind != "Ω":
            pull = lam * np.linalg.inv(Sigma).sum(1)
            w0, B = pull @ W / (0.1 + pull.sum()), np.full((K, K), 1 / 0.1)
        Sigma = best_sigma((W - w0).T, 1e-4)
        A = np.linalg.inv(B + Sigma / lam)
        left = models + (0.5 / (1 + round) * steps)[:, None] * (A @ models)
        np.testing.assert_allclose(left, W, rtol=0, atol=1e-5 * np.abs(W).max())
        penalty = float(aggregator.steps.A.quadratic(torch.from_numpy(models)))
        assert penalty == pytest.approx(0.5 * np.trace(models.T @ A @ models), rel=1e-5)
        W = models


@examples(8)
@given(
    t=topologies(max_H=4, max_K=7),
    gone=st.sampled_from((0.0, 0.4)),
    wire=st.sampled_from((None, "float32", "int8")),
    seed=st.integers(0, 1000),
)
def test_every_transport_gives_the_same_bits(t, gone, wire, seed):
    """Also for users and relays that drop out and return: relays hand on Ω with the rest of the state."""
    communicators = [Uncoded(t, wire=wire), CodedHierarchical(t, wire=wire, aggregators="all")]
    if not gone:  # in a round without its aggregators, no IV counts
        communicators.append(CodedHierarchical(t, wire=wire))
    results = []
    for communicator in communicators:
        problem, part = make_problem(seed, K=t.K, loss=Logistic()).problem, Participation(0.4, dropout=gone)
        algorithm = coupled(FedU(), Common(0.1), seed, LocalSGD(0.1), nn.Linear, problem, participation=part)
        for round, absent in enumerate(away(t, gone, seed)):
            communicator.round(round, algorithm.users, algorithm.aggregator, absent)
        results.append((algorithm.W, algorithm.Omega.dense(), algorithm.metrics()))
    for W, Omega, figures in results[1:]:
        assert torch.equal(W, results[0][0])
        assert torch.equal(Omega, results[0][1])
        assert figures == results[0][2]


def test_terms_do_not_depend_on_how_many_users_make_them_at_once(monkeypatch):
    models = []
    for held in (meaning.HELD, 1):
        monkeypatch.setattr(meaning, "HELD", held)
        algorithm = coupled(FedU(), Mean(0.2))
        communicator = Sums(Topology(np.ones((2, K), int)), Network())
        for round in range(2):
            communicator.round(round, algorithm.users, algorithm.aggregator)
        models.append(algorithm.W)
    assert torch.equal(*models)


def test_models_that_are_not_finite_are_an_error():
    algorithm = coupled(FedU(), Common(0.1))
    users, ivs = algorithm.users.local_update(0)
    with pytest.raises(RangeError, match=r"solver\.step"):
        algorithm.aggregator.update(users, ivs / 0)


@examples(6)
@given(t=topologies(max_H=4, max_K=4), gone=st.sampled_from((0.0, 0.3)), seed=st.integers(0, 1000))
def test_rows_with_two_parts_lead_to_the_same_bits_over_any_communicator(regularizer, t: Topology, gone, seed):
    """For any users and relays that drop out; a row has all numbers of the network, and each user sends one."""
    if t.K != K:
        t = any_r(K=K, H=3, r=2, seed=seed)
    results, kinds = [], [Uncoded, CodedHierarchical, *[Sums] * isinstance(regularizer, Mean)]
    for kind in kinds:
        part = Participation(low=0.4, dropout=gone)
        learner = coupled(FedRep(coupled=True), regularizer, participation=part)
        who = {"aggregators": "server" if gone else "all"}  # which relays aggregate decides what an absent one loses
        communicator, models = kind(t, **(who if kind is CodedHierarchical else {})), []
        communicator.setup(*learner.setup())
        for round, absent in enumerate(away(t, gone, seed)):
            communicator.round(round, learner.users, learner.aggregator, absent)
            models.append(learner.W.clone())
        results.append((torch.stack(models), learner.metrics()))
        if kind is not Sums:
            assert communicator.V_bits == 64 * len(learner.W)
    for models, figures in results[1:]:
        assert torch.equal(models, results[0][0])
        assert figures == results[0][1]


@pytest.mark.parametrize("gone", [(), (2,)])
def test_a_part_is_as_if_it_were_alone(regularizer, gone):
    """The averaged numbers move as FedAvg moves them, and the coupled ones as FedU does."""
    algorithm = coupled(FedPer(coupled=True), regularizer)
    users, a = algorithm.users, len(algorithm.users.average.start)
    averages, coupler = copy.deepcopy(algorithm.averages), copy.deepcopy(algorithm.coupler)
    active, rows = users.local_update(0, idle=np.array(gone, np.int64))
    means = [averages.make_meaning(), coupler.make_meaning()]
    parts, expected = [rows[:, :a], rows[:, a:]], []
    for side, means_of, part in zip([averages, coupler], means, parts, strict=True):
        sent = means_of.total_of(active, part) if means_of else part
        models = side.update(active, sent)
        expected.append(means_of.models(np.arange(K), models) if means_of else models)
    models = answer(algorithm.aggregator, K, active, rows)
    assert torch.equal(models, torch.cat([part.to(models) for part in expected], dim=1))


def test_a_state_continues(regularizer):
    whole, again = (
        coupled(FedRep(coupled=True), regularizer, participation=Participation(dropout=0.3)) for _ in range(2)
    )
    for round in range(2):
        whole.step(round)
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert whole.metrics() == again.metrics()
    for learner in (whole, again):
        learner.step(2)
    assert torch.equal(whole.W, again.W)
    assert whole.metrics() == again.metrics()


def test_refusals(tmp_path):
    for regularizer in (graph(tmp_path), TaskRelationship(0.1)):
        with pytest.raises(ConfigError, match="communicator=coded"):
            carrier_of(coupled(FedPer(coupled=True), regularizer), Sums(any_r(K=K, H=3, r=2, seed=1)))
