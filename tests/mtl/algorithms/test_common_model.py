"""MOCHA with a common model as a block of its own: another solver's optimum in tens of rounds, with a certificate."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from problems import planted

from hmtl.errors import ConfigError
from hmtl.mtl import MOCHA, SDCA, Common, Hinge, Problem, Squared


@pytest.mark.parametrize(("K", "d"), [(12, 4), (5, 8)], ids=["form", "matrix"])
@pytest.mark.parametrize("labels", [False, True], ids=["squared", "hinge"])
def test_optimum(K: int, d: int, labels: bool):
    """w0 adds K/λ0 to each row of B; 60 rounds suffice all the same."""
    X, y, tasks = planted(K, d, 8, labels)
    regularizer = Common(0.1, 0.1)
    mocha = MOCHA(Problem(tasks, Hinge() if labels else Squared(), regularizer), SDCA(10), omega_every=0)
    W, w0 = cp.Variable((d, K)), cp.Variable((d, 1))
    goal = 0.05 * cp.sum_squares(w0) + 0.05 * K * cp.sum_squares(W - w0 @ np.ones((1, K)))
    for k in range(K):
        fit = X[k] @ W[:, k]
        loss = cp.sum(cp.pos(1 - cp.multiply(y[k], fit))) if labels else 0.5 * cp.sum_squares(fit - y[k])
        goal += loss / 8
    best = cp.Problem(cp.Minimize(goal)).solve(solver=cp.CLARABEL)
    for round in range(60):
        mocha.step(round)
    now = mocha.metrics()
    assert now["dual"] <= best * (1 + 1e-6) <= now["primal"] * (1 + 2e-6)
    assert now["gap"] <= 0.02 * best
    np.testing.assert_allclose(
        mocha.aggregator.center, regularizer.split(mocha.W, mocha.aggregator.Omega)[:, 0], atol=0.05
    )


def test_learning_omega_and_continuing():
    _, _, tasks = planted(20, 4, 6)
    mocha, copy = (MOCHA(Problem(tasks, Squared(), Common(0.1)), SDCA(10), rounds=80) for _ in range(2))
    for round in range(79):
        mocha.step(round)
    copy.load_state_dict(mocha.state_dict())
    for each in (mocha, copy):
        each.step(79)
    assert torch.equal(mocha.W, copy.W)
    now = mocha.metrics()
    assert 0 <= now["gap"] <= 1e-3 * now["primal"]
    assert now["joint_gap"] >= 0
    assert mocha.settled(0.05 * now["primal"])


@pytest.mark.parametrize("lam0", [0.0, -1.0, float("nan")])
def test_strength_of_the_common_model(lam0: float):
    with pytest.raises(ConfigError, match="lam0"):
        Common(0.1, lam0)
