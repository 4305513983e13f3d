"""MOCHA: certified optimum, monotone dual, sides that meet in messages only, state that goes on to the same bits."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.errors import ConfigError, ProcessLost
from hmtl.mtl import (
    MOCHA,
    SDCA,
    CoCoA,
    Dense,
    Graph,
    Local,
    Participation,
    Regularizer,
    Ridge,
    Squared,
    TaskRelationship,
)


def rounds(mocha, first, last):
    for round in range(first, last):
        mocha.step(round)
    return mocha


class Together(Regularizer):
    """A user's own regularizer, models near their mean: λ(I − 11ᵀ/K) + ridge."""

    def __init__(self, lam):
        super().__init__(lam)

    def coupling(self, Omega):
        return Dense(self.lam * (Omega.eye - 1 / len(Omega)) + 0.3 * Omega.eye)


def optimum(case, A):
    """The optimal value by an interior-point solver."""
    W = cp.Variable((case.d, case.K))
    loss = sum(
        s * cp.sum(cp.pos(1 - cp.multiply(y, x @ W[:, k])))
        for k, (s, x, y) in enumerate(zip(case.s, case.X, case.y, strict=True))
    )
    goal = cp.Problem(cp.Minimize(loss + 0.5 * cp.sum_squares(W @ np.linalg.cholesky(A))))
    return goal.solve(solver=cp.CLARABEL)


def test_the_textbook_method_with_exact_steps(random_problem):
    """FISTA with restarts on v: the extrapolated models come from the extrapolated v, and users minimize to the end."""
    case = random_problem(5, regularizer=Together(0.2), loss=Squared())
    mocha = MOCHA(case.problem, SDCA(300.0), omega_every=0)
    B = np.linalg.inv(Together(0.2).coupling(mocha.Omega).dense().numpy())
    c, v, before, t, beta = np.abs(B).sum(1), np.zeros((case.K, case.d)), np.zeros((case.K, case.d)), 1.0, 0.0
    betas = []
    for round in range(12):
        start = v + beta * (v - before)
        W, new = B @ start, np.empty_like(v)
        for k, (s, x, y) in enumerate(zip(case.s, case.X, case.y, strict=True)):  # w = W_k + c (v − start_k), v = Σ a x
            base = W[k] - c[k] * start[k]
            w = np.linalg.solve(np.eye(case.d) + c[k] * s * x.T @ x, base + c[k] * s * x.T @ y)
            new[k] = s * x.T @ (y - x @ w)
        restart = (c[:, None] * (start - new) * (new - v)).sum() > 0
        before, v = v, new
        after = 1.0 if restart else (1 + np.sqrt(1 + 4 * t**2)) / 2
        beta, t = 0.0 if restart else (t - 1) / after, after
        betas.append(beta)
        mocha.step(round)
        np.testing.assert_allclose(mocha.W.T, B @ v, rtol=0, atol=1e-6)
    assert max(betas) > 0.3
    assert 0.0 in betas[1:], "it restarts"


@given(
    seed=st.integers(0, 10**6),
    K=st.integers(1, 6),
    passes=st.sampled_from([0.2, 0.5, 1.0, 10.0]),
    gamma=st.sampled_from([1.0, 0.4]),
    lam2=st.sampled_from([None, 0.05]),
)
@examples(12)
def test_dual_never_falls_and_gap_never_negative(random_problem, seed, K, passes, gamma, lam2):
    """Users of unequal size and speed, some absent now and then. V = Σ a x."""
    case = random_problem(seed, K=K, regularizer=TaskRelationship(0.05, lam2))
    solver = SDCA(passes)
    mocha = MOCHA(case.problem, solver, omega_every=4, gamma=gamma, seed=seed, accelerated=False)
    before = mocha.metrics()
    for round in range(14):
        steps = case.rng.integers(0, 1 + max(1, int(passes * 3)), size=K)
        solver.steps = lambda counts, steps=steps: torch.from_numpy(steps)
        users, ivs = mocha.users.local_update(round, idle=np.flatnonzero(steps == 0))
        ivs = ivs[:]
        assert users.tolist() == steps.nonzero()[0].tolist()
        models = mocha.aggregator.update(users, ivs)
        mocha.users.commit(users)
        mocha.users.receive(np.arange(K), models)
        now = mocha.metrics()
        assert now["gap"] >= -1e-9
        if (round + 1) % 4:
            assert now["dual"] >= before["dual"] - 1e-10
        before = now
    V = np.stack([s * a @ x for s, a, x in zip(case.s, case.by_user(mocha.a), case.X, strict=True)], axis=1)
    A = case.problem.regularizer.coupling(mocha.Omega).dense().numpy()
    np.testing.assert_allclose(mocha.W.numpy() @ A, V, rtol=0, atol=1e-8 * (1 + abs(A).max()))


