"""Averages: of users who weigh very different amounts, over every transport, and of changes at the end of the range."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from hmtl.communication import CodedHierarchical, Network, Sums, Uncoded
from hmtl.data import Task
from hmtl.errors import RangeError
from hmtl.mtl import FedAvg, FedNova, LocalSGD, NetworkAlgorithm, PFedMe, Problem, Ridge, Scaffold, Squared
from hmtl.topology import any_r

LEARNERS = {"fedavg": FedAvg(), "scaffold": Scaffold(), "fednova": FedNova(), "pfedme": PFedMe(0.1)}


def linear(d, C):
    return nn.Linear(d, C).double()


def steps_to(targets, counts, learner, make=linear, **options):
    """Users with these numbers of rows, all with x = 1 and the user's target, which a step reaches up to a tenth."""
    tasks = []
    for k, (y, n) in enumerate(zip(targets, counts, strict=True)):
        rows = torch.ones(n, 1, dtype=torch.float64), torch.full((n,), float(y), dtype=torch.float64)
        tasks.append(Task(str(k), *rows, *(each[:1] for each in rows)))
    solver = LocalSGD(0.45, 1, max(counts))
    return NetworkAlgorithm(learner, Problem(tasks, Squared(), Ridge(1.0)), solver, make, **options)


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.slow
def test_a_user_of_100_000_rows_beside_users_of_100(name):
    """Its changes of about 100 are averaged, in the same bits over every transport."""
    counts, targets, models = np.array([100_000, 100, 100, 100]), [100, -50, 20, 30], []
    t = any_r(K=4, H=3, r=2, seed=1)
    secure = Sums(t, secure=True, colluding=0.0)
    for communicator in (Uncoded(t), CodedHierarchical(t, Network()), secure, Sums(t)):
        algorithm = steps_to(targets, counts, LEARNERS[name])
        if setup := algorithm.setup():
            communicator.setup(*setup)
        _, ivs = copy.deepcopy(algorithm).users.local_update(0)
        communicator.round(0, algorithm.users, algorithm.aggregator)
        want = np.average(ivs[:, 0].numpy(), weights=np.ones(4) if name == "pfedme" else counts)
        np.testing.assert_allclose(algorithm.users.held["averaged"].all()[:, 0], want, rtol=1e-9)
        models.append(algorithm.W.clone())
    for other in models[1:]:
        assert torch.equal(other, models[0])


@pytest.mark.parametrize("name", ["fedavg", "pfedme"])
def test_only_changes_above_2_to_the_20_are_out_of_range(name):
    """Whatever the number of users, and of their rows."""
    make = partial(nn.Linear, bias=False, dtype=torch.float64)
    for K, n in ((1, 1), (300, 1), (2, 1000)):
        for change, fits in ((0.9 * 2**20, True), (1.1 * 2**20, False)):
            algorithm = steps_to([change / 0.45] * K, [n] * K, LEARNERS[name], make)
            if fits:
                algorithm.step(0)
                held = algorithm.users.held["averaged"].all()
                assert float(held[0, 0]) == pytest.approx(change, rel=1e-3)
            else:
                with pytest.raises(RangeError, match="data"):
                    algorithm.step(0)
