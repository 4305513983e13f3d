"""FedAvg: the weighted mean of what was heard, and of the last mean for the others."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.utils import vector_to_parameters

from hmtl.errors import ConfigError
from hmtl.mtl import SDCA, FedAvg, FedProx, LocalSGD, Logistic, Participation, Ridge, mlp


@pytest.mark.parametrize("absent", [(), (0,), (1, 2)])
def test_weighted_mean(random_problem, absent: tuple[int, ...]) -> None:
    problem = random_problem(4, loss=Logistic(), regularizer=Ridge(1e9)).problem
    schedule = [(round, user) for round in range(1, 3) for user in absent]
    fedavg = FedAvg(problem, LocalSGD(0.05), mlp, participation=Participation(schedule=schedule))
    for round in range(3):
        last = fedavg.W.T.numpy().astype(float)
        users, ivs = fedavg.users.local_update(round, idle=np.array([3] if round == 2 else [], dtype=np.int64))
        assert torch.equal(fedavg.W.T, torch.from_numpy(last).float()), "a local update has changed the models"
        heard = last.copy()
        heard[users] = ivs.numpy()
        models = fedavg.aggregator.update(users, ivs)
        want = np.average(heard, axis=0, weights=problem.counts)
        np.testing.assert_allclose(models.numpy(), np.tile(want, (4, 1)), rtol=0, atol=1e-6)
        fedavg.users.commit(users)
        fedavg.users.receive(np.arange(4), models)
    assert len(users) == 3 - len(absent)
    assert fedavg.metrics()["primal"] < 4 * np.log(2) * 1.2  # the losses alone, without the regularizer


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
