"""FedProx, Ditto and pFedMe beside numpy: where they come to rest, and each round on the way, on squared losses.

K users, n_k rows of D features. Of full batches and a linear model, a step on user k's loss + (λ/2)‖w − a‖² is affine:
w ← w − step·(H_k w − b_k + λ (w − a)), with H_k = X_kᵀX_k/n_k and b_k = X_kᵀy_k/n_k.
"""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.mtl import (
    CrossEntropy,
    Ditto,
    FedAvg,
    FedProx,
    LocalNetworks,
    LocalSGD,
    Participation,
    PFedMe,
    Problem,
    Ridge,
    Squared,
    mlp,
)

K, D = 4, 2
COUNTS = np.array([14, 18, 11, 28])
LEARNERS = {
    "fedprox": partial(FedProx, mu=0.5),
    "ditto": partial(Ditto, lam=0.5),
    "pfedme": partial(PFedMe, lam=0.8, eta=0.5, local_rounds=2),
}
every_learner = pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)
FULL = 100  # rows in a minibatch: all of them


def rows(seed=0):
    """X_k [n_k, D] and y_k [n_k] of models that differ from user to user."""
    rng = np.random.default_rng(seed)
    X = [rng.normal(size=(n, D)) for n in COUNTS]
    return X, [x @ rng.normal(1, 1, size=D) + 0.1 * rng.normal(size=len(x)) for x in X]


def problem(seed=0, reduction="mean"):
    made = [tuple(map(torch.from_numpy, pair)) for pair in zip(*rows(seed), strict=True)]
    return Problem([Task(str(k), *pair, *pair) for k, pair in enumerate(made)], Squared(), Ridge(1.0), reduction)


def several_classes():
    rng, tasks = np.random.default_rng(1), []
    for k, n in enumerate(COUNTS):
        x, y = torch.from_numpy(rng.normal(size=(n + 4, D))), torch.from_numpy(rng.integers(0, 3, n + 4))
        y[:2] = torch.tensor([0, 1])
        tasks.append(Task(str(k), x[:n], y[:n], x[n:], y[n:], 3))
    return Problem(tasks, CrossEntropy(), Ridge(1.0))


def linear(d, C):
    return nn.Linear(d, C, bias=False).double()


def quadratics(seed=0, reduction="mean"):
    """H [K, D, D] and b [K, D] of the users' losses ½wᵀHw − bᵀw."""
    n = COUNTS if reduction == "mean" else np.ones(K)
    X, y = rows(seed)
    return (
        np.stack([x.T @ x / m for x, m in zip(X, n, strict=True)]),
        np.stack([x.T @ t / m for x, t, m in zip(X, y, n, strict=True)]),
    )


def near(H, b, lam, a):
    """argmin of each user's loss + (λ/2)‖w − a‖², [K, D]."""
    return np.linalg.solve(H + lam * np.eye(D), (b + lam * a)[:, :, None])[:, :, 0]


def run(learner, first, last):
    for round in range(first, last):
        learner.step(round)
    return learner


def shared(learner):
    """The model for all, which all users have."""
    W = learner.users.W.numpy()
    assert not np.ptp(W, axis=0).any()
    return W[0]


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_fedprox_comes_to_rest_where_every_proximal_step_cancels(mu):
    """Of users who minimise to the end: w = Σ p_k argmin_k(w), a linear equation in w; not where FedAvg does."""
    H, b = quadratics()
    inverse, p = np.linalg.inv(H + mu * np.eye(D)), COUNTS / COUNTS.sum()
    want = np.linalg.solve(np.eye(D) - mu * np.tensordot(p, inverse, 1), p @ np.einsum("kij,kj->ki", inverse, b))
    learner = run(FedProx(problem(), LocalSGD(0.5, 40, FULL), linear, mu), 0, 30)
    np.testing.assert_allclose(shared(learner), want, rtol=0, atol=1e-7)
    alone = p @ np.linalg.solve(H, b[:, :, None])[:, :, 0]  # FedAvg's: the mean of the users' optima
    assert abs(want - alone).max() > 0.02
    assert abs(want - np.linalg.solve(np.tensordot(p, H, 1), p @ b)).max() > 1e-3  # nor is it the pooled optimum


