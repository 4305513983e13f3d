"""FedAvg: the weighted mean of what was heard, and of the last mean for the others."""

import numpy as np
import pytest
import torch

from hmtl.errors import ConfigError
from hmtl.mtl import SDCA, FedAvg, LocalSGD, Logistic, Participation, Ridge, mlp


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
