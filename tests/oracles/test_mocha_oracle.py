"""MOCHA against a recorded run of its authors' own code; HMTL_ORACLE names the folder that holds it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hmtl.data import Task
from hmtl.mtl import MOCHA, SDCA, Dense, Hinge, LowRank, Problem, TaskRelationship

FOLDER = os.environ.get("HMTL_ORACLE")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="HMTL_ORACLE is not set")
LAM = 1e-3


class FixedOmega(TaskRelationship):
    """A task relationship that starts from a given Σ."""

    def __init__(self, lam, Sigma):
        super().__init__(lam)
        self.Sigma = torch.from_numpy(Sigma)

    def start(self, K, size):
        Omega = torch.linalg.inv(self.Sigma)
        return Dense((Omega + Omega.T) / 2)


@pytest.fixture(scope="module")
def run():
    assert FOLDER is not None
    with np.load(Path(FOLDER) / "syn10_lam1e-3.npz") as arrays:
        return dict(arrays)


def problem(run, regularizer=None):
    rows = (torch.from_numpy(run[key]).double() for key in ("X", "y", "X_test", "y_test"))
    tasks = [Task(str(k), x, y, x_test, y_test) for k, (x, y, x_test, y_test) in enumerate(zip(*rows, strict=True))]
    return Problem(tasks, Hinge(), regularizer or TaskRelationship(LAM))


def a_round(mocha, round, lost=(), rolls_back=True):
    """Play `step`, while the IVs of some users are lost."""
    users, ivs = mocha.users.local_update(round)
    ivs = ivs[:]
    heard = ~np.isin(users, lost)
    models = mocha.aggregator.update(users[heard], ivs[heard])
    mocha.users.commit(users[heard])
    (mocha.users.roll_back if rolls_back else mocha.users.commit)(users[~heard])
    mocha.users.receive(users, models[users])


def primal(run, W, Sigma):
    """Return the objective, in numpy."""
    loss = sum(np.maximum(0, 1 - y * (X @ w)).mean() for X, y, w in zip(run["X"], run["y"], W.T, strict=True))
    return loss + LAM / 2 * np.trace(W @ np.linalg.inv(Sigma) @ W.T)


@pytest.mark.parametrize("letter", ["A", pytest.param("C", marks=pytest.mark.slow)])
def test_replays_the_authors_run(run, letter):
    """The same order of coordinates gives the same numbers; run C has stragglers."""
    solver = SDCA(1.0)
    mocha = MOCHA(problem(run), solver, omega_every=0, accelerated=False, curvature="max")
    order = run["order" if letter == "A" else "order_stragglers"]
    budgets = np.full((200, 10), 100) if letter == "A" else np.floor(100 * run["budgets"])
    for round in range(200):
        now = mocha.metrics()
        assert now["primal"] == pytest.approx(run[f"{letter}_primal"][round], abs=1e-10)
        assert now["dual"] == pytest.approx(run[f"{letter}_dual"][round], abs=1e-10)
        solver.draw = lambda *of, round=round: torch.from_numpy(order[round].astype(np.int64)).flatten()
        solver.steps = lambda counts, round=round: torch.from_numpy(budgets[round].astype(np.int64))
        a_round(mocha, round)
    np.testing.assert_allclose(mocha.W.numpy(), run[f"{letter}_W"], rtol=0, atol=1e-10)
    if letter == "A":
        np.testing.assert_allclose(mocha.a.view(10, -1).numpy(), run["A_alpha"], rtol=0, atol=1e-10)
        error = mocha.metrics()["test_error"]
        now = mocha.metrics()
        assert [now["primal"], now["dual"], float(error)] == pytest.approx(run["A_final"].ravel().tolist(), abs=1e-10)


def test_omega_update(run):
    Omega = TaskRelationship(LAM, floor=1e-12).update_omega(torch.from_numpy(run["A_W"]), LowRank.multiple(10, 10))
    np.testing.assert_allclose(np.linalg.inv(Omega.dense().numpy()), run["A_Sigma_next"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("coupled", [False, True])
def test_reaches_the_optimum(run, coupled):
    """The optimum is certified after few rounds."""
    Sigma = run["Sigma_coupled"] if coupled else np.eye(10) / 10
    optimum = primal(run, run["W_opt_coupled" if coupled else "W_opt_independent"], Sigma)
    assert optimum == pytest.approx(4.2884046309 if coupled else 4.7630958612, abs=2e-9)
    mocha = MOCHA(problem(run, FixedOmega(LAM, Sigma)), SDCA(), omega_every=0)
    for round in range(30 if coupled else 10):
        mocha.step(round)
        now = mocha.metrics()
        assert now["gap"] >= -1e-9
        if now["gap"] <= 1e-6 * optimum:
            break
    assert now["gap"] <= 1e-6 * optimum
    assert now["primal"] == pytest.approx(primal(run, mocha.W.numpy(), Sigma), abs=1e-10)
    assert now["primal"] == pytest.approx(optimum, rel=1e-6)


@pytest.mark.slow
def test_joint_optimum(run):
    """With a learned Ω, the objective is loss + (λ/2)‖W‖_*², which is convex in W."""
    mocha = MOCHA(problem(run), SDCA(1.0), omega_every=10)
    for round in range(600):
        mocha.step(round)
        assert mocha.metrics()["gap"] >= -1e-9
    W = mocha.W.numpy()
    value = primal(run, W, np.eye(10)) - LAM / 2 * np.sum(W**2) + LAM / 2 * np.linalg.norm(W, "nuc") ** 2
    assert value <= 4.0944027 * 1.001
    assert mocha.metrics()["primal"] == pytest.approx(value, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("rolls_back", [True, False])
def test_lost_ivs(run, rolls_back):
    """Although many IVs are lost, the optimum is reached and certified, but only if users roll back."""
    Sigma = np.eye(10) / 10
    optimum = primal(run, run["W_opt_independent"], Sigma)
    mocha, rng = MOCHA(problem(run, FixedOmega(LAM, Sigma)), SDCA(1.0), omega_every=0), np.random.default_rng(0)
    for round in range(1000):
        lost = np.flatnonzero(rng.random(10) < (0.3 if round < 300 else 0.01))
        a_round(mocha, round, lost, rolls_back)
        if round % 10 == 9:
            now = mocha.metrics()
            assert now["gap"] >= -1e-9
            if now["gap"] <= 1e-6 * optimum:
                break
    reached = now["primal"] == pytest.approx(optimum, rel=1e-6)
    V = mocha.problem.combined(mocha.a).numpy()
    sums = np.allclose(mocha.aggregator.V.numpy().T, V, rtol=0, atol=1e-9)
    assert (reached, sums, now["gap"] <= 1e-6 * optimum) == (rolls_back,) * 3
