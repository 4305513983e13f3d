"""SDCA's passes against a textbook loop in numpy and against each other, and the orders that it draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.errors import ConfigError
from hmtl.mtl import SDCA, Hinge, Logistic, SmoothHinge, Squared
from hmtl.mtl.solvers.sdca import DualSubproblem, applies, compiled_pass, torch_pass


def one_user(X, y, s, b, w, curvature, visits):
    """Return duals and Δv of the textbook loop: the closed form of one coordinate after another."""
    b, u = b.copy(), np.zeros_like(w)
    kappa = curvature * s
    for j in visits:
        norm = X[j] @ X[j]
        new = 1.0 if norm == 0 else np.clip(b[j] + (1 - y[j] * (X[j] @ (w + kappa * u))) / (kappa * norm), 0, 1)
        u += (new - b[j]) * y[j] * X[j]
        b[j] = new
    return b, s * u


@pytest.mark.parametrize("work", [compiled_pass, torch_pass])
@given(
    seed=st.integers(0, 10**6), K=st.integers(1, 5), S=st.integers(1, 30), reduction=st.sampled_from(["mean", "sum"])
)
@examples(15)
def test_against_the_textbook_loop(random_problem, work, seed, K, S, reduction):
    """Unequal users, budgets of up to several passes, and orders that repeat rows."""
    case = random_problem(seed, K=K, reduction=reduction)
    rows, rng = case.problem.rows, case.rng
    b, W = [rng.uniform(size=len(y)) for y in case.y], rng.normal(size=(K, case.d))
    curvature, budgets = rng.uniform(0.1, 5, size=K), rng.integers(0, S + 1, size=K)
    order = [rng.integers(0, n, size=n) for n in rows.counts]
    a = torch.from_numpy(np.concatenate(b)) * rows.y
    before = a.clone()
    start = DualSubproblem(a, torch.from_numpy(W), torch.from_numpy(curvature))
    visits = torch.from_numpy(np.concatenate(order)), torch.from_numpy(budgets)
    new, dV = work(case.problem.loss, rows, start, *visits)
    assert torch.equal(a, before)
    for k, own in enumerate(new.split(rows.counts)):
        visits = [order[k][visit % rows.counts[k]] for visit in range(budgets[k])]
        want, dv = one_user(case.X[k], case.y[k], case.s[k], b[k], W[k], curvature[k], visits)
        np.testing.assert_allclose(own.numpy() * case.y[k], want, rtol=0, atol=1e-9)
        np.testing.assert_allclose(dV[k].numpy(), dv, rtol=0, atol=1e-10 * (1 + abs(W).max() / curvature[k]))


@given(
    seed=st.integers(0, 10**6), counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), passes=st.floats(0.01, 3)
)
@examples(15)
def test_orders(seed, counts, passes):
    """A user visits distinct rows in the first pass, in an order that other users do not change."""
    solver, users = SDCA(passes), range(len(counts))
    order, budgets = solver.draw(seed, 7, users, counts), solver.steps(counts)
    assert budgets.tolist() == [max(1, int(passes * n)) for n in counts]
    budgets = torch.minimum(budgets, torch.tensor(counts))  # further visits repeat the order
    for k, (visits, n, budget) in enumerate(zip(order.split(counts), counts, budgets.tolist(), strict=True)):
        assert len(set(visits[:budget].tolist())) == budget
        assert set(visits[:budget].tolist()) <= set(range(n))
        assert torch.equal(solver.draw(seed, 7, [k], [n]), visits)


def test_orders_differ_between_rounds_users_and_seeds():
    orders = [SDCA(1.0).draw(seed, round, [0, 1], [50, 50]) for seed in (0, 1) for round in (0, 1)]
    rows = {tuple(row.tolist()) for order in orders for row in order.view(2, 50)}
    assert len(rows) == 8


@pytest.mark.parametrize("passes", [0.0, -1.0, float("inf")])
def test_passes_out_of_range(passes):
    with pytest.raises(ConfigError, match="passes"):
        SDCA(passes)


LOSSES = [Hinge(), SmoothHinge(0.3), Squared(), Logistic()]


def work(case, S):
    """Return arguments of a pass: random duals, models and visits for a problem of unequal users."""
    rows, rng, K = case.problem.rows, case.rng, case.K
    a = torch.from_numpy(rng.uniform(size=len(rows.y))) * rows.y
    order = np.concatenate([rng.integers(0, n, size=n) for n in rows.counts])
    numbers = (rng.normal(size=(K, case.d)), rng.uniform(0.1, 5, size=K), order, rng.integers(0, S + 1, size=K))
    W, curvature, *visits = map(torch.from_numpy, numbers)
    return case.problem.loss, rows, DualSubproblem(a, W, curvature), *visits


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@given(
    seed=st.integers(0, 10**6), K=st.integers(1, 5), S=st.integers(0, 25), reduction=st.sampled_from(["mean", "sum"])
)
@examples(6)
def test_the_same_numbers_as_in_torch(random_problem, loss, seed, K, S, reduction):
    job = work(random_problem(seed, K=K, loss=loss, reduction=reduction), S)
    given = [job[2].a, job[2].W, job[2].curvature, *job[3:]]
    before = [tensor.clone() for tensor in given]
    a, dV = torch_pass(*job)
    a2, dV2 = compiled_pass(*job)
    torch.testing.assert_close(a, a2, rtol=0, atol=1e-11)
    torch.testing.assert_close(dV, dV2, rtol=0, atol=1e-11)
    assert all(torch.equal(tensor, old) for tensor, old in zip(given, before, strict=True))


def test_any_layout_of_memory(random_problem):
    loss, rows, start, *visits = work(random_problem(4), 9)
    turned = replace(start, a=torch.stack([start.a, start.a], 1)[:, 0], W=start.W.T.contiguous().T)
    got, want = (compiled_pass(loss, rows, given, *visits) for given in (turned, start))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


class Twice(Hinge):
    """A user's own loss, which counts its steps."""

    steps = 0

    def forward(self, prediction, y):
        return 2 * super().forward(prediction, y)

    def conjugate(self, a, y):
        return 2 * super().conjugate(a / 2, y)

    def coordinate_step(self, a, prediction, y, q):
        self.steps += 1
        return 2 * super().coordinate_step(a / 2, prediction, y, 2 * q)


def test_which_pass_runs(random_problem):
    """The package's losses on a CPU in float64 run compiled, anything else in torch."""
    X = torch.zeros(1, dtype=torch.float64)
    assert all(applies(loss, X) for loss in LOSSES)
    assert not applies(Twice(), X)
    assert not applies(Hinge(), X.float())
    assert not applies(Hinge(), X.to("meta"))
    for loss in LOSSES:
        job = work(random_problem(5, loss=loss), 5)
        (a, dV), (a2, dV2) = SDCA()(*job), compiled_pass(*job)
        assert torch.equal(a, a2)
        assert torch.equal(dV, dV2)
    own = random_problem(5, loss=Twice())
    job = work(own, 5)
    SDCA()(*job)
    assert own.problem.loss.steps == int(job[-1].max())
