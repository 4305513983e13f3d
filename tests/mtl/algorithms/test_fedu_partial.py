"""FedU on a graph: which IVs a model depends on, and the same bits from these alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hmtl.communication import SETUP, CodedPartial, Uncoded
from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.mtl import FedAvg, FedU, Graph, LocalSGD, Logistic, Mean, Participation, Problem, Ridge
from hmtl.testing.topologies import topologies


def tasks(K, d=6, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for k, n in enumerate(rng.integers(3, 12, K)):
        x = torch.from_numpy(rng.normal(size=(n + 2, d)))
        y = torch.from_numpy(rng.choice([-1.0, 1.0], n + 2))
        y[:2] = torch.tensor([1.0, -1.0])
        made.append(Task(str(k), x[:n], y[:n], x[n:], y[n:]))
    return made


class Given(Graph):
    """The graph of these weights."""

    def __init__(self, weights, lam=0.2, lam2=0.1):
        super().__init__(lam, lam2)
        self.weights = torch.from_numpy(weights)

    def facts(self, task):
        return torch.zeros(0, dtype=torch.float64)

    def prepared(self, facts):
        new = Given(self.weights.numpy(), self.lam, self.lam2)
        new.register_buffer("laplacian", self.weights.sum(1).diag() - self.weights)
        return new


def ring(K, hops=1, seed=0):
    """Each user next to the one before and the one after, by weights drawn."""
    rng, a = np.random.default_rng(seed), np.zeros((K, K))
    for k in range(K):
        for hop in range(1, hops + 1):
            a[k, (k + hop) % K] = rng.uniform(0.1, 2)
    return np.maximum(a, a.T) * (1 - np.eye(K))


def fedu(regularizer, K, participation=Participation(), step=0.05, model=nn.Linear):  # noqa: B008
    solver = LocalSGD(step, epochs=2, batch=4, decay=0.1)
    return FedU(Problem(tasks(K), Logistic(), regularizer), solver, model, 3, participation)


def hops(weights, n):
    near = (weights > 0) | np.eye(len(weights), dtype=bool)
    return np.linalg.matrix_power(near.astype(np.int64), n) > 0


def test_needs_are_the_neighbours():
    a = ring(12)
    assert np.array_equal(fedu(Given(a), 12).aggregator.needs(), hops(a, 1))
    assert np.array_equal(fedu(Ridge(0.1), 12).aggregator.needs(), np.eye(12, dtype=bool))


def test_a_long_step_needs_the_neighbours_of_neighbours():
    """In as many hops as it is made in parts, also where stragglers could do with fewer."""
    a = ring(40)
    for participation in (Participation(), Participation(low=0.1, high=0.3)):
        whole = fedu(Given(a, lam=2.0), 40, participation)
        steps = max(int(n) for n in whole.solver.steps(whole.problem.rows.counts))
        parts = int(np.ceil(0.05 * steps * whole.aggregator.descent.steepest))
        assert 2 <= parts < 10
        assert np.array_equal(whole.aggregator.needs(), hops(a, parts))


def test_rows_one_by_one_are_the_product():
    """M = (I − D A)^parts, by dense matrices."""
    for lam in (0.2, 2.0):
        learner = fedu(Given(ring(40), lam), 40)
        coupling = learner.aggregator
        users, ivs = learner.users.local_update(0)
        steps, W = ivs[:, -1].double(), ivs[:, :-1].double()
        length = 0.05 * steps
        longest = 0.05 * coupling.descent.max_steps * coupling.descent.steepest
        parts = int(np.ceil(longest)) if longest >= 2 else 1
        part = torch.eye(40, dtype=torch.float64) - length[:, None] / parts * coupling.descent.A
        expected = torch.linalg.matrix_power(part, parts) @ W
        torch.testing.assert_close(coupling.update(users, ivs).double(), expected, rtol=1e-4, atol=1e-6)


@settings(max_examples=12)
@given(
    K=st.integers(8, 30),
    seed=st.integers(0, 10**6),
    share=st.floats(0, 0.2),
    lam=st.sampled_from((0.01, 0.5, 3.0)),
    rounds=st.integers(0, 5),
)
def test_a_part_has_the_bits_of_the_whole(K, seed, share, lam, rounds):
    """From the needs alone, or with any others known; what nobody knows may be anything, infinite too."""
    rng = np.random.default_rng(seed)
    a = np.triu(rng.uniform(0.1, 2, (K, K)) * (rng.random((K, K)) < share), 1)
    coupling = fedu(Given(a + a.T, lam), K).aggregator
    needs = coupling.needs()
    if needs is None:
        return
    m = coupling.models.shape[1]
    ivs = torch.from_numpy(rng.normal(size=(K, m + 1))).float()
    ivs[:, m] = torch.from_numpy(rng.integers(1, coupling.descent.max_steps + 1, K))
    coupling.rounds = coupling.rounds + rounds
    whole = coupling.update(np.arange(K), ivs.clone())
    of = np.flatnonzero(rng.random(K) < 0.3)
    users = np.flatnonzero(needs[of].any(axis=0) | (rng.random(K) < 0.1))
    assert torch.equal(coupling.part(of, users, ivs[users], rounds), whole[of])
    others = np.setdiff1d(np.arange(K), users)
    ivs[others, :m] = float("nan")
    coupling.rounds = coupling.rounds - 1
    assert torch.equal(coupling.update(np.arange(K), ivs)[of], whole[of])


@pytest.mark.slow
@settings(max_examples=6)
@given(
    t=topologies(max_H=6, max_K=20).filter(lambda t: t.K >= 8),
    seed=st.integers(0, 10**6),
    nearest=st.integers(1, 2),
    lam=st.sampled_from((0.02, 1.0)),
    low=st.sampled_from((0.2, 1.0)),
    wire=st.sampled_from((None, "float16", "int4")),
)
def test_partial_training_is_uncoded_training(t, seed, nearest, lam, low, wire):
    """Set-up and rounds: the same W to the bit, stragglers or not."""
    participation, pair = Participation(low=low), []
    for communicator in (CodedPartial(t, wire=wire), Uncoded(t, wire=wire)):
        learner = fedu(Given(ring(t.K, nearest, seed), lam), t.K, participation)
        if learner.aggregator.needs() is None:
            with pytest.raises(ConfigError, match="communicator=partial"):
                CodedPartial(t).check_learner(learner.aggregator)
            return
        communicator.setup(*learner.setup())
        models = []
        for round in range(3):
            communicator.round(round, learner.users, learner.aggregator)
            models.append(learner.W.clone())
        pair.append(models)
        assert communicator.ledger.bits("users_to_relays", round=SETUP) == (0, 64 * t.K)
    assert all(torch.equal(one, other) for one, other in zip(*pair, strict=True))
    assert not torch.equal(pair[0][0], pair[0][1])


def test_who_needs_all():
    a = np.ones((12, 12)) - np.eye(12)
    problem = Problem(tasks(12), Logistic(), Mean(0.1))
    assert FedU(problem, LocalSGD(), nn.Linear).aggregator.needs() is None
    averaging = FedAvg(problem, LocalSGD(), nn.Linear).aggregator
    assert averaging.needs() is None
    with pytest.raises(NotImplementedError, match="needs the IVs"):
        averaging.part(np.arange(1), np.arange(12), torch.zeros(12, 2), 0)
    assert fedu(Given(a), 12).aggregator.needs() is None
    assert fedu(Given(ring(12), 1000.0), 12).aggregator.needs() is None
    assert fedu(Given(a), 12).setup() is None


@pytest.mark.parametrize(
    "participation", [Participation(dropout=0.1), Participation(schedule=[[3, 1]]), Participation(relays=0.2)]
)
def test_no_stand_ins(participation):
    with pytest.raises(ConfigError, match="participation=full"):
        fedu(Given(ring(12)), 12, participation).aggregator.needs()


def test_stragglers_take_part():
    assert Participation(low=0.1, speeds=[0.1] * 12).complete
    assert fedu(Given(ring(12)), 12, Participation(low=0.1)).aggregator.needs() is not None


@pytest.mark.parametrize(
    ("weights", "lam", "everybody"),
    [
        (ring(24), 0.2, False),  # 3 entries in a row of 24: an eighth
        (ring(24), 1000.0, True),  # each step is split into so many parts that every model depends on all users
        (ring(23), 0.2, False),
        (ring(12, hops=4), 0.2, True),
    ],
    ids=["few", "few in many parts", "some", "many"],
)
def test_the_penalty_for_few_and_many_entries(weights, lam, everybody):
    """The penalty is exact even if the models are close to each other, where squares cancel."""
    aggregator, K = fedu(Given(weights, lam, 1e-9), len(weights)).aggregator, len(weights)
    assert (aggregator.needs() is None) == everybody
    noise = np.random.default_rng(1).normal(size=(K, 7)).astype(np.float32)
    for W in (noise, 1 + np.float32(1e-3) * noise):
        distances = np.square(W[:, None].astype(float) - W).sum(2)
        want = lam / 4 * (weights * distances).sum() + 5e-10 * np.square(W, dtype=float).sum()
        assert float(aggregator.structure.penalty(torch.from_numpy(W))) == pytest.approx(want, rel=1e-6)