def test_the_certificate_holds_whatever_the_wire_did(random_problem):
    """Messages rounded to 8 bits, so that V is no longer what the duals say: D is, and never above P's least value."""
    case = random_problem(3, regularizer=Ridge(0.05))
    mocha = MOCHA(case.problem, SDCA(1.0), omega_every=0)
    best = optimum(case, 0.05 * np.eye(case.K))
    for round in range(60):
        users, ivs = mocha.users.local_update(round)
        ivs = ivs[:]
        models = mocha.aggregator.update(users, ivs.bfloat16().double())
        mocha.users.commit(users)
        mocha.users.receive(users, models.bfloat16().double())
        now = mocha.metrics()
        assert now["dual"] <= best + 1e-7 * best
        assert now["primal"] >= best - 1e-7 * best
    assert now["gap"] < 0.05 * best


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.25])
def test_gamma_scales_curvature_and_update(random_problem, gamma):
    """One step from zero on a row x, ridge: b = γ·λn/(γ‖x‖²), so γ cancels as long as the step is not clipped."""
    case = random_problem(2, regularizer=Ridge(1e-4))
    rows = [int(np.argmax(np.sum(x**2, axis=1))) for x in case.X]
    solver = SDCA()
    solver.draw = lambda *of: torch.from_numpy(np.repeat(rows, case.problem.counts))
    solver.steps = lambda counts: torch.ones(4, dtype=torch.int64)
    mocha = MOCHA(case.problem, solver, gamma=gamma, accelerated=False)
    users, ivs = mocha.users.local_update(0)
    ivs = ivs[:]
    mocha.users.commit(users)
    for k, j in enumerate(rows):
        x, y, n = case.X[k][j], case.y[k][j], len(case.y[k])
        a = case.by_user(mocha.a)[k][j]
        assert a == pytest.approx(y * 1e-4 * n / (x @ x))
        np.testing.assert_allclose(ivs[k].numpy() * gamma, a * x / n, rtol=1e-10)


def test_learning_omega_lowers_the_primal(random_problem):
    case = random_problem(1, K=3)
    local = rounds(MOCHA(case.problem, SDCA(1.0), omega_every=0), 0, 200)
    joint = rounds(MOCHA(case.problem, SDCA(1.0), omega_every=10), 0, 200)
    assert joint.metrics()["primal"] < local.metrics()["primal"]


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("settled", [True, False])
def test_a_pending_update_goes_on_too(random_problem, settled, accelerated):
    """A state between a local update and its settlement, as a late message makes it, is whole."""
    how = {"omega_every": 2, "accelerated": accelerated, "gamma": 1.0 if accelerated else 0.5}
    mocha, second = (MOCHA(random_problem(5).problem, SDCA(0.5), **how) for _ in range(2))
    rounds(mocha, 0, 2)
    users, ivs = mocha.users.local_update(2, idle=np.array([3]))
    ivs = ivs[:]
    late, others = users[1:2], users[[0, 2]]
    mocha.aggregator.update(users, ivs)
    mocha.users.commit(others)
    second.load_state_dict(mocha.state_dict())
    for one in (mocha, second):
        again, _ = one.users.local_update(3, idle=late)
        assert again.tolist() == [0, 2, 3]
        one.users.roll_back(again)
        (one.users.commit if settled else one.users.roll_back)(late)
    assert torch.equal(mocha.a, second.a)
    assert (mocha.aggregator.V.T - mocha.problem.combined(mocha.a)).abs().max() < 1e-12 or not settled


