"""Learners of which some users come back with an older state: both sides agree again, and go on to the optimum."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from changed import Changed, losing
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from learners import LEARNERS
from problems import make
from torch import nn

from hmtl.communication import CodedHierarchical, Sums, Uncoded
from hmtl.mtl import (
    MOCHA,
    SDCA,
    CoCoA,
    Common,
    Graph,
    Hinge,
    LocalSGD,
    Logistic,
    Mean,
    NetworkAlgorithm,
    Squared,
    TaskRelationship,
)
from hmtl.topology import any_r

K, H = 6, 3
slow = partial(pytest.param, marks=pytest.mark.slow)  # of paths that other cases walk, too


def network(d, C):
    return nn.Linear(d, C, bias=False).double()


def mixed(users, new, old, back):
    """The state of all users, of which some are back from an older one; numbers of all users are the largest."""

    def rows(name, now):
        at = torch.from_numpy(users.places(name, back))
        return now.clone().index_copy(0, at, old[name][at])

    return {name: rows(name, now) if now.ndim else torch.maximum(now, old[name]) for name, now in new.items()}


def state_of(algorithm):
    users = algorithm.users.state_dict() | algorithm.users.derived()
    return copy.deepcopy({"users": users, "aggregator": algorithm.aggregator.state_dict()})


class Run:
    """A learner and its communicator, over links that lose some messages at first."""

    def __init__(self, make_algorithm, make_communicator, lost, seed):
        def links(ledger):
            self.links = Changed(ledger)
            self.links.change = losing(lost, seed)
            return self.links

        self.algorithm, self.communicator, self.round = make_algorithm(), make_communicator(links=links), 0

    def play(self, rounds):
        for _ in range(rounds):
            self.communicator.round(self.round, self.algorithm.users, self.algorithm.aggregator)
            self.round += 1

    def take(self, state, round):
        """Go on from a reconciled state as a new process does, over links that lose nothing."""
        users = {name: state["users"][name] for name in self.algorithm.users.state_dict()}
        self.algorithm.load_state_dict(state | {"users": users})
        self.communicator.attach(self.algorithm.users, self.algorithm.aggregator)
        self.links.change, self.round = lambda node, message: message, round


def came_back(make_algorithm, make_communicator, lost, rounds, back, seed):
    """A run in which some users come back in the state of an earlier round."""
    run, anew = (Run(make_algorithm, make_communicator, lost, seed) for _ in range(2))
    run.play(rounds[0])
    old = state_of(run.algorithm)["users"]
    run.play(rounds[1])
    new = state_of(run.algorithm)
    state = run.algorithm.reconciled({**new, "users": mixed(run.algorithm.users, new["users"], old, back)})
    now = run.algorithm.state_dict()
    assert all(torch.equal(each, new["aggregator"][name]) for name, each in now["aggregator"].items())
    anew.take(state, run.round)
    return anew


COMMUNICATORS = {
    "coded": lambda t, wire, links: CodedHierarchical(t, wire=wire, aggregators="all", links=links),
    "uncoded": lambda t, wire, links: Uncoded(t, wire=wire, links=links),
    "sums": lambda t, wire, links: Sums(t, wire=wire if wire in ("int4", "int8") else None, links=links),
}
draws = {
    "seed": st.integers(0, 10**6),
    "wire": st.sampled_from((None, "float32", "int4", "int8")),
    "lost": st.sampled_from((0.0, 0.2)),
    "rounds": st.tuples(st.integers(0, 6), st.integers(1, 6)),
    "back": st.sets(st.integers(0, K - 1), min_size=1).map(sorted).map(np.array),
}


def figures(case, mocha):
    """P and D of what users hold, from their own rows."""
    a, W = case.by_user(mocha.a), mocha.W.numpy()
    regularizer, Omega = mocha.problem.regularizer, mocha.Omega
    margins = [y * (x @ W[:, k]) for k, (x, y) in enumerate(zip(case.X, case.y, strict=True))]
    V = np.stack([s * a[k] @ x for k, (s, x) in enumerate(zip(case.s, case.X, strict=True))], axis=1)
    losses = sum(s * np.maximum(0, 1 - m).sum() for s, m in zip(case.s, margins, strict=True))
    conjugates = -sum(s * (a[k] * y).sum() for k, (s, y) in enumerate(zip(case.s, case.y, strict=True)))
    A, B = (M.dense().numpy() for M in (regularizer.coupling(Omega), regularizer.inverse(Omega)))
    return losses + 0.5 * np.trace(W @ A @ W.T), -conjugates - 0.5 * np.trace(V @ B @ V.T), V


@pytest.mark.parametrize(
    ("regularizer", "kind"),
    [
        ("learned", "coded"),
        ("rescaled", "uncoded"),
        slow("task", "coded"),
        slow("mean", "coded"),
        ("mean", "sums"),
        slow("common", "uncoded"),
        slow("cocoa", "sums"),
        slow("cocoa", "uncoded"),
        slow("averaging", "sums"),
    ],
)
@examples(4)
@given(**draws)
def test_duals(seed, wire, kind, lost, rounds, back, regularizer):
    """V is Σ a x, models are V B, the gap is that of P and D from the rows, and ends where it would have ended."""
    learned = regularizer in ("learned", "rescaled")
    loss = Squared() if regularizer == "rescaled" else Hinge()
    parts = {"mean": Mean(1.0), "common": Common(0.5)}
    case = make(seed, K=K, regularizer=parts.get(regularizer, TaskRelationship(1.0)), loss=loss)
    options = {"messages": "sums" if kind == "sums" else "ivs", "seed": seed}
    if regularizer in ("cocoa", "averaging"):
        learner = partial(CoCoA, lam=1.0, adding=regularizer == "cocoa")
    else:
        learner = partial(MOCHA, omega_every=2 if learned else 0, rounds=sum(rounds) if learned else None)
    t = any_r(K=K, H=H, r=2, seed=seed)
    run = came_back(
        lambda: learner(case.problem, SDCA(1.0), **options),
        partial(COMMUNICATORS[kind], t, wire),
        lost,
        rounds,
        back,
        seed,
    )
    mocha = run.algorithm
    held = mocha.state_dict()["aggregator"]
    V = figures(case, mocha)[2]
    scale = 1 + np.abs(V).max()
    if kind == "sums":
        B, grid = mocha.aggregator.coupling.B, case.problem.grid
        assert torch.equal(held["S"][0], grid.rounded(B.terms(mocha.users.V)).sum(0))
        np.testing.assert_allclose(mocha.users.V.T, V, rtol=0, atol=1e-12 * scale)
    else:
        np.testing.assert_allclose(held["V"].T, V, rtol=0, atol=1e-12 * scale)
    if regularizer != "common":
        B = mocha.problem.regularizer.inverse(mocha.Omega).dense().numpy()
        np.testing.assert_allclose(mocha.W, V @ B, rtol=0, atol=1e-6 * (1 + np.abs(B).max()) * scale)
    for _ in range(60):
        run.play(1)
        now = mocha.metrics()
        assert now["gap"] >= -1e-9
        if kind != "sums" and wire != "float32":
            V = figures(case, mocha)[2].T
            np.testing.assert_allclose(mocha.aggregator.V + mocha.users.error, V, rtol=0, atol=1e-9 * scale)
        if loss.name == "hinge":
            primal, dual, _ = figures(case, mocha)
            np.testing.assert_allclose((now["primal"], now["dual"]), (primal, dual), rtol=1e-9, atol=1e-9)
        if now["gap"] < 1e-3 * now["primal"]:
            break
    assert now["gap"] < (0.5 if regularizer == "averaging" else 0.05) * now["primal"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        slow("fedavg", "sums"),
        slow("fedadam", "coded"),
        slow("ditto", "coded"),
        slow("pfedme", "uncoded"),
        ("scaffold", "coded"),
        slow("scaffold", "sums"),
        slow("fedu", "coded"),
        slow("fedu", "sums"),
        ("fedu learned", "coded"),
        slow("fedu graph", "uncoded"),
    ],
)
@examples(4)
@given(**draws)
def test_networks(seed, wire, kind, lost, rounds, back, name):
    """Users hold what the aggregators hold, c is the mean of all c_k, and nothing that was learned is lost."""
    regularizer = {"fedu learned": TaskRelationship(0.5, 0.1), "fedu graph": Graph(0.1, neighbors=2)}.get(
        name, Mean(0.5)
    )
    case = make(seed, K=K, loss=Logistic(), regularizer=regularizer)
    messages, t = "sums" if kind == "sums" else "ivs", any_r(K=K, H=H, r=2, seed=seed)

    def learner():
        of = LEARNERS[name.split()[0]]
        return NetworkAlgorithm(of, case.problem, LocalSGD(0.05, 2, 4), network, seed=seed, messages=messages)

    run = came_back(learner, partial(COMMUNICATORS[kind], t, wire), lost, rounds, back, seed)
    algorithm = run.algorithm
    state = algorithm.state_dict()
    users, held = state["users"], state["aggregator"]
    n = np.array([len(x) for x in case.X])
    if name == "scaffold":
        c = algorithm.averages.average.value(held["S"], float(n.sum()))[0, case.d :]
        np.testing.assert_allclose(c, n @ users["c"].numpy() / n.sum(), rtol=0, atol=1e-9)
    if name == "fedu" and kind == "sums":
        assert torch.equal(held["S"], algorithm.aggregator.steps.sums(users["coupling.sent"]))
    if not name.startswith("fedu"):
        assert len(torch.unique(users["averaged"], dim=0)) == 1
    before = algorithm.metrics()["primal"]
    run.play(12)
    assert algorithm.metrics()["primal"] < before + 0.3 * abs(before)
    if name == "scaffold":
        c, own = algorithm.averages.value()[0, case.d :], algorithm.users.held["c"].all().numpy()
        np.testing.assert_allclose(c, n @ own / n.sum(), rtol=0, atol=0.3 if wire else 1e-8)
