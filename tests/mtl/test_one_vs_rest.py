"""Margin losses on several classes: one problem per class, except for the common Ω."""

import numpy as np
import pytest
import torch

from hmtl.data import Task
from hmtl.mtl import (
    MOCHA,
    SDCA,
    FedU,
    Hinge,
    LocalSGD,
    Logistic,
    Mean,
    NetworkAlgorithm,
    Problem,
    SmoothHinge,
    TaskRelationship,
    mlp,
)

K, C, D = 3, 4, 5


def rows(seed):
    rng = np.random.default_rng(seed)
    drawn = []
    for n in (6, 9, 11):
        y = rng.integers(0, C, size=n)
        y[:2] = 0, 1
        drawn.append((rng.normal(size=(n, D)), y))
    return drawn


def tasks(seed, label=None):
    """Return tasks of all classes, or of one class against the rest, ±1."""
    made = []
    for k, (x, y) in enumerate(rows(seed)):
        x, y = torch.from_numpy(x), torch.from_numpy(y if label is None else np.where(y == label, 1.0, -1.0))
        made.append(Task(str(k), x, y, x, y, C if label is None else None))
    return made


@pytest.mark.parametrize("loss", [Hinge(), SmoothHinge(0.5), Logistic()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("accelerated", [True, False])
def test_with_omega_fixed_it_is_one_problem_for_each_class(loss, accelerated):
    """The models have the same bits, unless a restart of the momentum depends on all classes.

    User 0 lacks a class, so that it has labels of one sign only in that problem.
    """
    seed = 1
    assert len(set(rows(seed)[0][1])) < C
    options = {"accelerated": accelerated, "seed": 3}
    solver, regularizer = SDCA(2.0), Mean(0.1, 0.05)
    together = MOCHA(Problem(tasks(seed), loss, regularizer), solver, **options)
    apart = [MOCHA(Problem(tasks(seed, c), loss, regularizer), solver, **options) for c in range(C)]
    rounds = 2 if accelerated else 7
    for learner in (together, *apart):
        for round in range(rounds):
            learner.step(round)
    assert together.W.shape == (C * D, K)
    assert torch.equal(together.W, torch.cat([learner.W for learner in apart]))
    assert torch.equal(together.a, torch.cat([learner.a for learner in apart], dim=1))
    whole, parts = together.metrics(), [learner.metrics() for learner in apart]
    for figure in ("primal", "dual"):
        assert whole[figure] == pytest.approx(sum(part[figure] for part in parts), rel=1e-12)


def test_all_classes_share_a_learned_omega():
    mocha = MOCHA(Problem(tasks(4), Hinge(), TaskRelationship(0.1)), SDCA(), omega_every=3, accelerated=False)
    for round in range(3):
        mocha.step(round)
    W = mocha.aggregator.V.T / (0.1 * K)  # A was λ·K·I
    np.testing.assert_allclose(
        mocha.Omega.dense().numpy(), mocha.problem.regularizer.update_omega(W, mocha.Omega).dense().numpy(), rtol=1e-9
    )
    gaps = []
    for round in range(3, 100):
        mocha.step(round)
        gaps.append(mocha.metrics()["gap"])
    assert min(gaps) >= -1e-9
    assert gaps[-1] < 1e-3


def test_networks():
    fedu = NetworkAlgorithm(FedU(), Problem(tasks(4), Hinge(), Mean(1e-3, 1e-3)), LocalSGD(step=0.1), mlp)
    before = fedu.metrics()
    for round in range(15):
        fedu.step(round)
    now = fedu.metrics()
    assert now["train_error"] < before["train_error"]
    assert now["primal"] < 0.9 * before["primal"]
    scores = [
        fedu.model(fedu.model.split(w), x.float())
        for w, (x, _) in zip(fedu.W.T, [(torch.from_numpy(x), y) for x, y in rows(4)], strict=True)
    ]
    wrong = [(s.argmax(1).numpy() != y).mean() for s, (_, y) in zip(scores, rows(4), strict=True)]
    assert now["train_error"] == pytest.approx(np.mean(wrong))
