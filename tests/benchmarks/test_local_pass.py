"""One full local pass of SDCA beside liblinear's, one thread, taking turns; the pass in torch; drawing the orders.

liblinear (in scikit-learn, dual hinge) shrinks its active set, so that its later passes skip rows; what is counted is
what ten passes take beyond two, per pass.
"""

import time
import warnings
from functools import cache

import pytest
import torch
from sklearn.svm import LinearSVC
from timing import medians

from hmtl.data import Task
from hmtl.mtl import MOCHA, SDCA, Hinge, Logistic, Problem, Ridge, SmoothHinge, Squared
from hmtl.mtl.solvers.sdca import DualSubproblem, compiled_pass, torch_pass

SIZES = [(30, 375, 561), (1000, 100, 100)]
LOSSES = {"hinge": Hinge(), "smooth hinge": SmoothHinge(), "squared": Squared(), "logistic": Logistic()}


@cache
def tasks(K, n, d):
    """Labels that no model gets all right, so that neither solver has nothing left to do."""
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(K, n, d, dtype=torch.float64, generator=draw)
    y = torch.sign(torch.linalg.vecdot(X, torch.randn(K, 1, d, dtype=torch.float64, generator=draw)))
    y = torch.where(torch.rand(K, n, generator=draw) < 0.2, -y, y)
    return [Task(str(k), x, label, x[:1], label[:1]) for k, (x, label) in enumerate(zip(X, y, strict=True))]


def pass_of(size, loss, work):
    """A full pass of all users, from the state after a first one."""
    mocha = MOCHA(Problem(tasks(*size), LOSSES[loss], Ridge(0.1)), SDCA(1.0), omega_every=0)
    mocha.step(0)
    rows, users = mocha.problem.rows, mocha.users
    drawn = mocha.solver.draw(0, 1, range(size[0]), rows.counts), mocha.solver.steps(rows.counts)
    start = DualSubproblem(users.a[:, 0], users.W, users.curvature)
    return lambda: work(LOSSES[loss], rows, start, *drawn)


def liblinear(size, passes):
    """All users' tasks, the copy into liblinear's own format included."""
    X = [(task.x_train.numpy(), task.y_train.numpy()) for task in tasks(*size)]
    model = LinearSVC(
        loss="hinge", dual=True, fit_intercept=False, C=10 / size[1], tol=1e-12, max_iter=passes, random_state=0
    )

    def fit():
        with warnings.catch_warnings(action="ignore"):
            for x, y in X:
                model.fit(x, y)

    return fit


def seconds(works, repeats):
    """Sorted seconds of each, taken by turns, without the first."""
    taken = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return {name: sorted(times[1:]) for name, times in taken.items()}


def middle(times):
    return times[len(times) // 2]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_beside_liblinear(size, record):
    ours, two, ten = medians(
        pass_of(size, "hinge", compiled_pass),
        liblinear(size, 2),
        liblinear(size, 10),
        repeats=9,
        clock=time.process_time,
    )
    name = f"local pass, {' × '.join(map(str, size))}, hinge, compiled, one thread, CPU"
    record(name, 1e3 * ours, "ms", "liblinear", (ten - two) / 8 / ours)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_beside_torch(size, loss, record):
    times = seconds({"compiled": pass_of(size, loss, compiled_pass), "torch": pass_of(size, loss, torch_pass)}, 7)
    ours, theirs = middle(times["compiled"]), middle(times["torch"])
    name = f"local pass, {' × '.join(map(str, size))}, {loss}"
    record(f"{name}, compiled, one thread", 1e3 * ours, "ms", "torch", theirs / ours)
    record(f"{name}, torch, one thread", 1e3 * theirs, "ms")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_two_threads(size, record):
    work = pass_of(size, "hinge", compiled_pass)

    def two():
        torch.set_num_threads(2)
        work()
        torch.set_num_threads(1)

    times = seconds({"one": work, "two": two}, 15)
    name = f"local pass, {' × '.join(map(str, size))}, hinge, compiled, two threads"
    record(name, 1e3 * middle(times["two"]), "ms", "one thread", middle(times["one"]) / middle(times["two"]))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_drawing_orders(size, record):
    K, n, _ = size
    times = seconds({"draw": lambda: SDCA(1.0).draw(0, 0, range(K), [n] * K)}, 20)["draw"]
    record(f"orders of a round, {K} users × {n} rows", 1e3 * middle(times), "ms")
