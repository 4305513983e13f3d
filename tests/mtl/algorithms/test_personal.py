"""FedProx, Ditto and pFedMe beside numpy: where they come to rest, and each round on the way, on squared losses.

K users, n_k rows of D features. Of full batches and a linear model, a step on user k's loss + (λ/2)‖w − a‖² is affine:
w ← w − step·(H_k w − b_k + λ (w − a)), with H_k = X_kᵀX_k/n_k and b_k = X_kᵀy_k/n_k.
"""

import io
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hmtl.communication import CodedHierarchical, Network, Uncoded
from hmtl.config.build import build_algorithm, build_problem, build_tasks
from hmtl.data import Task
from hmtl.errors import ConfigError
from hmtl.mtl import (
    SDCA,
    CrossEntropy,
    Ditto,
    FedAvg,
    FedProx,
    LocalSGD,
    Participation,
    PFedMe,
    Problem,
    Ridge,
    Squared,
    mlp,
)
from hmtl.topology import any_r

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


@pytest.mark.parametrize(("lam", "eta", "beta"), [(0.5, 2.0, 1.0), (0.5, 2.0, 0.7), (2.0, 0.4, 1.7)])
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


@settings(max_examples=25)
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
    part=st.sampled_from([Participation(), Participation(0.2, dropout=0.3)]),
)
def test_every_round_is_that_of_numpy(seed, which, weight, eta, beta, R, epochs, decay, reduction, part):
    """With stragglers, users who drop out, falling steps, and either reduction."""
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
                for _ in range(R):
                    steps, left = min(left, epochs), left - min(left, epochs)
                    V[k] = descend(H[k], b[k], V[k], steps, rate, weight, sent[k])
                    sent[k] -= eta * weight * (steps > 0) * (sent[k] - V[k])
            else:
                V[k] = descend(H[k], b[k], V[k], left, rate, weight, w)
                sent[k] = descend(H[k], b[k], w, left, rate, weight * (which == "fedprox"), w)
        w = w + (beta if which == "pfedme" else 1) * (p @ sent - w)
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


def test_another_weight_gives_another_result():
    of = (several_classes(), LocalSGD(0.1, 2, 3), mlp)
    makers = {
        "fedprox": [partial(FedProx, mu=mu) for mu in (0.1, 0.2)],
        "ditto": [partial(Ditto, lam=lam) for lam in (0.1, 0.2)],
        "pfedme": [
            partial(PFedMe, lam=lam, eta=eta, local_rounds=R, beta=beta)
            for lam, eta, R, beta in [
                (0.5, 0.5, 2, 1),
                (1, 0.5, 2, 1),
                (0.5, 1, 2, 1),
                (0.5, 0.5, 3, 1),
                (0.5, 0.5, 2, 2),
            ]
        ],
    }
    for name, others in makers.items():
        found = [run(make(*of), 0, 3).W for make in others]
        for i, one in enumerate(found):
            assert all((one - other).abs().max() > 1e-4 for other in found[:i]), name


@pytest.mark.parametrize("make", [Ditto, partial(PFedMe, eta=0.1)], ids=["ditto", "pfedme"])
def test_the_larger_lambda_the_nearer_to_the_model_for_all(make):
    apart = []
    for lam in (0.01, 0.1, 1.0, 9.0):
        learner = run(make(several_classes(), LocalSGD(0.1, 5, FULL), mlp, lam=lam), 0, 8)
        apart.append(float((learner.W - learner.users.W.T).norm()))
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 0.2 * apart[0]


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