@pytest.mark.parametrize("lam", [0.3, 2.0])
def test_ditto_comes_to_rest_near_the_pooled_optimum(lam):
    """With one full step in a round, FedAvg is gradient descent on all rows; v_k = argmin_k near its end."""
    H, b = quadratics()
    X, y = rows()
    pooled = np.linalg.lstsq(np.concatenate(X), np.concatenate(y), rcond=None)[0]
    learner = run(Ditto(problem(), LocalSGD(0.4, 1, FULL), linear, lam), 0, 150)
    np.testing.assert_allclose(shared(learner), pooled, rtol=0, atol=1e-7)
    np.testing.assert_allclose(learner.W.T, near(H, b, lam, pooled), rtol=0, atol=1e-7)
    assert abs(learner.W.T.numpy() - pooled).max() > 0.1


@pytest.mark.parametrize(
    ("lam", "eta", "beta"),
    [(0.5, 2.0, 0.7), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((0.5, 2.0, 1.0), (2.0, 0.4, 1.7)))],
)
def test_pfedme_comes_to_rest_where_the_envelopes_do(lam, eta, beta):
    """R = 1: where Σ_k (w − θ_k(w)) = 0, the gradient of the mean of Moreau envelopes, each user weighing the same."""
    H, b = quadratics()
    inverse = np.linalg.inv(H + lam * np.eye(D))
    w = np.linalg.solve(np.eye(D) - lam * inverse.mean(0), np.einsum("kij,kj->ki", inverse, b).mean(0))
    solver = LocalSGD(0.3 if lam > 1 else 0.5, 40, FULL)
    learner = run(PFedMe(problem(), solver, linear, lam, eta, local_rounds=1, beta=beta), 0, 40)
    np.testing.assert_allclose(shared(learner), w, rtol=0, atol=1e-7)
    np.testing.assert_allclose(learner.W.T, near(H, b, lam, w), rtol=0, atol=1e-7)


def descend(H, b, w, steps, step, lam=0.0, a=0.0):
    """So many steps of one user, one by one."""
    for _ in range(steps):
        w = w - step * (H @ w - b + lam * (w - a))
    return w


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    which=st.sampled_from(list(LEARNERS)),
    weight=st.floats(0.01, 3),
    eta=st.floats(0.05, 0.3),
    beta=st.sampled_from([0.4, 1.0, 1.7]),
    R=st.integers(1, 3),
    epochs=st.integers(1, 4),
    decay=st.sampled_from([0.0, 0.5]),
    reduction=st.sampled_from(["mean", "sum"]),
    part=st.sampled_from([Participation(), Participation(0.2, dropout=0.3), Participation(fraction=0.5)]),
)
def test_every_round_is_that_of_numpy(seed, which, weight, eta, beta, R, epochs, decay, reduction, part):
    """With stragglers, sampled users, users who drop out, falling steps, and either reduction."""
    H, b = quadratics(seed, reduction)
    step = 0.1 if reduction == "mean" else 0.01
    solver, common = LocalSGD(step, epochs, FULL, decay), {"seed": seed, "participation": part}
    learner = {
        "fedprox": lambda: FedProx(problem(seed, reduction), solver, linear, weight, **common),
        "ditto": lambda: Ditto(problem(seed, reduction), solver, linear, weight, **common),
        "pfedme": lambda: PFedMe(problem(seed, reduction), solver, linear, weight, eta, R, beta, **common),
    }[which]()
    w, usual = shared(learner).copy(), epochs * (R if which == "pfedme" else 1)
    V = np.tile(w, (K, 1))
    p = np.full(K, 1 / K) if which == "pfedme" else COUNTS / COUNTS.sum()
    for round in range(3):
        rate, sent = step / (1 + decay * round), np.tile(w, (K, 1))
        budgets = part.budgets(torch.full((K,), usual), seed, round).tolist()
        for k, left in enumerate(budgets):
            if which == "pfedme":
                V[k] = w if left else V[k]  # θ starts at the received w
                for _ in range(R):
                    steps, left = min(left, epochs), left - min(left, epochs)
                    V[k] = descend(H[k], b[k], V[k], steps, rate, weight, sent[k])
                    sent[k] -= eta * weight * (steps > 0) * (sent[k] - V[k])
            else:
                V[k] = descend(H[k], b[k], V[k], left, rate, weight, w)
                sent[k] = descend(H[k], b[k], w, left, rate, weight * (which == "fedprox"), w)
        if here := [k for k, steps in enumerate(budgets) if steps]:
            mean = p[here] @ sent[here] / p[here].sum()
            w = w + (beta if which == "pfedme" else 1) * (mean - w)
        learner.step(round)
        np.testing.assert_allclose(shared(learner), w, rtol=0, atol=1e-11)
        if which != "fedprox":
            np.testing.assert_allclose(learner.W.T, V, rtol=0, atol=1e-11)