@given(
    seed=st.integers(0, 10**6),
    K=st.integers(1, 5),
    gamma=st.sampled_from([1.0, 0.3]),
    omega_every=st.sampled_from([0, 3]),
    data=st.data(),
)
@examples(15)
def test_V_is_what_the_duals_say_whatever_is_lost(random_problem, seed, K, gamma, omega_every, data):
    """Anybody may be idle, unheard, late by some rounds, or get no models; once settled, V = Σ_j s a_j x_j."""
    case = random_problem(seed, K=K)
    work = Participation(low=0.2, dropout=0.2)
    how = {"omega_every": omega_every, "gamma": gamma, "accelerated": gamma == 1, "seed": seed, "participation": work}
    mocha = MOCHA(case.problem, SDCA(0.5), **how)
    some = st.lists(st.sampled_from(range(K)), unique=True).map(sorted)

    def among(users):
        return np.intersect1d(users, np.array(data.draw(some), dtype=np.int64))

    def V(a):
        return np.stack([s * own @ x for s, own, x in zip(case.s, case.by_user(a), case.X, strict=True)])

    counted, lost = np.array([], dtype=np.int64), np.array([], dtype=np.int64)  # not yet told so
    for round in range(8):
        late = np.union1d(counted, lost)
        idle = np.union1d(late, among(np.arange(K)))
        users, ivs = mocha.users.local_update(round, idle)
        ivs = ivs[:]
        assert not np.isin(users, idle).any()
        heard = np.isin(users, among(users))
        models = mocha.aggregator.update(users[heard], ivs[heard])
        assert models.shape[0] == K
        counted, lost = np.union1d(counted, users[heard]), np.union1d(lost, users[~heard])
        told = among(np.union1d(counted, lost)) if round < 7 else np.arange(K)
        mocha.users.commit(np.intersect1d(counted, told))
        mocha.users.roll_back(np.intersect1d(lost, told))
        counted, lost = np.setdiff1d(counted, told), np.setdiff1d(lost, told)
        mocha.users.receive(receivers := among(np.arange(K)), models[receivers])
        settled = np.setdiff1d(np.arange(K), counted)
        want = V(mocha.a)
        np.testing.assert_allclose(mocha.aggregator.V.numpy()[settled], want[settled], rtol=0, atol=1e-12)
        assert mocha.metrics()["gap"] >= -1e-9
    np.testing.assert_allclose(mocha.aggregator.V.numpy(), V(mocha.a), rtol=0, atol=1e-12)


def test_two_sides_meet_in_messages_only(random_problem):
    """Users in one object, aggregators in two others, nothing between them but copies of numbers."""
    together, users, relay, other = (MOCHA(random_problem(6).problem, SDCA(0.5), omega_every=3) for _ in range(4))
    d = together.problem.d
    for round in range(8):
        rounds(together, round, round + 1)
        who, ivs = users.users.local_update(round)
        ivs = ivs[:]
        models = relay.aggregator.update(who, ivs.clone())
        assert torch.equal(models, other.aggregator.update(who, ivs.clone()))
        assert ivs.shape == (4, d + 1)  # r_k
        assert models.shape == (4, d + 2 if round % 3 == 2 else d + 1)  # β, and c_k where A changed
        users.users.commit(who)
        users.users.receive(who, models.clone())
        assert torch.equal(users.W, together.W)
        assert torch.equal(users.a, together.a)


def test_one_model_has_no_objective_while_users_hold_different_ones(random_problem):
    """As of the users of a silent process: R is infinite, and P of any of the models is not what is measured."""
    case = random_problem(6)
    shared = rounds(CoCoA(case.problem, SDCA(1.0), 0.1), 0, 3)
    measured = shared.users.measure()
    assert np.isfinite(shared.figures(measured, iter(()))["gap"])
    figures = shared.figures({**measured, "held": measured["held"].index_fill(0, torch.tensor([2]), 1.0)}, iter(()))
    assert np.isnan(figures["primal"])
    assert np.isnan(figures["gap"])
    assert np.isfinite(figures["dual"])


