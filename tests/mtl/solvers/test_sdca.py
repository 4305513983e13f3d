"""SDCA against a textbook loop in numpy, and the orders that it draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.errors import ConfigError
from hmtl.mtl import SDCA
from hmtl.mtl.solvers.compiled import compiled_pass
from hmtl.mtl.solvers.sdca import torch_pass


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
@settings(max_examples=15)
def test_against_the_textbook_loop(random_problem, work, seed, K, S, reduction):
    """Unequal users, budgets of up to several passes, and orders that repeat rows."""
    case = random_problem(seed, K=K, reduction=reduction)
    rows, rng = case.problem.rows, case.rng
    b, W = [rng.uniform(size=len(y)) for y in case.y], rng.normal(size=(K, case.d))
    curvature, budgets = rng.uniform(0.1, 5, size=K), rng.integers(0, S + 1, size=K)
    order = np.stack([rng.integers(0, n, size=max(rows.counts)) for n in rows.counts])
    a = torch.zeros_like(rows.y)
    for k in range(K):
        a[k, : len(b[k])] = torch.from_numpy(b[k] * case.y[k])
    before = a.clone()
    given = (torch.from_numpy(x) for x in (W, curvature, order, budgets))
    new, dV = work(case.problem.loss, rows, a, *given)
    assert torch.equal(a, before)
    for k in range(K):
        visits = [order[k, visit % rows.counts[k]] for visit in range(budgets[k])]
        want, dv = one_user(case.X[k], case.y[k], case.s[k], b[k], W[k], curvature[k], visits)
        n = rows.counts[k]
        np.testing.assert_allclose(new[k, :n].numpy() * case.y[k], want, rtol=0, atol=1e-9)
        np.testing.assert_allclose(dV[k].numpy(), dv, rtol=0, atol=1e-10 * (1 + abs(W).max() / curvature[k]))
        assert not new[k, n:].any()


@given(
    seed=st.integers(0, 10**6), counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), passes=st.floats(0.01, 3)
)
@settings(max_examples=15)
def test_orders(seed, counts, passes):
    """A user visits distinct rows in the first pass, in an order that other users do not change."""
    solver, users = SDCA(passes), range(len(counts))
    order, budgets = solver.draw(seed, 7, users, counts), solver.steps(counts)
    assert budgets.tolist() == [max(1, int(passes * n)) for n in counts]
    budgets = torch.minimum(budgets, torch.tensor(counts))  # further visits repeat the order
    for k, (visits, n, budget) in enumerate(zip(order.tolist(), counts, budgets.tolist(), strict=True)):
        assert len(set(visits[:budget])) == budget
        assert set(visits[:budget]) <= set(range(n))
        alone = solver.draw(seed, 7, [k], [n])
        assert alone[0, :budget].tolist() == visits[:budget]


def test_orders_differ_between_rounds_users_and_seeds():
    orders = [SDCA(1.0).draw(seed, round, [0, 1], [50, 50]) for seed in (0, 1) for round in (0, 1)]
    rows = {tuple(row.tolist()) for order in orders for row in order}
    assert len(rows) == 8


@pytest.mark.parametrize("passes", [0.0, -1.0, float("inf")])
def test_passes_out_of_range(passes):
    with pytest.raises(ConfigError, match="passes"):
        SDCA(passes)