def test_no_weight_is_fedavg_bit_for_bit():
    """FedProx with μ = 0; and Ditto's model for all, whatever its λ, also where modules draw what they drop."""

    def make(d, C):
        return nn.Sequential(nn.Linear(d, 8), nn.Dropout(0.3), nn.Linear(8, C))

    of, part = (several_classes(), LocalSGD(0.1, 2, 3), make), Participation(0.5, dropout=0.3)
    plain = run(FedAvg(*of, participation=part), 0, 5)
    assert torch.equal(run(FedProx(*of, mu=0.0, participation=part), 0, 5).W, plain.W)
    assert not torch.equal(run(FedProx(*of, mu=0.1, participation=part), 0, 5).W, plain.W)
    for lam in (0.0, 0.7):
        assert torch.equal(run(Ditto(*of, lam=lam, participation=part), 0, 5).users.W.T, plain.W)


@pytest.mark.parametrize("make", [Ditto, partial(PFedMe, eta=0.1)], ids=["ditto", "pfedme"])
def test_the_larger_lambda_the_nearer_to_the_model_for_all(make):
    apart = []
    for lam in (0.01, 0.1, 1.0, 9.0):
        learner = run(make(several_classes(), LocalSGD(0.1, 5, FULL), mlp, lam=lam), 0, 8)
        apart.append(float((learner.W - learner.users.W.T).norm()))
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 0.3 * apart[0]


@pytest.mark.parametrize("make", [LEARNERS["ditto"], LEARNERS["pfedme"]], ids=["ditto", "pfedme"])
def test_figures(make):
    """Errors are those of the users' own models; the primal and the model for all beside, as numpy has them."""
    X, y = rows()
    learner = run(make(problem(), LocalSGD(0.1, 3, FULL), linear), 0, 4)
    V, w, now = learner.W.T.numpy(), shared(learner), learner.metrics()
    errors = [np.mean((x @ v - t) ** 2) for x, t, v in zip(X, y, V, strict=True)]
    assert now["test_error"] == now["train_error"] == pytest.approx(np.mean(errors))
    assert now["test_error_worst"] == pytest.approx(max(errors))
    assert now["primal"] == pytest.approx(np.sum(errors) / 2 + learner.lam / 2 * ((V - w) ** 2).sum())
    assert now["global_test_error"] == pytest.approx(
        np.mean([np.mean((x @ w - t) ** 2) for x, t in zip(X, y, strict=True)])
    )
    assert now["global_test_error"] > now["test_error"]


