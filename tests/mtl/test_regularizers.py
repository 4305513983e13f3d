"""Regularizers: the contract, formulas of the papers, updates of Ω, settings and couplings that are refused."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from hmtl.errors import ConfigError
from hmtl.mtl import (
    MOCHA,
    SDCA,
    Clustered,
    Common,
    Dense,
    FedU,
    Graph,
    LocalSGD,
    Logistic,
    LowRank,
    Mean,
    NetworkAlgorithm,
    Regularizer,
    Ridge,
    SharedModel,
    TaskRelationship,
)
from hmtl.testing import RegularizerContract


def random_state(seed, K, d):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(K, K))
    return torch.from_numpy(rng.normal(size=(d, K))), Dense(torch.from_numpy(root @ root.T + 0.1 * np.eye(K)))


def graph(weights, lam, lam2):
    """Return a Graph with these weights, without a file."""
    regularizer = Graph(lam, lam2)
    regularizer.register_buffer("laplacian", torch.from_numpy(np.diag(weights.sum(1)) - weights))
    return regularizer


def random_weights(seed, K):
    a = np.random.default_rng(seed).uniform(0, 1, (K, K)) * (np.random.default_rng(seed + 1).random((K, K)) < 0.5)
    return np.triu(a, 1) + np.triu(a, 1).T


class TestRidge(RegularizerContract):
    def make(self):
        return Ridge(0.3)


class TestMean(RegularizerContract):
    def make(self):
        return Mean(0.3, 0.05)


class TestSharedModel(RegularizerContract):
    def make(self):
        return SharedModel(0.3)


class TestNearestNeighbors(RegularizerContract):
    def make(self):
        return Graph(0.3, 0.05, neighbors=2)


class TestGraphFromAFile(RegularizerContract):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def file(cls, tmp_path_factory):
        cls.path = tmp_path_factory.mktemp("graph") / "weights.csv"
        np.savetxt(cls.path, random_weights(0, cls.K), delimiter=",")

    def make(self):
        return Graph(0.3, 0.05, path=self.path)


class TestTaskRelationship(RegularizerContract):
    def make(self):
        return TaskRelationship(0.3)


class TestTaskRelationshipWithRidge(RegularizerContract):
    def make(self):
        return TaskRelationship(0.3, 0.05)


class TestCommon(RegularizerContract):
    def make(self):
        return Common(0.3, 0.05)


class TestClustered(RegularizerContract):
    def make(self):
        return Clustered(0.3, clusters=2)


@given(seed=st.integers(0, 10**6), K=st.integers(1, 6))
@examples(6)
def test_shared_model(seed, K):
    """All models are the same w for any V, and R is (λ/2)‖w‖²."""
    V, Omega = random_state(seed, K, 3)
    regularizer = SharedModel(0.3)
    B = regularizer.inverse(Omega)
    W = (B @ V.T).T
    w = V.sum(1) / 0.3
    torch.testing.assert_close(W, w[:, None].expand(-1, K))
    assert float(regularizer(W, Omega)) == pytest.approx(0.15 * float(w @ w))


@given(seed=st.integers(0, 10**6), K=st.integers(1, 6))
@examples(10)
def test_penalties_as_written_in_the_papers(seed, K):
    W, Omega = random_state(seed, K, 4)
    coupled = float(torch.einsum("dk,kl,dl->", W, Omega.C, W))
    norm = float(W.square().sum())
    assert float(Ridge(0.3)(W, Omega)) == pytest.approx(0.15 * norm)
    assert float(TaskRelationship(0.3)(W, Omega)) == pytest.approx(0.15 * coupled)
    assert float(TaskRelationship(0.3, 0.05)(W, Omega)) == pytest.approx(0.3 * coupled + 0.05 * norm)
    spread = float((W - W.mean(1, keepdim=True)).square().sum())
    assert float(Mean(0.3, 0.05)(W, Omega)) == pytest.approx(0.3 * spread + 0.05 * norm)
    a = random_weights(seed, K)
    edges = sum(a[k, j] * float((W[:, k] - W[:, j]).square().sum()) for k in range(K) for j in range(k))
    assert float(graph(a, 0.3, 0.05)(W, Omega)) == pytest.approx(0.15 * edges + 0.025 * norm)


@given(seed=st.integers(0, 10**6), K=st.integers(1, 6))
@examples(10)
def test_omega_update_is_the_closed_form_and_the_best(seed, K):
    W, Omega = random_state(seed, K, 8)
    regularizer = TaskRelationship(0.3)
    new = regularizer.update_omega(W, Omega)
    root = np.real(sqrtm(W.numpy().T @ W.numpy()))
    np.testing.assert_allclose(np.linalg.inv(new.dense().numpy()), root / np.trace(root), rtol=0, atol=1e-7)
    other = float(torch.linalg.inv(Omega.C).trace()) * Omega  # any other Σ of trace 1
    assert float(regularizer(W, new)) <= float(regularizer(W, other)) * (1 + 1e-9)


@given(seed=st.integers(0, 10**6), K=st.integers(2, 5), eta=st.sampled_from([0.05, 0.5, 2.0]), data=st.data())
@examples(6)
def test_clusters_update_is_the_optimum_of_the_semidefinite_program(seed, K, eta, data):
    clusters, rank = data.draw(st.integers(1, K)), data.draw(st.integers(1, 5))
    W, _ = random_state(seed, K, rank)
    regularizer = Clustered(0.3, clusters, eta)
    start = regularizer.start(K, rank)
    new = regularizer.update_omega(W, start)
    M = eta * (1 + eta) * np.linalg.inv(new.dense().numpy()) - eta * np.eye(K)
    eigenvalues = np.linalg.eigvalsh(M)
    assert eigenvalues.min() > -1e-9
    assert eigenvalues.max() < 1 + 1e-9
    assert np.trace(M) == pytest.approx(clusters)
    X = cp.Variable((K, K), PSD=True)
    fraction = sum(cp.matrix_frac(w, X + eta * np.eye(K)) for w in W.numpy())
    best = cp.Problem(cp.Minimize(fraction), [np.eye(K) - X >> 0, cp.trace(X) == clusters]).solve(solver=cp.CLARABEL)
    assert float(regularizer(W, new)) == pytest.approx(0.15 * eta * (1 + eta) * best, rel=1e-6)
    assert float(regularizer(W, new)) <= float(regularizer(W, start)) * (1 + 1e-12)


@given(seed=st.integers(0, 10**6), K=st.integers(2, 9), d=st.integers(1, 5), lam0=st.sampled_from([1e-3, 1.0]))
def test_common_is_the_best_split_into_a_common_model_and_deviations(seed, K, d, lam0):
    """R is the least over w0 by least squares, B is a sum, and the joint bounds hold; as matrices and as forms."""
    rng, regularizer = np.random.default_rng(seed), Common(0.3, lam0)
    W, V = (rng.normal(size=(d, K)) + 2 * rng.normal(size=(d, 1)) for _ in range(2))
    Omega = regularizer.update_omega(torch.from_numpy(rng.normal(size=(d, K))), regularizer.start(K, d))
    full = Omega.dense().numpy()
    root = np.linalg.cholesky(full)
    stacked = np.vstack([np.sqrt(lam0) * np.eye(1), np.sqrt(0.3) * root.T @ np.ones((K, 1))])
    target = np.vstack([np.zeros((1, d)), np.sqrt(0.3) * root.T @ W.T])
    w0 = np.linalg.lstsq(stacked, target, rcond=None)[0]
    R = 0.5 * np.square(stacked @ w0 - target).sum()
    W, V = torch.from_numpy(W), torch.from_numpy(V)
    assert float(regularizer(W, Omega)) == pytest.approx(R, rel=1e-7)
    np.testing.assert_allclose(regularizer.split(W, Omega)[:, 0], w0[0], rtol=1e-6, atol=1e-9)
    B = 1 / lam0 + np.linalg.inv(full) / 0.3
    inverse = regularizer.inverse(Omega)
    np.testing.assert_allclose(inverse.dense(), B, rtol=1e-7, atol=1e-9)
    U = W.numpy() - w0.T
    assert np.allclose(
        regularizer.update_omega(W, Omega).dense(),
        TaskRelationship(0.3).update_omega(torch.from_numpy(U), regularizer.start(K, d)).dense(),
        rtol=1e-6,
    )
    best, conjugate = regularizer.joint(W, V)
    assert float(best + conjugate) >= float((W * V).sum())
    shared = cp.Variable((d, 1))
    spread = cp.normNuc(W.numpy() - shared @ np.ones((1, K)))
    exact = cp.Problem(cp.Minimize(lam0 / 2 * cp.sum_squares(shared) + 0.15 * cp.square(spread)))
    assert float(best) >= exact.solve(solver=cp.CLARABEL) * (1 - 1e-4)


def test_clusters_of_equal_models_are_found():
    """Users of three groups have the same model in a group: R follows the definition, and Ω couples within groups."""
    centres = np.random.default_rng(0).normal(size=(6, 3))
    W = torch.from_numpy(np.repeat(centres, [2, 3, 4], axis=1))
    regularizer = Clustered(0.3, clusters=3, eta=0.1)
    Omega = regularizer.update_omega(W, regularizer.start(9, 6))
    assert float(regularizer(W, Omega)) == pytest.approx(0.15 * 0.1 * float(W.square().sum()), rel=1e-5)
    same = np.repeat(range(3), [2, 3, 4])
    assert np.abs(Omega.dense().numpy()[same[:, None] != same]).max() < 1e-4


@pytest.mark.parametrize("K", [30, 139])
@pytest.mark.parametrize("make", [TaskRelationship, lambda lam: Clustered(lam, clusters=5)])
def test_learned_couplings_count_as_symmetric(make, K):
    """Rounding errors scale with the largest entries, and may be large relative to small ones."""
    regularizer, rng = make(0.01), np.random.default_rng(K)
    Omega = regularizer.start(K, K)
    for draw in range(200 if K == 30 else 40):
        scales = 10.0 ** rng.uniform(-6, 0, size=(1, K))  # users whose models differ in size by orders of magnitude
        W = rng.normal(size=(rng.choice([3, 40]), K)) * scales ** (draw % 2)
        Omega = regularizer.update_omega(torch.from_numpy(W), Omega)
        assert torch.equal(Omega.dense(), Omega.dense().T)
        B = regularizer.inverse(Omega).dense()
        A = regularizer.coupling(Omega).dense()
        assert (A @ B - torch.eye(K).double()).abs().max() < 1e-6


def test_rounding_errors_are_not_asymmetry():
    rough = torch.tensor([[1e3, 1e-14], [0.0, 1e3]], dtype=torch.float64)
    B = Given(rough.tolist()).inverse(LowRank.multiple(1, 2)).dense()
    torch.testing.assert_close(B, 1e-3 * torch.eye(2).double())


@pytest.mark.parametrize("floor", [1e-2, 1e-4])
@pytest.mark.parametrize("make", [TaskRelationship, Clustered])
def test_the_floor_bounds_the_condition_of_omega(make, floor):
    rng = np.random.default_rng(1)
    W = torch.from_numpy(
        rng.normal(size=(9, 1)) + 1e-6 * rng.normal(size=(9, 6))
    )  # nearly the same model for all users
    regularizer = make(0.1, floor=floor)
    eigenvalues = torch.linalg.eigvalsh(regularizer.update_omega(W, regularizer.start(6, 9)).dense())
    assert float(eigenvalues[-1] / eigenvalues[0]) <= floor**-0.5 * (1 + 1e-9)
    for bad in (0.0, 1.0, -1e-4, math.nan):
        with pytest.raises(ConfigError, match="floor"):
            make(0.1, floor=bad)


@given(seed=st.integers(0, 10**6))
@examples(10)
def test_joint_bounds_of_task_relationship(seed):
    """R at the best Ω is (λ/2)‖W‖_*², and no Σ of trace one gives less; R* has the spectral norm."""
    W, other = random_state(seed, 5, 7)
    regularizer = TaskRelationship(0.3, floor=1e-12)
    best, conjugate = (float(value) for value in regularizer.joint(W, W))
    Omega = regularizer.update_omega(W, regularizer.start(5, 7))
    assert best == pytest.approx(float(regularizer(W, Omega)), rel=1e-6)
    assert best <= float(regularizer(W, Dense(torch.linalg.inv(other.C / other.C.trace())))) * (1 + 1e-9)
    assert best == pytest.approx(0.15 * np.linalg.norm(W.numpy(), "nuc") ** 2, rel=1e-9)
    assert conjugate == pytest.approx(np.linalg.norm(W.numpy(), 2) ** 2 / 0.6, rel=1e-9)
    assert TaskRelationship(0.3, lam2=0.1).joint(W, W) is None
    assert Ridge(0.3).joint(W, W) is None


def test_omega_update_of_zero_and_of_low_rank():
    Omega = TaskRelationship(0.1).start(5, 3)
    torch.testing.assert_close(Omega.dense(), 5 * torch.eye(5, dtype=torch.float64))
    assert TaskRelationship(0.1).update_omega(torch.zeros(3, 5).double(), Omega) is Omega
    assert Clustered(0.1).update_omega(torch.zeros(3, 5).double(), Omega) is Omega
    assert Ridge(0.1).update_omega(torch.ones(3, 5).double(), Omega) is Omega
    W = torch.ones(3, 5).double()
    new = TaskRelationship(0.1, floor=1e-12).update_omega(W, Omega)
    assert float(torch.linalg.inv(new.dense()).trace()) == pytest.approx(1, abs=1e-5)
    # the floor hardly raises R
    assert float(TaskRelationship(0.1)(W, new)) == pytest.approx(
        0.05 * float(torch.linalg.norm(W, "nuc")) ** 2, rel=1e-5
    )
    assert torch.linalg.eigvalsh(new.dense())[0] > 0


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf])
def test_strength_must_be_positive(lam):
    second = [lambda lam, R=R: R(0.1, lam2=lam) for R in (TaskRelationship, Mean, Graph)]
    for build in (
        Ridge,
        TaskRelationship,
        Mean,
        Graph,
        Clustered,
        SharedModel,
        *second,
        lambda x: Clustered(0.1, eta=x),
    ):
        with pytest.raises(ConfigError, match="="):
            build(lam)


@pytest.mark.parametrize("kind", [Mean, Graph])
def test_networks_are_hardly_shrunk_by_default(kind, random_problem):
    problem = random_problem(0, regularizer=kind(0.1), loss=Logistic()).problem
    duals, networks = (
        of.regularizer.coupling(LowRank.multiple(1, 4)).dense() for of in (problem, problem.for_networks())
    )
    scale = 2 if kind is Mean else 1
    torch.testing.assert_close(duals - networks, scale * (0.1 - 1e-6) * torch.eye(4).double(), rtol=0, atol=1e-12)
    given = problem.regularized(kind(0.1, 0.1))
    assert torch.equal(given.for_networks().regularizer.coupling(LowRank.multiple(1, 4)).dense(), duals)
    assert NetworkAlgorithm(FedU(), problem, LocalSGD(), torch.nn.Linear).problem.regularizer.lam2 == 1e-6


@pytest.mark.parametrize("kind", [Ridge, Mean, SharedModel, TaskRelationship, Common, Clustered])
def test_a_coupling_of_its_own_inherits_no_formula(kind):
    """B is the inverse of the new A, also with more users than features, and what else the base class knows is gone."""

    class Own(kind):
        def coupling(self, Omega):
            return super().coupling(Omega).scaled(2, 0.5)

    regularizer, W = Own(0.3), random_state(1, 5, 5)[0]
    Omega = regularizer.update_omega(W[:2], regularizer.start(5, 2))
    B = np.linalg.inv(2 * kind(0.3).coupling(Omega).dense().numpy() + 0.5 * np.eye(5))
    np.testing.assert_allclose(regularizer.inverse(Omega).dense().numpy(), B, atol=1e-12)
    assert regularizer.joint(W, W) is regularizer.common is None
    assert not regularizer.one_model


@pytest.mark.parametrize(
    "redefined",
    [
        {"coupling": lambda self, Omega: Omega.scaled(self.lam, 0.1)},
        {"eigenvalues": lambda self, s, counts: s.sum() / s.clamp_min(0.1 * s[-1])},
        {"update_omega": lambda self, W, Omega: Omega.identity(1.0)},
    ],
    ids=lambda redefined: next(iter(redefined)),
)
@pytest.mark.parametrize("kind", [TaskRelationship, Common])
def test_another_problem_in_omega_has_no_joint_bounds(kind, redefined):
    W, V = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 4, 4)))
    assert kind(0.3).joint(W, V) is not None
    assert type("Own", (kind,), redefined)(0.3).joint(W, V) is None


def test_a_regularizer_may_state_its_own_joint_bounds():
    class Doubled(TaskRelationship):
        """A = 2λΩ."""

        def coupling(self, Omega):
            return 2 * super().coupling(Omega)

        def joint(self, W, V):
            return TaskRelationship(2 * self.lam).joint(W, V)

    class Inheriting(Doubled):
        pass

    W, V = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 4, 4)))
    for each in (Doubled(0.2), Inheriting(0.2)):
        assert each.joint(W, V) == TaskRelationship(0.4).joint(W, V)


def test_models_are_ranked_by_the_objective_of_the_own_coupling(random_problem):
    class Weak(TaskRelationship):
        """A = λΩ/100: the joint objective of A = λΩ would be far above the primal."""

        def coupling(self, Omega):
            return 0.01 * super().coupling(Omega)

    case = random_problem(4, regularizer=Weak(1.0))
    mocha = MOCHA(case.problem, SDCA(), omega_every=2)
    for round in range(5):
        mocha.step(round)
    figures, W, Omega = mocha.metrics(), mocha.W.numpy(), mocha.Omega.dense().numpy()
    loss = sum(s * np.maximum(0, 1 - y * (X @ w)).sum() for s, X, y, w in zip(case.s, case.X, case.y, W.T, strict=True))
    assert figures["primal"] == pytest.approx(loss + np.trace(W @ Omega @ W.T) / 200)
    assert "joint_primal" not in figures
    assert mocha.rank(figures) == figures["primal"]


class Given(Regularizer):
    def __init__(self, A):
        super().__init__(1.0)
        self.A = torch.tensor(A, dtype=torch.float64)

    def coupling(self, Omega):
        return Dense(self.A)


@pytest.mark.parametrize(
    "A",
    [
        [[1.0, 2.0], [2.0, 1.0]],
        [[1.0, -1.0], [-1.0, 1.0]],
        [[1.0, 0.5], [0.0, 1.0]],
        [[1.0]],
        [[math.nan, 0.0], [0.0, 1.0]],
    ],
)
def test_matrices_that_are_not_couplings(A):
    with pytest.raises(ConfigError, match="Given"):
        Given(A).inverse(LowRank.multiple(1, 2))


def test_numbers_of_clusters():
    with pytest.raises(ConfigError, match="clusters=0"):
        Clustered(0.1, clusters=0)
    with pytest.raises(ConfigError, match="clusters=3"):
        Clustered(0.1, clusters=3).start(2, 5)
