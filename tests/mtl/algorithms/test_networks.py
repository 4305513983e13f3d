"""Learners of networks on a problem: over every transport, with absent users and seeds, trained as they are sent."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from problems import make as make_problem
from torch import nn

from hmtl.communication import CodedHierarchical, Network, Sums, Uncoded
from hmtl.errors import ConfigError
from hmtl.mtl import (
    Ditto,
    FedAvg,
    FedNova,
    FedU,
    LocalSGD,
    Logistic,
    Mean,
    NetworkAlgorithm,
    Participation,
    Scaffold,
    cnn,
)
from hmtl.testing.topologies import topologies


def linear(d, C):
    return nn.Linear(d, C).double()


def learn(learner, make=linear, seed=0, K=4, solver=None, rounds=0, **options):
    problem = make_problem(seed, K=K, loss=Logistic(), regularizer=Mean(0.1)).problem
    algorithm = NetworkAlgorithm(learner, problem, solver or LocalSGD(0.2), make, seed, **options)
    for round in range(rounds):
        algorithm.step(round)
    return algorithm


@examples(10)
@given(
    t=topologies(max_H=4, max_K=8),
    fraction=st.floats(0.05, 1),
    gone=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_sampled_users_over_every_transport(t, fraction, gone, seed):
    """The loop of McMahan et al. (2017): the mean over those of the m sampled users who are heard, in the same bits."""
    part, models = Participation(fraction=fraction, relays=gone), []
    transports = [(Uncoded(t), "ivs"), (CodedHierarchical(t, Network()), "ivs")]
    transports += [(Sums(t, aggregators=who), "sums") for who in ("server", "all")]
    for communicator, messages in transports:
        algorithm = learn(FedAvg(), seed=seed, K=t.K, participation=part, messages=messages)
        communicator.setup(*algorithm.setup())
        loop, n, each = copy.deepcopy(algorithm), np.array(algorithm.problem.counts), []
        for round in range(4):
            held = algorithm.W.T.numpy().copy()
            users, ivs = loop.users.local_update(round)
            assert len(users) == max(1, np.rint(fraction * t.K))
            away = part.absent_relays(seed, round, t.H)
            outcome = communicator.round(round, algorithm.users, algorithm.aggregator, away)
            if messages == "ivs" and len(outcome.users):
                assert set(outcome.users) <= set(users)
                heard = [users.tolist().index(k) for k in outcome.users]
                want = np.average(ivs.numpy()[heard], axis=0, weights=n[outcome.users])
                got = algorithm.W.T.numpy()
                moved = (got != held).any(axis=1)
                np.testing.assert_allclose(got[moved], np.tile(want, (moved.sum(), 1)), rtol=0, atol=1e-9)
                assert gone or moved.all()
            loop.users.load_state_dict(algorithm.users.state_dict())
            each.append(algorithm.W.clone())
        models.append(torch.stack(each))
    for other in models[1:]:
        assert gone or torch.equal(other, models[0])  # which relays aggregate decides what an absent one loses


@pytest.mark.parametrize("learner", [FedAvg(), FedNova(), Ditto(0.1), FedU()])
def test_the_model_of_all_users(learner):
    """There is one if users predict with a section that is averaged."""
    algorithm = learn(learner, rounds=2)
    if isinstance(learner, Ditto | FedU):
        assert algorithm.common is None
    else:
        assert torch.equal(algorithm.common, algorithm.W[:, 2])


def with_dropout(d, C, share=0.3):
    return nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Dropout(share), nn.Linear(8, C))


@pytest.mark.parametrize("learner", [FedAvg(), FedU(), Scaffold()])
def test_the_seed_decides(learner):
    drawn = torch.random.get_rng_state()
    problem = make_problem(5, loss=Logistic(), regularizer=Mean(0.1)).problem
    first, again, other, plain = (
        NetworkAlgorithm(learner, problem, LocalSGD(), partial(with_dropout, share=share), seed)
        for seed, share in ((1, 0.3), (1, 0.3), (2, 0.3), (1, 0.0))
    )
    for algorithm in (first, again, other, plain):
        for round in range(2):
            algorithm.step(round)
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert torch.equal(first.W, again.W)
    assert not torch.equal(first.W, other.W)
    assert not torch.equal(first.W, plain.W)


class SameOrder(LocalSGD):
    """Visits the rows in the same order in each round."""

    def draw(self, seed, round, *of):
        return super().draw(seed, 0, *of)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_each_round_drops_others(share):
    users = learn(FedAvg(), partial(with_dropout, share=share), solver=SameOrder()).users
    (_, first), (_, second) = users.local_update(0), users.local_update(1)
    assert torch.equal(first, second) == (share == 0)


@pytest.mark.parametrize("learner", [FedAvg(), Ditto(0.1), FedU()])
def test_nobody_takes_part(learner):
    """Then nothing changes, and the round can be measured."""
    algorithm = learn(learner, rounds=1, participation=Participation(schedule=[(1, k) for k in range(4)]))
    before = algorithm.W.clone()
    users, ivs = algorithm.users.local_update(1)
    assert len(users) == len(ivs[:]) == 0
    if not isinstance(learner, FedU):  # which takes a step on the penalty, but no local ones
        algorithm.step(1)
        assert torch.equal(algorithm.W, before)
    assert np.isfinite(algorithm.metrics()["primal"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d, C: nn.Linear(d, C + 1), r"shape \(2, 2\) for 2 rows, not \(2, 1\)"),
        (lambda d, C: nn.Sequential(nn.Linear(d, C), nn.BatchNorm1d(C)), "BatchNorm"),
        (nn.Conv2d, "kernel_size"),
        (nn.Linear(5, 1), "_partial_"),
        (lambda d, C: cnn(d - 2, C), "d=3 is not side²"),
        (lambda d, C: nn.Identity(), "d="),
        (lambda d, C: nn.Linear(d + 1, C), "d="),
    ],
)
def test_refused_models(make, message):
    with pytest.raises(ConfigError, match=message):
        learn(FedAvg(), make)