def test_descriptions_and_set_up():
    of = (several_classes(), LocalSGD(), mlp)
    common = {"loss": "cross_entropy", "error_measure": "share misclassified"}
    assert FedProx(*of, mu=0.3).describe() == {"algorithm": "fedprox", "mu": 0.3, **common}
    assert Ditto(*of, lam=0.3).describe() == {"algorithm": "ditto", "lam": 0.3, **common}
    assert PFedMe(*of, lam=3, eta=0.1).describe() == {"algorithm": "pfedme", "lam": 3, **common}
    assert PFedMe(*of, lam=3, eta=0.1).setup() is None
    assert PFedMe(*of, lam=3).eta == 1 / 3, "the longest step, after which w_k is θ_k"
    for learner in (FedProx(*of, mu=0.3), Ditto(*of, lam=0.3)):
        users, _ = learner.setup()
        assert users.local_update(0)[1].tolist() == [[n] for n in COUNTS]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(FedProx, mu=-1.0), r"mu=-1 is not in \[0, 2/step\), here below 20"),
        (partial(FedProx, mu=20.0), "Lower mu or solver.step"),
        (partial(FedProx, mu=float("nan")), "mu=nan"),
        (partial(Ditto, lam=20.0), "lam=20"),
        (partial(PFedMe, lam=0.0, eta=1.0), r"eta=1, lam=0: eta·lam"),
        (partial(PFedMe, lam=3.0, eta=0.5), "is not in"),
        (partial(PFedMe, lam=-1.0, eta=-0.5), "is not in"),
        (partial(PFedMe, lam=25.0, eta=0.01), "lam=25"),
        (partial(PFedMe, lam=1.0, eta=1.0, local_rounds=0), "local_rounds=0"),
        (partial(PFedMe, lam=1.0, eta=1.0, beta=0.0), "beta=0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ConfigError, match=message):
        make(several_classes(), LocalSGD(0.1), mlp)


@pytest.mark.parametrize("make", [LEARNERS["ditto"], LEARNERS["pfedme"]], ids=["ditto", "pfedme"])
def test_personal_models_change_when_their_update_counts(make):
    learner = run(make(several_classes(), LocalSGD(0.1, 2, 3), mlp), 0, 2)
    users, before = learner.users, learner.W.T.clone()
    _, ivs = users.local_update(2)
    assert ivs.shape == (K, users.numbers), "a personal model travels"
    assert torch.equal(learner.W.T, before)
    users.roll_back(np.array([1]))
    users.local_update(3, idle=np.array([0, 2]))  # whose updates of round 2 are still pending
    users.commit(np.array([0, 3]))
    users.roll_back(np.array([1]))
    assert (before != learner.W.T).any(1).tolist() == [True, False, False, True]
    users.commit(np.array([2]))
    users.commit(np.array([1]))  # of which nothing is pending
    assert (before != learner.W.T).any(1).tolist() == [True, False, True, True]


def test_local_training_needs_no_messages() -> None:
    """The models are Ditto's personal ones without a pull towards the shared one, bit for bit."""
    solver, work = LocalSGD(0.05, 2, 4, 0.1), Participation(low=0.3, dropout=0.3)
    local = LocalNetworks(problem(), solver, mlp, seed=3, participation=work)
    ditto = Ditto(problem(), solver, mlp, lam=0.0, seed=3, participation=work)
    for round in range(5):
        users, ivs = local.users.local_update(round)
        assert ivs.shape == (len(users), local.users.numbers) == (len(users), 0)
        local.users.commit(users)
        ditto.step(round)
        assert torch.equal(local.W, ditto.W)
    assert local.metrics()["test_error"] == ditto.metrics()["test_error"]
    assert local.metrics()["primal"] == ditto.metrics()["primal"]
    assert local.setup() is None
    assert not isinstance(local, FedAvg), "nothing is averaged"
    assert local.describe() == {"algorithm": "localnetworks", "loss": "squared", "error_measure": "mean squared error"}
