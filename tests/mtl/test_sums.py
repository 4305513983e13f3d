"""Learners with sums: fixed point, the same bits by any way of adding, an optimum and its certificate, refusals."""

import time

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hmtl import clock
from hmtl.clock import cpu_seconds, for_others
from hmtl.communication import CodedHierarchical, Communicator, Network, Sums, Uncoded
from hmtl.errors import ConfigError, RangeError
from hmtl.mtl import (
    MOCHA,
    SDCA,
    Algorithm,
    Clustered,
    CoCoA,
    Ditto,
    FedAvg,
    FedProx,
    FedU,
    Graph,
    Local,
    LocalSGD,
    Logistic,
    Mean,
    Participation,
    PFedMe,
    Ridge,
    TaskRelationship,
    sums,
)
from hmtl.mtl.regularizers import SharedModel
from hmtl.mtl.sums import Form, Grid
from hmtl.testing.networks import topologies
from hmtl.topology import Topology

SGD = LocalSGD(0.05, 2, 4, 0.2)
LEARNERS = {
    "mocha": lambda p, **o: MOCHA(p, SDCA(0.5), **o),
    "mocha, plain": lambda p, **o: MOCHA(p, SDCA(0.5), accelerated=False, gamma=0.4, **o),
    "cocoa+": lambda p, **o: CoCoA(p, SDCA(0.5), 0.1, **o),
    "cocoa": lambda p, **o: CoCoA(p, SDCA(0.5), 0.1, adding=False, **o),
    "fedavg": lambda p, **o: FedAvg(p, SGD, nn.Linear, **o),
    "fedprox": lambda p, **o: FedProx(p, SGD, nn.Linear, 0.3, **o),
    "fedu": lambda p, **o: FedU(p, SGD, nn.Linear, **o),
    "ditto": lambda p, **o: Ditto(p, SGD, nn.Linear, 0.2, **o),
    "pfedme": lambda p, **o: PFedMe(p, SGD, nn.Linear, 1.0, eta=0.3, local_rounds=2, beta=0.7, **o),
}


@settings(deadline=None, max_examples=50)
@given(data=st.data(), bits=st.integers(0, 60), K=st.integers(1, 50), seed=st.integers(0, 10**6))
def test_any_order_gives_the_same_bits_and_nothing_wraps(data: st.DataObject, bits: int, K: int, seed: int) -> None:
    rng, grid = np.random.default_rng(seed), Grid(bits, K)
    limit = 2.0 ** (61 - bits) / K
    x = torch.from_numpy(rng.uniform(-1, 1, (K, 5)) * limit * data.draw(st.sampled_from((1.0, 1e-3, 1e-9))))
    terms = grid.rounded(x)
    exact = [sum(int(term) for term in column) for column in terms.T]
    assert terms.sum(0).tolist() == exact
    assert terms[torch.from_numpy(rng.permutation(K))].sum(0).tolist() == exact
    assert (grid.values(terms) - x).abs().max() <= 2.0 ** -(bits + 1) + 1e-16 * limit
    assert (grid.rounded(x) - grid.rounded(-x)).sum(0).tolist() == [2 * s for s in exact], "differences fit, too"


@pytest.mark.parametrize("wrong", [1.01, float("inf"), float("nan")])
def test_an_error_never_a_wrap(wrong: float) -> None:
    grid = Grid(40, 10)
    limit = 2.0**21 / 10
    grid.rounded(torch.tensor([limit, -limit], dtype=torch.float64))
    with pytest.raises(RangeError, match=r"K=10 .*grid of 2\^-40.*lower fraction_bits"):
        grid.rounded(torch.tensor([0.0, -wrong * limit]))
    full = torch.full((1, 2), 2**61)
    assert grid.added(full, -full).tolist() == [[0, 0]]
    with pytest.raises(RangeError, match=r"A sum has grown to 6\.29e\+06.*lower fraction_bits"):
        grid.added(full, torch.tensor([[0, 2**62]]))
    with pytest.raises(ConfigError, match="fraction_bits=61"):
        Grid(61, 10)


def test_the_sign_of_sums_far_below_the_grid() -> None:
    grid = Grid(40, 4)
    for x in (1e-20, -1e-20, 3.0, -3.0):
        r = torch.tensor([1.0, -1.0, x, 0.0], dtype=torch.float64)
        assert grid.positive(grid.fine(r).sum(0)) == (x > 0)
    assert not grid.positive(grid.fine(torch.zeros(4)).sum(0))


