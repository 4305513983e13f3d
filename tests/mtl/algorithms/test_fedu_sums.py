"""FedU whose users make their own coupling steps from sums."""

import numpy as np
import pytest
import torch
from torch import nn

from hmtl.mtl import FedU, LocalSGD, Logistic, Mean


def test_fedu_settles_where_the_objective_does(random_problem) -> None:
    """With steps that become short, the gradient of the objective vanishes, though users act on older sums."""
    problem = random_problem(2, regularizer=Mean(0.5, 0.2), loss=Logistic()).problem
    fedu = FedU(problem, LocalSGD(0.5, 1, 100, 0.1), nn.Linear, messages="sums")
    for round in range(400):
        fedu.step(round)
    W = fedu.W.double().T.clone().requires_grad_()
    loss = sum(
        problem.s[k] * problem.loss(x.x_train @ W[k, :-1] + W[k, -1], x.y_train).sum()
        for k, x in enumerate(problem.tasks)
    )
    A = problem.regularizer.coupling(torch.empty(4, 4, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss + 0.5 * (A @ W * W).sum(), W)
    assert gradient.abs().max() < 5e-3
    assert W.abs().max() > 0.05


def test_fedu_makes_the_steps_of_an_aggregator_of_all_models(random_problem) -> None:
    """Where all steps are equally long, and a step takes one part or many."""
    for lam, lam2 in ((0.1, 0.05), (20.0, 0.3)):
        problem = random_problem(2, regularizer=Mean(lam, lam2), loss=Logistic()).problem
        fedu = FedU(problem, LocalSGD(0.1, 3, 100), nn.Linear)
        fedu.step(0)
        users, ivs = fedu.users.local_update(1)
        (x,) = set((0.1 * ivs[:, -1]).tolist())
        A = problem.regularizer.coupling(torch.empty(4, 4, dtype=torch.float64))
        steepest = float(torch.linalg.eigvalsh(A)[-1])
        parts = 1 if x * steepest < 2 else int(np.ceil(x * steepest))
        want = torch.linalg.matrix_power(torch.eye(4) - x / parts * A, parts) @ ivs[:, :-1].double()
        assert (parts == 1) == (lam < 1)
        torch.testing.assert_close(fedu.aggregator.update(users, ivs).double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lam", [1e-3, 1.0, 1e3])
def test_no_coupling_is_too_strong(random_problem, lam: float) -> None:
    fedu = FedU(
        random_problem(2, regularizer=Mean(lam, 0.01), loss=Logistic()).problem,
        LocalSGD(0.1),
        nn.Linear,
        messages="sums",
    )
    for round in range(60):
        fedu.step(round)
    W = fedu.W
    assert W.isfinite().all()
    assert 0.01 < W.abs().max() < 100
    if lam > 100:
        assert (W - W.mean(1, keepdim=True)).norm() < 1e-2 * W.norm()
