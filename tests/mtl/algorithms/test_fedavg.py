"""FedAvg: the weighted mean of what was heard."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make
from torch import nn
from torch.nn.utils import vector_to_parameters

from hmtl.communication import CodedHierarchical, Network, Sums, Uncoded
from hmtl.data import Task
from hmtl.errors import ConfigError, RangeError
from hmtl.mtl import (
    SDCA,
    Ditto,
    FedAvg,
    FedPer,
    FedProx,
    FedRep,
    LGFedAvg,
    LocalSGD,
    Logistic,
    Participation,
    PFedMe,
    Problem,
    Ridge,
    Scaffold,
    Squared,
    mlp,
)
from hmtl.testing.topologies import topologies
from hmtl.topology import any_r


def linear(d: int, C: int) -> nn.Module:
    return nn.Linear(d, C).double()


@pytest.mark.parametrize("absent", [(), (0,), (1, 2)])
def test_weighted_mean(random_problem, absent: tuple[int, ...]) -> None:
    problem = random_problem(4, loss=Logistic(), regularizer=Ridge(1e9)).problem
    schedule = [(round, user) for round in range(1, 3) for user in absent]
    fedavg = FedAvg(problem, LocalSGD(0.05), mlp, participation=Participation(schedule=schedule))
    for round in range(3):
        last = fedavg.W.T.numpy().astype(float)
        users, ivs = fedavg.users.local_update(round, idle=np.array([3] if round == 2 else [], dtype=np.int64))
        assert torch.equal(fedavg.W.T, torch.from_numpy(last).float()), "a local update has changed the models"
        models = fedavg.aggregator.update(users, ivs)
        want = np.average(ivs.numpy().astype(float), axis=0, weights=np.array(problem.counts)[users])
        np.testing.assert_allclose(models.numpy(), np.tile(want, (4, 1)), rtol=0, atol=1e-6)
        fedavg.users.commit(users)
        fedavg.users.receive(np.arange(4), models)
    assert len(users) == 3 - len(absent)
    assert fedavg.metrics()["primal"] < 4 * np.log(2) * 1.2  # the losses alone, without the regularizer


@settings(max_examples=10)
@given(
    t=topologies(max_H=4, max_K=8),
    fraction=st.floats(0.05, 1),
    gone=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_sampled_users_over_every_transport(t, fraction, gone, seed) -> None:
    """The loop of McMahan et al. (2017): the mean over those of the m sampled users who are heard, in the same bits."""
    part, models = Participation(fraction=fraction, relays=gone), []
    transports = [(Uncoded(t), "ivs"), (CodedHierarchical(t, Network()), "ivs")]
    transports += [(Sums(t, aggregators=who), "sums") for who in ("server", "all")]
    for communicator, messages in transports:
        problem = make(seed, K=t.K, loss=Logistic()).problem
        learner = FedAvg(problem, LocalSGD(0.2), linear, seed=seed, participation=part, messages=messages)
        communicator.setup(*learner.setup())
        loop, n, each = copy.deepcopy(learner), np.array(problem.counts), []
        for round in range(4):
            held = learner.W.T.numpy().copy()
            users, ivs = loop.users.local_update(round)
            assert len(users) == max(1, np.rint(fraction * t.K))
            outcome = communicator.round(round, learner.users, learner.aggregator, part.absent_relays(seed, round, t.H))
            if messages == "ivs" and len(outcome.users):
                assert set(outcome.users) <= set(users)
                heard = [users.tolist().index(k) for k in outcome.users]
                want = np.average(ivs.numpy()[heard], axis=0, weights=n[outcome.users])
                got = learner.W.T.numpy()
                moved = (got != held).any(axis=1)
                np.testing.assert_allclose(got[moved], np.tile(want, (moved.sum(), 1)), rtol=0, atol=1e-9)
                assert gone or moved.all()
            loop.users.load_state_dict(learner.users.state_dict())
            each.append(learner.W.clone())
        models.append(torch.stack(each))
    for other in models[1:]:
        assert gone or torch.equal(other, models[0])  # which relays aggregate decides what an absent one loses


RELATIVES = {
    "fedavg": FedAvg,
    "fedprox": partial(FedProx, mu=0.1),
    "scaffold": Scaffold,
    "ditto": partial(Ditto, lam=0.1),
    "pfedme": partial(PFedMe, lam=0.1),
    "fedper": partial(FedPer, personal="bias"),
    "fedrep": partial(FedRep, personal="bias"),
    "lg_fedavg": partial(LGFedAvg, personal="bias"),
}


def steps_to(targets, counts) -> tuple[Problem, LocalSGD]:
    """Users with these numbers of rows, all with x = 1 and the user's target, which a step reaches up to a tenth."""
    tasks = []
    for k, (y, n) in enumerate(zip(targets, counts, strict=True)):
        rows = torch.ones(n, 1, dtype=torch.float64), torch.full((n,), float(y), dtype=torch.float64)
        tasks.append(Task(str(k), *rows, *(each[:1] for each in rows)))
    return Problem(tasks, Squared(), Ridge(1.0)), LocalSGD(0.45, 1, max(counts))