@pytest.mark.parametrize("regularizer", [Ridge(0.3), Mean(0.3, 0.05), SharedModel(0.2)])
@pytest.mark.parametrize("K", [1, 2, 7])
def test_forms_of_couplings(regularizer, K: int) -> None:
    Omega = regularizer.start_omega(K)
    form = regularizer.sums(Omega)
    B = regularizer.inverse_coupling(Omega)
    torch.testing.assert_close(form.inverse_coupling(), B, rtol=1e-10, atol=0)
    V = torch.randn(K, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(form.models(V, form.terms(V).sum(0, keepdim=True)), B @ V, rtol=1e-10, atol=1e-12)
    if isinstance(regularizer, Mean):
        A = form.coupling().inverse_coupling()
        torch.testing.assert_close(A, regularizer.coupling(Omega), rtol=1e-10, atol=1e-12)


def test_two_sums_for_each_coordinate() -> None:
    rng = np.random.default_rng(0)
    U, delta = torch.from_numpy(rng.normal(size=(6, 2))), torch.from_numpy(rng.uniform(0.5, 1, 6))
    form = Form(delta, U, torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=torch.float64))
    V, B = torch.from_numpy(rng.normal(size=(6, 3))), form.inverse_coupling()
    some = torch.tensor([1, 4])
    sums = form.terms(V).sum(0, keepdim=True)
    torch.testing.assert_close(form.models(V[some], sums, some), (B @ V)[some])
    torch.testing.assert_close(form.coupling().inverse_coupling(), torch.linalg.inv(B))


def test_another_coupling_has_other_sums() -> None:
    class Own(Mean):
        def coupling(self, Omega):
            return super().coupling(Omega) + Omega

    assert Own(0.1).sums(torch.eye(3)) is None
    assert Mean(0.1).sums(torch.eye(3)) is not None


def test_sums_of_a_coupling_that_is_learned_are_of_no_use(random_problem) -> None:
    class Learned(Mean):
        def update_omega(self, W, Omega):
            return Omega

    mocha = MOCHA(random_problem(0, regularizer=Learned(0.1)).problem, SDCA())
    assert mocha.aggregator.form.q == 1
    assert mocha.q == 0
    with pytest.raises(ConfigError, match="MOCHA with Learned needs all IVs"):
        mocha.in_sums()


def follow(algorithm: Algorithm, communicator: Communicator, away: list[set[int]]) -> list[torch.Tensor]:
    models = []
    for round, absent in enumerate(away):
        communicator.round(round, algorithm.users, algorithm.aggregator, absent)
        models.append(algorithm.W.clone())
    return models


@pytest.mark.parametrize("learner", LEARNERS)
@settings(deadline=None, max_examples=6)
@given(
    t=topologies(max_H=5, max_K=7),
    medium=st.sampled_from(("broadcast", "unicast")),
    last_hop=st.sampled_from(("broadcast", "unicast")),
    gone=st.sampled_from((0.0, 0.3)),
    seed=st.integers(0, 1000),
)
def test_the_same_bits_summed_uncoded_and_coded(
    random_problem, learner: str, t: Topology, medium: str, last_hop: str, gone: float, seed: int
) -> None:
    """Whoever is absent, users and relays, and whatever the links: one relay has to be there, and to have been."""
    rng = np.random.default_rng(seed)
    always = int(np.flatnonzero(t.G.any(axis=1))[0])
    away = [set(np.flatnonzero(rng.random(t.H) < gone).tolist()) - {always} for _ in range(6)]
    network, part = Network(medium=medium, last_hop=last_hop), Participation(low=0.4, dropout=gone)
    results = []
    for communicator in (Sums(t, network), Uncoded(t, network), CodedHierarchical(t, network, aggregators="all")):
        problem = random_problem(seed, K=t.K, regularizer=Mean(0.05, 0.02), loss=Logistic()).problem
        made = LEARNERS[learner](problem, seed=seed, participation=part)
        if isinstance(communicator, Sums):
            made.in_sums()
        results.append((follow(made, communicator, away), made.metrics()))
    (first, figures), *others = results
    assert first[-1].isfinite().all()
    for models, same in others:
        assert all(torch.equal(one, other) for one, other in zip(first, models, strict=True))
        assert same == figures
    if "gap" in figures:
        assert figures["gap"] >= -1e-9


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_step_is_a_round_and_state_goes_on(random_problem, learner: str) -> None:
    def fresh(sums: bool) -> Algorithm:
        problem = random_problem(3, regularizer=Mean(0.05, 0.02), loss=Logistic()).problem
        made = LEARNERS[learner](problem, participation=Participation(low=0.4, dropout=0.3))
        if sums:
            made.in_sums()
        return made

    whole, dense = fresh(True), fresh(False)
    for round in range(8):
        if round == 4:
            again = fresh(True)
            again.load_state_dict(whole.state_dict())
            whole = again
        whole.step(round)
        dense.step(round)
        assert torch.equal(whole.W, dense.W)
    assert whole.metrics() == dense.metrics()