@pytest.mark.parametrize("make", [LEARNERS["ditto"], LEARNERS["pfedme"]], ids=["ditto", "pfedme"])
def test_figures_where_some_or_all_have_nothing_to_test_on(make):
    X, y = rows()
    pairs = [tuple(map(torch.from_numpy, pair)) for pair in zip(X, y, strict=True)]
    for tested in ({1, 3}, set()):
        tasks = [Task(str(k), x, t, *((x, t) if k in tested else (x[:0], t[:0]))) for k, (x, t) in enumerate(pairs)]
        learner = run(make(Problem(tasks, Squared(), Ridge(1.0)), LocalSGD(0.1, 3, FULL), linear), 0, 2)
        now, w = learner.metrics(), shared(learner)
        assert np.isfinite(list(now.values())).all()
        if tested:
            wanted = np.mean([np.mean((X[k] @ w - y[k]) ** 2) for k in tested])
            assert now["global_test_error"] == pytest.approx(wanted)
        else:
            assert not {"global_test_error", "test_error"} & set(now)


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@every_learner
def test_what_did_not_count_was_never_made(learner):
    """Rolled back, pending, or counted: own models follow word of each user, and none of them travels."""
    learner = run(learner(several_classes(), LocalSGD(0.1, 2, 3), mlp), 0, 2)
    users, before = learner.users, learner.W.T.clone()
    m = users.numbers
    who, ivs = users.local_update(2)
    assert ivs.shape == (K, m)
    assert torch.equal(learner.W.T, before)
    users.roll_back(np.array([1]))
    who, _ = users.local_update(3, idle=np.array([0, 2]))  # whose updates of round 2 are not settled yet
    assert who.tolist() == [1, 3]
    users.commit(np.array([0, 3]))
    users.roll_back(np.array([1]))
    changed = (before != learner.W.T).any(1).tolist()
    if isinstance(learner, FedProx):
        assert not any(changed)
        return
    assert changed == [True, False, False, True]
    once = run_pending(learner, before, round=2)
    assert torch.equal(learner.W.T[0], once[0])
    users.commit(np.array([2]))
    assert torch.equal(learner.W.T[2], once[2])
    users.commit(np.array([1]))  # nothing of it is pending
    assert torch.equal(learner.W.T[1], before[1])


def run_pending(learner, V, round):
    """What the users' own models [K, m] become in a round, had it been the only one."""
    now = learner.users.V
    learner.users.V = V
    _, own = learner.users._train(round, slice(None), learner.users.rows, learner.users._usual)
    learner.users.V = now
    return own


@every_learner
def test_a_round_that_nobody_takes_part_in(learner):
    learner = run(learner(several_classes(), LocalSGD(0.1, 2, 3), mlp), 0, 2)
    state = learner.users.state_dict()
    who, ivs = learner.users.local_update(2, idle=np.arange(K))
    assert ivs.shape == (0, learner.users.numbers)
    models = learner.aggregator.update(who, ivs)
    torch.testing.assert_close(models, learner.users.W)
    learner.users.commit(who)
    learner.users.receive(who, models[who])
    assert same(learner.users.state_dict(), state)


def over(communicator, learner, rounds, away=lambda round: ()):
    for round in rounds:
        communicator.round(round, learner.users, learner.aggregator, away(round))
    return learner


@every_learner
@pytest.mark.parametrize(("wire", "lost"), [(None, 0.0), ("bfloat16", 0.0), (None, 0.3)])
def test_over_every_communicator_and_stopped_on_the_way(learner, wire, lost):
    """With stragglers, users who drop out and, where relays do, users who wait for word of an update.

    (Where relays drop out, coded rounds may be empty that uncoded ones are not.)
    """
    topology, part = any_r(K=K, H=3, r=1, seed=2), Participation(0.4, dropout=0.3, relays=lost)

    def fresh():
        return learner(several_classes(), LocalSGD(0.1, 2, 3), mlp, seed=5, participation=part)

    def away(round):
        return part.absent_relays(5, round, 3)

    found, waited = [], 0
    for kind in (CodedHierarchical, Uncoded):
        whole, communicator = fresh(), kind(topology, Network(), wire=wire)
        over(communicator, whole, range(6), away)
        found.append(whole)
        for cut in (2,):  # stopped and gone on with
            first, then = (kind(topology, Network(), wire=wire) for _ in range(2))
            stopped, buffer = over(first, fresh(), range(cut), away), io.BytesIO()
            torch.save((stopped.state_dict(), first.state_dict()), buffer)
            buffer.seek(0)
            going = fresh()
            states = torch.load(buffer, weights_only=True)
            going.load_state_dict(states[0])
            then.load_state_dict(states[1])
            if "pending" in states[0]["users"]:
                waited += int((states[0]["users"]["pending"] != states[0]["users"]["V"]).any())
            over(then, going, range(cut, 6), away)
            assert same(going.users.state_dict(), whole.users.state_dict())
            assert going.metrics() == whole.metrics()
    coded, uncoded = found
    if lost:
        assert waited or isinstance(coded, FedProx), "nobody waited: the test does not test what it says"
    else:
        assert torch.equal(coded.aggregator.models, uncoded.aggregator.models)
        assert same(coded.users.state_dict(), uncoded.users.state_dict())