FAST = ("fedavg", "scaffold", "fedrep")


@pytest.mark.parametrize(
    "name", [each if each in FAST else pytest.param(each, marks=pytest.mark.slow) for each in RELATIVES]
)
def test_a_user_of_100_000_rows_beside_users_of_100(name: str) -> None:
    """Its changes of about 100 are averaged, in the same bits over every transport."""
    counts, targets, models = np.array([100_000, 100, 100, 100]), [100, -50, 20, 30], []
    t = any_r(K=4, H=3, r=2, seed=1)
    secure = Sums(t, secure=True, colluding=0.0)
    for communicator in (Uncoded(t), CodedHierarchical(t, Network()), secure, Sums(t, aggregators="all")):
        problem, solver = steps_to(targets, counts)
        messages = "sums" if isinstance(communicator, Sums) else "ivs"
        learner = RELATIVES[name](problem, solver, linear, messages=messages)
        if setup := learner.setup():
            communicator.setup(*setup)
        if messages == "ivs":
            _, ivs = copy.deepcopy(learner).users.local_update(0)
        communicator.round(0, learner.users, learner.aggregator)
        want = np.average(ivs[:, 0].numpy(), weights=np.ones(4) if name == "pfedme" else counts)
        np.testing.assert_allclose(learner.users.W[:, 0], want, rtol=1e-9)
        models.append(learner.W.clone())
    for other in models[1:]:
        assert torch.equal(other, models[0])


@pytest.mark.parametrize("name", ["fedavg", "pfedme"])
def test_only_changes_above_2_to_the_20_are_out_of_range(name: str) -> None:
    """Whatever the number of users, and of their rows."""
    for K, n in ((1, 1), (300, 1), (2, 1000)):
        for change, fits in ((0.9 * 2**20, True), (1.1 * 2**20, False)):
            problem, solver = steps_to([change / 0.45] * K, [n] * K)
            learner = RELATIVES[name](problem, solver, partial(nn.Linear, bias=False, dtype=torch.float64))
            if fits:
                learner.step(0)
                assert float(learner.users.W[0, 0]) == pytest.approx(change, rel=1e-3)
            else:
                with pytest.raises(RangeError, match="data"):
                    learner.step(0)


def test_description_and_solver(random_problem) -> None:
    problem = random_problem(4, loss=Logistic()).problem
    described = FedAvg(problem, LocalSGD(), mlp).describe()
    assert described == {"algorithm": "fedavg", "loss": "logistic", "error_measure": "share misclassified"}
    with pytest.raises(ConfigError, match="solver=sgd"):
        FedAvg(problem, SDCA(), mlp)


@pytest.mark.parametrize("learner", [FedAvg, partial(FedProx, mu=0.2)], ids=["fedavg", "fedprox"])
def test_tuned_models_are_those_that_users_trained_from_the_last_average(random_problem, learner) -> None:
    problem = random_problem(4, loss=Logistic()).problem
    schedule = [(2, 1)]
    fedavg = learner(problem, LocalSGD(0.3), mlp, participation=Participation(schedule=schedule))
    for round in range(3):
        held = fedavg.W.T.clone()
        users, ivs = fedavg.users.local_update(round)
        held[users] = ivs
        models = fedavg.aggregator.update(users, ivs)
        fedavg.users.commit(users)
        fedavg.users.receive(np.arange(4), models)
    assert users.tolist() == [0, 2, 3]
    now, errors = fedavg.metrics(), []
    for task, w in zip(problem.tasks, held, strict=True):
        module = copy.deepcopy(fedavg.model.module)
        vector_to_parameters(w, module.parameters())
        errors.append(np.mean(np.sign(module(task.x_test.float()).detach().numpy()[:, 0]) != task.y_test.numpy()))
    assert now["tuned_test_error"] == pytest.approx(np.mean(errors))
    assert now["tuned_test_error_worst"] == pytest.approx(np.max(errors))
    assert now["tuned_test_error"] != now["test_error"]
