"""Compiled passes against the one in torch, for any number of threads and layout of memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.mtl import SDCA, Hinge, Logistic, SmoothHinge, Squared
from hmtl.mtl.solvers import compiled
from hmtl.mtl.solvers import sdca as solvers
from hmtl.mtl.solvers.compiled import applies
from hmtl.mtl.solvers.sdca import DualSubproblem

LOSSES = [Hinge(), SmoothHinge(0.3), Squared(), Logistic()]


def work(case, S):
    """Return random duals, models and visits for a problem of unequal users."""
    rows, rng, K = case.problem.rows, case.rng, case.K
    a = torch.zeros_like(rows.y)
    for k, n in enumerate(rows.counts):
        a[k, :n] = torch.from_numpy(rng.uniform(size=n)) * rows.y[k, :n]
    order = np.stack([rng.integers(0, n, size=S) for n in rows.counts])
    numbers = (rng.normal(size=(K, case.d)), rng.uniform(0.1, 5, size=K), order, rng.integers(0, S + 1, size=K))
    return case.problem.loss, rows, a, *map(torch.from_numpy, numbers)


def solved(solver, job):
    """Return what a solver makes of such work."""
    loss, rows, a, W, curvature, order, budgets = job
    return solver.solve(loss, rows, DualSubproblem(a, W, curvature), order, budgets)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@given(
    seed=st.integers(0, 10**6), K=st.integers(1, 5), S=st.integers(0, 25), reduction=st.sampled_from(["mean", "sum"])
)
@settings(max_examples=6)
def test_the_same_numbers_as_in_torch(random_problem, loss, seed, K, S, reduction):
    job = work(random_problem(seed, K=K, loss=loss, reduction=reduction), S)
    before = [tensor.clone() for tensor in job[2:]]
    a, dV = solvers.torch_pass(*job)
    for by_gram in (False, True):
        a2, dV2 = compiled.compiled_pass(*job, by_gram)
        torch.testing.assert_close(a, a2, rtol=0, atol=1e-11)
        torch.testing.assert_close(dV, dV2, rtol=0, atol=1e-11)
    assert all(torch.equal(tensor, old) for tensor, old in zip(job[2:], before, strict=True))


def test_any_layout_of_memory(random_problem):
    loss, rows, a, W, *rest = work(random_problem(4), 9)
    turned = a.T.contiguous().T, W.T.contiguous().T
    for by_gram in (False, True):
        got, want = (compiled.compiled_pass(loss, rows, *given, *rest, by_gram) for given in (turned, (a, W)))
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


def test_more_visits_than_rows(random_problem):
    """The order starts again from its first row."""
    loss, rows, a, W, curvature, *_ = work(random_problem(6), 1)
    once = SDCA(1.0).draw(0, 0, range(len(W)), rows.counts)
    many = torch.stack([line[torch.arange(35) % n] for line, n in zip(once, rows.counts, strict=True)])
    long = torch.tensor([35, 3, 0, 24])
    for way in (solvers.torch_pass, compiled.compiled_pass, lambda *job: compiled.compiled_pass(*job, True)):
        got, want = (way(loss, rows, a, W, curvature, order, long) for order in (once, many))
        assert torch.equal(got[1], want[1]), way


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_same_bits_whatever_the_threads(random_problem, loss, monkeypatch):
    monkeypatch.setattr(compiled, "WORTH_A_THREAD", 1)
    job, results = work(random_problem(3, K=9, d=40, loss=loss), 30), []
    for threads in (1, 2, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append([compiled.compiled_pass(*job, by_gram) for by_gram in (False, True)])
    for passes in results[1:]:
        for (a, dV), (a1, dV1) in zip(passes, results[0], strict=True):
            assert torch.equal(a, a1)
            assert torch.equal(dV, dV1)


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
        for passes, d, by_gram in ((10, 5, True), (10, 2, False), (1, 5, False)):  # 12 rows at most
            job = work(random_problem(5, loss=loss, d=d), 5)
            (a, dV), (a2, dV2) = solved(SDCA(passes), job), compiled.compiled_pass(*job, by_gram)
            assert torch.equal(a, a2)
            assert torch.equal(dV, dV2)
    own = random_problem(5, loss=Twice())
    job = work(own, 5)
    solved(SDCA(), job)
    assert own.problem.loss.steps == int(job[-1].max())


def test_without_a_folder_for_compiled_code(monkeypatch):
    """The installation and the home may be read-only."""
    from numba.core import caching

    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert compiled.jit(lambda x: x + 1)(1) == 2