def test_descriptions_and_set_up():
    of = (several_classes(), LocalSGD(), mlp)
    common = {"loss": "cross_entropy", "error_measure": "share misclassified"}
    assert FedProx(*of, mu=0.3).describe() == {"algorithm": "fedprox", "mu": 0.3, **common}
    assert Ditto(*of, lam=0.3).describe() == {"algorithm": "ditto", "lam": 0.3, **common}
    assert PFedMe(*of, lam=3, eta=0.1).describe() == {"algorithm": "pfedme", "lam": 3, **common}
    assert PFedMe(*of, lam=3, eta=0.1).setup() is None
    for learner in (FedProx(*of, mu=0.3), Ditto(*of, lam=0.3)):
        users, _ = learner.setup()
        assert users.local_update(0)[1].tolist() == [[n] for n in COUNTS]


@every_learner
def test_timing_one_user_leaves_no_trace(learner):
    learner = run(learner(several_classes(), LocalSGD(0.1, 2, 3), mlp), 0, 2)
    learner.users.local_update(2)  # with an update that is pending
    before, drawn = learner.state_dict(), torch.random.get_rng_state()
    assert learner.user_seconds(3) > 0
    after = learner.state_dict()
    assert all(same(before[side], after[side]) for side in before)
    assert torch.equal(drawn, torch.random.get_rng_state())


def test_a_user_alone_does_what_it_does_beside_the_others():
    for learner in LEARNERS.values():
        users = run(learner(several_classes(), LocalSGD(0.1, 2, 3), linear), 0, 2).users
        together = users._train(2, slice(None), users.rows, users._usual)
        for k in range(K):
            one = slice(k, k + 1)
            alone = users._train(2, one, users.rows.of(k), users._usual[one])
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(a[0], b[k], rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_learner
def test_on_a_gpu(learner):
    where = []
    for device in ("cpu", "cuda"):
        of = several_classes()
        of = Problem(of.tasks, of.loss, of.regularizer, device=device)
        where.append(run(learner(of, LocalSGD(0.1, 2, 3), mlp), 0, 3))
    assert where[1].W.is_cuda
    torch.testing.assert_close(where[1].W.cpu(), where[0].W, rtol=0, atol=1e-5)


def test_configurations(configure):
    for algorithm, kind in (("fedprox", FedProx), ("ditto", Ditto), ("pfedme", PFedMe)):
        cfg = configure(f"algorithm={algorithm}", "K=10", "dataset.rows_per_user=40")
        learner = build_algorithm(cfg, build_problem(cfg, build_tasks(cfg)[0]))
        assert isinstance(learner, kind)
        before = learner.metrics()["primal"]
        assert run(learner, 0, 2).metrics()["primal"] < before
        other = configure(f"algorithm={algorithm}", "lam=0.37")
        assert (other.algorithm.mu if kind is FedProx else other.algorithm.lam) == 0.37  # what `hmtl.tune` varies


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(FedProx, mu=-1.0), r"mu=-1 is not in \[0, 2/step\), here below 20"),
        (partial(FedProx, mu=20.0), "Lower mu or solver.step"),
        (partial(FedProx, mu=float("nan")), "mu=nan"),
        (partial(Ditto, lam=20.0), "lam=20"),
        (partial(PFedMe, lam=0.0, eta=1.0), r"eta=1, lam=0: eta·lam"),
        (partial(PFedMe, lam=3.0, eta=0.5), "has to be in"),
        (partial(PFedMe, lam=-1.0, eta=-0.5), "has to be in"),
        (partial(PFedMe, lam=25.0, eta=0.01), "lam=25"),
        (partial(PFedMe, lam=1.0, eta=1.0, local_rounds=0), "local_rounds=0"),
        (partial(PFedMe, lam=1.0, eta=1.0, beta=0.0), "beta=0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ConfigError, match=message):
        make(several_classes(), LocalSGD(0.1), mlp)


@every_learner
def test_they_work_by_gradients(learner):
    with pytest.raises(ConfigError, match="solver=sgd"):
        learner(several_classes(), SDCA(), mlp)