def test_pending_updates_are_settled_late(random_problem) -> None:
    """Users who learn only after other rounds whether they counted: FedU's are what they sent, MOCHA's what V is."""
    for learner in ("mocha, plain", "fedu"):
        problem = random_problem(3, regularizer=Mean(0.05, 0.02), loss=Logistic()).problem
        made = LEARNERS[learner](problem)
        made.in_sums()
        users, rows = made.users.local_update(0)
        made.aggregator.update(users, rows)
        made.users.commit(users[1:])
        again = LEARNERS[learner](problem)
        again.in_sums()
        again.load_state_dict(made.state_dict())
        for one in (made, again):
            late, _ = one.users.local_update(1, idle=np.array([0]))
            one.users.roll_back(late)
            one.users.commit(np.array([0]))
        mine = made.users.sent if learner == "fedu" else made.users.V
        assert torch.equal(mine, again.users.sent if learner == "fedu" else again.users.V)
        terms = (
            made.users.pull.terms(mine) if learner == "fedu" else made.users.grid.rounded(made.users.form.terms(mine))
        )
        assert torch.equal(terms.sum(0, keepdim=True), made.aggregator.S)


def test_optimum_agrees_with_another_solver(random_problem) -> None:
    case = random_problem(4, K=5, regularizer=Mean(0.3, 0.1))
    mocha = MOCHA(case.problem, SDCA(1.0))
    mocha.in_sums()
    for round in range(300):
        mocha.step(round)
        now = mocha.metrics()
        assert now["gap"] >= -1e-9
    W = cp.Variable((case.d, case.K))
    hinge = sum(
        s * cp.sum(cp.pos(1 - cp.multiply(y, x @ W[:, k])))
        for k, (s, x, y) in enumerate(zip(case.s, case.X, case.y, strict=True))
    )
    apart = cp.sum_squares(W - cp.sum(W, axis=1, keepdims=True) @ np.ones((1, case.K)) / case.K)
    best = cp.Problem(cp.Minimize(hinge + 0.3 * apart + 0.1 * cp.sum_squares(W))).solve(solver=cp.CLARABEL)
    assert now["gap"] <= 1e-6 * best
    assert now["dual"] - 1e-7 <= best <= now["primal"] + 1e-7


@pytest.mark.parametrize("work", [1, 7, 2**16])
@pytest.mark.parametrize("learner", ["fedavg", "fedprox", "fedu", "ditto", "pfedme"])
def test_terms_are_the_same_whenever_they_are_asked_for(random_problem, monkeypatch, learner: str, work: int) -> None:
    """Whichever rows, cut into whatever blocks, added or one by one."""
    monkeypatch.setattr(sums, "WORK", work)
    made, again = (
        LEARNERS[learner](random_problem(3, K=6, regularizer=Mean(0.05, 0.02), loss=Logistic()).problem)
        for _ in range(2)
    )
    for one in (made, again):
        one.in_sums()
        one.step(0)
    idle = np.array([1, 4])
    (who, terms), (users, rows) = made.users.local_terms(1, idle), again.users.local_update(1, idle)
    assert who.tolist() == users.tolist()
    assert (len(terms), terms.shape) == (len(rows), rows.shape)
    assert len(rows) > 2
    for at in (torch.arange(len(rows)), torch.tensor([0, 2]), torch.tensor([1]), torch.arange(0)):
        for _ in range(2):
            assert torch.equal(terms[at], rows[at])
            assert torch.equal(terms.added(at), rows[at].sum(0, keepdim=True))


def test_what_others_compute_is_not_counted() -> None:
    start, began = cpu_seconds(), time.process_time()
    with for_others():
        while time.process_time() < began + 0.2:
            pass
    assert cpu_seconds() - start < 0.1