@pytest.mark.parametrize(("accelerated", "matrices"), [(False, 2), (True, 4)])
def test_between_rounds_only_what_the_next_one_needs_is_in_memory(random_problem, accelerated, matrices):
    """Models and dual vectors [K, d], and with acceleration the last moves of both; nothing before the first round."""
    case = random_problem(6, d=1000)
    mocha = MOCHA(case.problem, SDCA(0.5), omega_every=0, accelerated=accelerated)

    def held():
        state = mocha.state_dict()
        storages = [each.untyped_storage() for side in state.values() for each in side.values()]
        return sum({each.data_ptr(): each.nbytes() for each in storages}.values()) // (8 * case.K * case.d)

    assert held() == 0
    rounds(mocha, 0, 2)
    assert held() == matrices


def test_who_missed_a_change_of_the_coupling_is_told_later(random_problem):
    """c_k goes out until everybody was heard, so that nobody works with a curvature that is too small."""
    mocha = MOCHA(random_problem(6).problem, SDCA(0.5), omega_every=3)
    columns = []
    for round in range(6):
        missed = [1] if round == 2 else []  # user 1 sends, but no model comes; so it listens in round 3
        users, ivs = mocha.users.local_update(round, idle=np.array([1] if round == 3 else [], dtype=np.int64))
        ivs = ivs[:]
        models = mocha.aggregator.update(users, ivs)
        columns.append(models.shape[1] - mocha.problem.d)
        mocha.users.commit(users)
        told = np.setdiff1d(np.arange(4), missed)
        mocha.users.receive(told, models[told])
        assert torch.equal(mocha.users.curvature, mocha.aggregator.curvature[:, 0]) == (round != 2)
    assert columns == [1, 1, 2, 2, 1, 2]


@pytest.mark.parametrize("regularizer", [Graph(0.2, neighbors=2), Ridge(0.3)], ids=["graph", "ridge"])
def test_curvature(random_problem, regularizer):
    """Both kinds dominate B; the larger is σ′B_kk with one σ′ for all users."""
    coupling = MOCHA(random_problem(3, K=5, regularizer=regularizer).problem, SDCA()).aggregator.coupling
    B, (user, largest) = coupling.B.dense(), (coupling.curvature(kind)[:, 0] for kind in ("user", "max"))
    assert torch.linalg.eigvalsh(user.diag() - B)[0] >= -1e-9
    ratios = B.abs().sum(1) / B.diagonal()
    torch.testing.assert_close(largest, ratios.max() * B.diagonal())
    assert (largest >= user - 1e-12).all()


def test_local_training_needs_no_messages(random_problem):
    """The models are those of MOCHA over a network without coupling, to the last bit, dropped users and all."""
    problem, work = random_problem(6).problem, Participation(low=0.3, dropout=0.3)
    local = Local(problem, SDCA(0.5), lam=0.1, seed=2, participation=work)
    network = MOCHA(problem.regularized(Ridge(0.1)), SDCA(0.5), accelerated=False, seed=2, participation=work)
    for round in range(12):
        users, _ = local.users.local_update(round)
        assert local.users.row_layout.numbers == 0
        local.users.commit(users)
        network.step(round)
        assert torch.equal(local.W, network.W)
        assert torch.equal(local.a, network.a)
        assert local.metrics() == network.metrics()
    again = Local(problem, SDCA(0.5), lam=0.1, seed=2, participation=work)
    again.load_state_dict(local.state_dict())
    local.step(12)
    again.step(12)
    assert torch.equal(local.W, again.W)


def same(one, other):
    """Are two states the same to the last bit?"""
    return all(
        torch.equal(tensor, other[side][name]) for side, tensors in one.items() for name, tensor in tensors.items()
    )


