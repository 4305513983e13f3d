"""Learners of networks on a problem: the model of all users, seeds, rounds without users, models that are refused."""

from functools import partial

import numpy as np
import pytest
import torch
from problems import make as make_problem
from torch import nn

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


def linear(d, C):
    return nn.Linear(d, C).double()


def learn(learner, make=linear, seed=0, K=4, solver=None, rounds=0, **options):
    problem = make_problem(seed, K=K, loss=Logistic(), regularizer=Mean(0.1)).problem
    algorithm = NetworkAlgorithm(learner, problem, solver or LocalSGD(0.2), make, seed, **options)
    for round in range(rounds):
        algorithm.step(round)
    return algorithm


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
    first = users.local_update(0)[1].clone()
    assert torch.equal(first, users.local_update(1)[1]) == (share == 0)


@pytest.mark.parametrize(("learner", "is_kept"), [(FedAvg(), True), (Scaffold(), False), (Ditto(0.1), False)])
def test_memory_of_rows_is_kept_where_users_keep_none_of_them(learner, is_kept):
    users = learn(learner, participation=Participation(schedule=[(1, 0)])).users
    (_, first), (_, fewer), (_, third) = (users.local_update(round) for round in range(3))
    assert (len(first[:]), len(fewer[:]), len(third[:])) == (4, 3, 4)
    assert (first[:].data_ptr() == fewer[:].data_ptr() == third[:].data_ptr()) == is_kept


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
        (nn.Conv2d, "kernel_size"),
        (nn.Linear(5, 1), "_partial_"),
        (lambda d, C: cnn(d - 2, C), "d=3 is not side²"),
        (lambda d, C: nn.Identity(), "no parameters to train"),
        (lambda d, C: nn.Linear(d + 1, C), "d="),
    ],
)
def test_refused_models(make, message):
    with pytest.raises(ConfigError, match=message):
        learn(FedAvg(), make)