@pytest.mark.parametrize("learner", ["fedavg", "fedu"])
def test_who_makes_terms_is_who_is_timed(random_problem, monkeypatch, learner: str) -> None:
    """An aggregator of all IVs makes the terms itself; of those that a relay adds, making them was the users' work."""
    here, apart = (
        LEARNERS[learner](random_problem(3, K=6, regularizer=Mean(0.05, 0.02), loss=Logistic()).problem)
        for _ in range(2)
    )
    apart.in_sums()
    users, ivs = here.users.local_update(0)
    _, terms = apart.users.local_terms(0)
    now, rounded = [0.0], Grid.rounded

    def a_second(self: Grid, numbers: torch.Tensor) -> torch.Tensor:
        now[0] += 1
        return rounded(self, numbers)

    monkeypatch.setattr(clock, "_seconds", lambda: now[0])
    monkeypatch.setattr(Grid, "rounded", a_second)
    start = cpu_seconds()
    here.aggregator.update(users, ivs)
    assert cpu_seconds() - start == now[0] > 0
    start, before = cpu_seconds(), now[0]
    terms.added(torch.arange(len(terms)))
    assert (cpu_seconds() - start, now[0] > before) == (0, True)


def test_fedu_settles_where_the_objective_does(random_problem) -> None:
    """With steps that become short, the gradient of the objective vanishes, though users act on older sums."""
    problem = random_problem(2, regularizer=Mean(0.5, 0.2), loss=Logistic()).problem
    fedu = FedU(problem, LocalSGD(0.5, 1, 100, 0.1), nn.Linear)
    fedu.in_sums()
    for round in range(400):
        fedu.step(round)
    W = fedu.W.double().T.clone().requires_grad_()
    loss = sum(
        problem.rows.s[k] * problem.loss(x.x_train @ W[k, :-1] + W[k, -1], x.y_train).sum()
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
    fedu = FedU(random_problem(2, regularizer=Mean(lam, 0.01), loss=Logistic()).problem, LocalSGD(0.1), nn.Linear)
    fedu.in_sums()
    for round in range(60):
        fedu.step(round)
    W = fedu.W
    assert W.isfinite().all()
    assert 0.01 < W.abs().max() < 100
    if lam > 100:
        assert (W - W.mean(1, keepdim=True)).norm() < 1e-2 * W.norm()


def test_set_up(random_problem) -> None:
    """Users tell their numbers of rows, as ever, and learn what these sum up to."""
    fedavg = FedAvg(random_problem(3, loss=Logistic()).problem, SGD, nn.Linear)
    fedavg.in_sums()
    users, aggregator = fedavg.setup()
    who, facts = users.local_update(0)
    total = fedavg.users.average.total
    fedavg.users.average.total = 0.0
    users.receive(who, aggregator.update(who, facts))
    assert fedavg.users.average.total == total == sum(fedavg.problem.rows.counts)


def test_who_has_no_sums(random_problem) -> None:
    def problem(regularizer):
        return random_problem(0, regularizer=regularizer, loss=Logistic()).problem

    for regularizer in (TaskRelationship(0.1), Clustered(0.1, 2), Graph(0.1, neighbors=1)):
        with pytest.raises(ConfigError, match=r"MOCHA with \w+ needs all IVs.*=cocoa, fedavg.* regularizer=mean"):
            MOCHA(problem(regularizer), SDCA()).in_sums()
    with pytest.raises(ConfigError, match="FedU with Graph needs all IVs"):
        FedU(problem(Graph(0.1, neighbors=1)), SGD, nn.Linear).in_sums()
    with pytest.raises(ConfigError, match="not coupled: choose communicator=partial"):
        FedU(problem(Ridge(0.1)), SGD, nn.Linear).in_sums()
    with pytest.raises(ConfigError, match="algorithm=local"):
        MOCHA(problem(Ridge(0.1)), SDCA()).in_sums()
    local = Local(problem(Ridge(0.1)), SDCA(), 0.1)
    local.in_sums()
    assert local.users.numbers == 0


def test_a_learner_that_diverges_is_told_so(random_problem) -> None:
    fedavg = FedAvg(random_problem(0, loss=Logistic()).problem, LocalSGD(1e9), nn.Linear)
    with pytest.raises(RangeError, match="If the models do not diverge, lower fraction_bits"):
        fedavg.step(0)