class Own(Ridge):
    """A regularizer of a user's own that weighs users by what they tell: their numbers of rows."""

    def facts(self, task):
        return torch.tensor([float(len(task.y_train))], dtype=torch.float64)

    def prepared(self, facts):
        new = super().prepared(facts)
        new.weights = facts[:, 0]
        return new

    def coupling(self, Omega):
        return Dense(self.lam * self.weights.diag())


@pytest.mark.parametrize("regularizer", [Graph(0.2, neighbors=2), Own(0.3)], ids=["graph", "own"])
def test_setting_up_by_messages_changes_nothing(random_problem, regularizer):
    """Facts go up and c_k comes down, all of it overhead, and the state is that of the constructor."""
    mocha = MOCHA(random_problem(3, K=5, regularizer=regularizer).problem, SDCA())
    before, B = mocha.state_dict(), mocha.aggregator.coupling.B.dense()
    users, aggregator = mocha.setup()
    mocha.users.curvature = torch.zeros(5).double()
    who, facts = users.local_update(0)
    assert users.row_layout.numbers == 0
    assert who.tolist() == list(range(5))
    assert facts.shape == (5, 5 if isinstance(regularizer, Graph) else 1)
    assert facts.dtype == torch.float64
    extras = aggregator.update(who, facts.clone())
    users.commit(who)
    users.receive(who, extras.clone())
    assert extras.shape == (5, 1)
    assert same(mocha.state_dict(), before)
    assert torch.equal(mocha.aggregator.coupling.B.dense(), B)
    aggregator.update(who, torch.rand(facts.shape, generator=torch.Generator().manual_seed(0)).double())
    assert not torch.equal(mocha.aggregator.coupling.B.dense(), B)  # the graph is made of what arrived
    with pytest.raises(ProcessLost, match="K=5"):
        aggregator.update(who[:4], facts[:4])


def test_nothing_to_set_up(random_problem, tmp_path):
    """Where A follows from the configuration."""
    np.savetxt(tmp_path / "a.csv", 1 - np.eye(4), delimiter=",")
    for regularizer in (Ridge(0.1), TaskRelationship(0.1), Graph(0.1, path=tmp_path / "a.csv")):
        assert MOCHA(random_problem(3, regularizer=regularizer).problem, SDCA()).setup() is None
    problem = random_problem(3, regularizer=Graph(0.1)).problem
    assert CoCoA(problem, SDCA(), 0.1).setup() is None
    assert Local(problem, SDCA(), 0.1).setup() is None


def test_descriptions(random_problem):
    problem = random_problem(3, regularizer=TaskRelationship(0.2)).problem
    common = {"loss": "hinge", "error_measure": "share misclassified", "passes": 10.0}
    assert MOCHA(problem, SDCA()).describe() == {
        "algorithm": "mocha",
        "regularizer": "task_relationship",
        "lam": 0.2,
        "omega_learned": False,
        **common,
    }
    learned = rounds(MOCHA(problem, SDCA(), omega_every=2, rounds=4), 0, 4)
    assert learned.describe()["omega_learned"]
    assert not rounds(MOCHA(problem, SDCA(), omega_every=2, rounds=3), 0, 3).describe()["omega_learned"]
    assert Local(problem, SDCA(), 0.3).describe() == {
        "algorithm": "local",
        "regularizer": "ridge",
        "lam": 0.3,
        **common,
    }
    described = CoCoA(problem, SDCA(), 0.3).describe()
    assert described == {"algorithm": "cocoa", "regularizer": "shared_model", "lam": 0.3, **common}


def test_refusals(random_problem):
    problem = random_problem(0).problem
    with pytest.raises(ConfigError, match="omega_every=-1"):
        MOCHA(problem, SDCA(), omega_every=-1)
    with pytest.raises(ConfigError, match="rounds=0"):
        MOCHA(problem, SDCA(), rounds=0)
    MOCHA(problem, SDCA(), rounds=1)
    for gamma in (0.0, 1.1):
        with pytest.raises(ConfigError, match="gamma"):
            MOCHA(problem, SDCA(), gamma=gamma, accelerated=False)
