"""All learners: each round beside numpy, their descriptions, settings that are refused, what they send and keep."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layers import deep, several_classes
from learners import LAYERED, LEARNERS
from quadratics import D, K, P, learn, linear, problem, quadratics, run, shared
from torch import nn

from hmtl.communication import CodedHierarchical, Network, Sums, Uncoded
from hmtl.config.build import conf_dir
from hmtl.errors import ConfigError, RangeError
from hmtl.mtl import (
    APFL,
    SDCA,
    Ditto,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedPer,
    FedProx,
    FedYogi,
    LocalNetworks,
    LocalSGD,
    Mean,
    NetworkAlgorithm,
    Participation,
    PFedMe,
    Scaffold,
    mlp,
)
from hmtl.topology import any_r


def descend(H, b, w, steps, rate, lam=0.0, anchor=0.0, correction=0.0):
    """Some steps of one user, one by one."""
    for _ in range(steps):
        w = w - rate * (H @ w - b + lam * (w - anchor) + correction)
    return w


def fedprox(train, w, own, c, steps, rate, weight, **_):
    return train(w, steps, lam=weight, anchor=w), own


def ditto(train, w, own, c, steps, rate, weight, **_):
    return train(w, steps), train(own, steps, lam=weight, anchor=w)


def pfedme(train, w, own, c, steps, rate, weight, eta, R):
    sent = v = w
    for r in range(R):
        v = train(v, (r + 1) * steps // R - r * steps // R, lam=weight, anchor=sent)
        sent = sent - eta * weight * (sent - v)
    return sent, v


def apfl(train, w, own, c, steps, rate, weight, eta, **_):
    """α = η."""
    mixture = eta * own + (1 - eta) * w
    return train(w, steps), own + eta * (train(mixture, steps) - mixture)


def scaffold(train, w, own, c, steps, rate, **_):
    sent = train(w, steps, correction=c - own)
    return sent, own - c + (w - sent) / (rate * steps)


def local(train, w, own, c, steps, rate, **_):
    return w, train(own, steps)


@given(
    seed=st.integers(0, 10**6),
    reference=st.sampled_from([fedprox, ditto, pfedme, apfl, scaffold, local]),
    weight=st.floats(0.01, 3),
    eta=st.floats(0.05, 0.3),
    beta=st.sampled_from([0.4, 1.0, 1.7]),
    R=st.integers(1, 3),
    epochs=st.integers(1, 4),
    decay=st.sampled_from([0.0, 0.5]),
    reduction=st.sampled_from(["mean", "sum"]),
    part=st.sampled_from([Participation(), Participation(0.2, dropout=0.3), Participation(fraction=0.5)]),
)
def test_every_round_is_that_of_numpy(seed, reference, weight, eta, beta, R, epochs, decay, reduction, part):
    """With stragglers, sampled users, users who drop out, falling steps, and either reduction."""
    H, b = quadratics(seed, reduction)
    name, step = reference.__name__, 0.1 if reduction == "mean" else 0.01
    learner = {
        "fedprox": FedProx(weight),
        "ditto": Ditto(weight),
        "pfedme": PFedMe(weight, eta, R, beta),
        "apfl": APFL(eta),
        "scaffold": Scaffold(),
        "local": LocalNetworks(),
    }[name]
    algorithm = learn(learner, step, epochs, decay, seed, reduction, participation=part)
    w, c = algorithm.model.start.numpy(), np.zeros(D)
    own = np.zeros((K, D)) if name == "scaffold" else np.tile(w, (K, 1))
    R, beta, p = (R, beta, np.full(K, 1 / K)) if name == "pfedme" else (1, 1.0, P)
    for round in range(3):
        rate, moved, last = step / (1 + decay * round), np.zeros((K, D)), own.copy()
        budgets = part.budgets(torch.full((K,), epochs * R), seed, round).tolist()
        here = [k for k, steps in enumerate(budgets) if steps]
        for k in here:
            train = partial(lambda k, rate, *args, **how: descend(H[k], b[k], *args, rate, **how), k, rate)
            sent, own[k] = reference(train, w, own[k], c, budgets[k], rate, weight=weight, eta=eta, R=R)
            moved[k] = sent - w
        if here:
            w = w + beta * (p @ moved) / p[here].sum()
        if name == "scaffold":
            c = c + P @ (own - last)
            np.testing.assert_allclose(c, P @ own, rtol=0, atol=1e-12, err_msg="c is the mean of all c_k")
        algorithm.step(round)
        if name != "local":
            np.testing.assert_allclose(shared(algorithm)[:D], w, rtol=0, atol=1e-11)
        if "v" in algorithm.users.held:
            np.testing.assert_allclose(algorithm.users.held["v"].all(), own, rtol=0, atol=1e-11)
        if name == "scaffold":
            np.testing.assert_allclose(algorithm.users.held["c"].all(), own, rtol=0, atol=1e-10)
            np.testing.assert_allclose(shared(algorithm)[D:], c, rtol=0, atol=1e-10)
        want = {"fedprox": w, "scaffold": w, "apfl": eta * own + (1 - eta) * w}.get(name, own)
        np.testing.assert_allclose(algorithm.W.T, np.broadcast_to(want, (K, D)), rtol=0, atol=1e-11)


def test_no_weight_is_fedavg_bit_for_bit():
    """Also where modules draw what they drop; Ditto's shared model is FedAvg's, whatever its λ."""

    def make(d, C):
        return nn.Sequential(nn.Linear(d, 8), nn.Dropout(0.3), nn.Linear(8, C))

    def averaged(learner):
        solver, part = LocalSGD(0.1, 2, 3), Participation(0.5, dropout=0.3)
        algorithm = NetworkAlgorithm(learner, several_classes(), solver, make, participation=part)
        for round in range(3):
            algorithm.step(round)
        return algorithm.users.held["averaged"].all()

    plain = averaged(FedAvg())
    for same in (FedProx(0.0), Ditto(0.0), Ditto(0.7), APFL()):
        assert torch.equal(averaged(same), plain)
    assert not torch.equal(averaged(FedProx(0.1)), plain)
    torch.testing.assert_close(averaged(FedAvgM(beta=0.0)), plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_holds_settings_alone(name):
    """It may be put on two problems; each algorithm names it and its settings, and no regularizer that it ignores."""
    learner = LEARNERS[name]
    before = dict(vars(learner))
    make = deep if name in LAYERED else linear
    first, _ = (NetworkAlgorithm(learner, several_classes(seed), LocalSGD(), make, seed=seed) for seed in (1, 2))
    assert vars(learner) == before
    described = first.describe()
    common = {"algorithm": name, "loss": "cross_entropy", "error_measure": "share misclassified"}
    assert described.items() >= common.items()
    settings = {key: value for key, value in before.items() if isinstance(value, int | float) and key in described}
    assert described.items() >= settings.items()
    assert not {"phases", "_weights"} & described.keys(), "not a setting"
    assert ("regularizer" in described) == (name == "fedu")
    assert (first.setup() is None) == (name in ("pfedme", "local_networks", "fedu"))
    if setup := first.setup():
        assert setup[0].local_update(0)[1].tolist() == [[n] for n in first.problem.counts]
    assert bool(first.users.make_meaning()) == (name not in ("local_networks", "fedu"))


def test_settings_in_descriptions():
    described = {name: learn(LEARNERS[name]).describe() for name in ("fedprox", "ditto", "pfedme", "apfl", "fedadam")}
    assert described["fedprox"]["mu"] == described["ditto"]["lam"] == described["apfl"]["alpha"] == 0.5
    assert described["pfedme"]["lam"] == 0.8
    assert described["fedadam"]["beta2"] == 0.99
    assert PFedMe(3.0).eta == 1 / 3, "the longest step, after which w_k is v_k"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedAvg("size"), "weights='size': choose rows or equal"),
        (lambda: FedProx(-1.0), r"mu=-1 is not in \[0, 2/step\), here below 20"),
        (lambda: FedProx(20.0), "Lower mu or solver.step"),
        (lambda: FedProx(float("nan")), "mu=nan"),
        (lambda: Ditto(20.0), "lam=20"),
        (lambda: PFedMe(0.0, eta=1.0), "eta=1, lam=0: eta·lam"),
        (lambda: PFedMe(3.0, eta=0.5), "is not in"),
        (lambda: PFedMe(-1.0, eta=-0.5), "is not in"),
        (lambda: PFedMe(25.0, eta=0.01), "lam=25"),
        (lambda: PFedMe(1.0, eta=1.0, local_rounds=0), "local_rounds=0"),
        (lambda: PFedMe(1.0, eta=1.0, beta=0.0), "beta=0"),
        (lambda: APFL(0.0), "alpha=0"),
        (lambda: APFL(1.1), "alpha=1.1"),
        (lambda: FedAvgM(beta=1.0), "beta=1"),
        (lambda: FedAvgM(eta=0.0), "eta=0"),
        (lambda: FedAdam(tau=0.0), "tau=0"),
        (lambda: FedYogi(beta2=1.0), "beta2=1"),
        (lambda: FedPer(), "nothing shared.*mlp"),
        (lambda: FedPer("weights"), "'weights' is none of.*weight"),
    ],
)
def test_refused_settings(make, message):
    with pytest.raises(ConfigError, match=message) as error:
        learn(make(), 0.1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"solver": SDCA()}, {"participation": Participation(speeds=[1.0, 0.5])}])
def test_refused_parts(options):
    with pytest.raises(ConfigError, match=r"solver=sgd|2 numbers for K=4"):
        NetworkAlgorithm(FedAvg(), problem(), **({"solver": LocalSGD(), "model": mlp} | options))


def _invents(shared, own, train):
    own.u = train(shared.w)
    return {"w": own.u}


@pytest.mark.parametrize(
    ("local", "message"),
    [
        (_invents, r"local assigns own\.u.*`personal`"),
        (lambda shared, own, train: {"w": train(shared.w)[0]}, "does not return section w"),
    ],
)
def test_what_local_must_not_do(local, message):
    learner = APFL()
    learner.local = local
    with pytest.raises(ConfigError, match=message):
        learn(learner, 0.1).step(0)


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_have_the_names_of_their_settings(name):
    of = several_classes().regularized(Mean(0.1))
    assert NetworkAlgorithm(LEARNERS[name], of, LocalSGD(0.1), deep).describe()["algorithm"] == name
    assert (conf_dir() / "algorithm" / f"{name}.yaml").exists()


@pytest.mark.parametrize("name", LEARNERS)
def test_what_travels(name):
    """The ledger counts the sections' bits alone, over any communicator; own state stays with its user."""
    names = dict.fromkeys(LEARNERS, sum(w.numel() for w in deep(3, 3).parameters()))
    last = names["fedavg"] - sum(w.numel() for w in deep(3, 3)[:4].parameters())
    m = names["fedavg"]
    sent = {"scaffold": 2 * m, "fednova": m + 1, "fedper": m - last, "fedrep": m - last, "lg_fedavg": last}.get(name, m)
    t = any_r(K=K, H=3, r=2, seed=1)
    for communicator in (Sums(t), Uncoded(t), CodedHierarchical(t, Network())):
        of = several_classes().regularized(Mean(0.1))
        algorithm = NetworkAlgorithm(LEARNERS[name], of, LocalSGD(0.1), deep)
        if name == "local_networks":
            assert algorithm.users.row_layout.numbers == 0
            return
        communicator.round(0, algorithm.users, algorithm.aggregator)
        assert communicator.V_bits == 64 * sent
        assert communicator.ledger.bits("users_to_relays").payload == K * 64 * sent


@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in ("local_networks", *LAYERED)])
def test_own_state_changes_when_its_update_counts(name):
    algorithm = NetworkAlgorithm(LEARNERS[name], several_classes(), LocalSGD(0.1, 2, 3), mlp)
    for round in range(2):
        algorithm.step(round)
    users, own = algorithm.users, [each for each in algorithm.users.held if each not in ("averaged", "coupled")]

    def changed():
        return [(rows != users.held[each].all()).any(1).tolist() for each, rows in before.items()]

    before = {each: users.held[each].all().clone() for each in own}
    _, ivs = users.local_update(2)
    assert ivs.shape == (K, users.row_layout.numbers + (name == "fedu")), "own state does not travel"
    users.roll_back(np.array([1]))
    users.local_update(3, idle=np.array([0, 2]))  # whose updates of round 2 are still pending
    users.commit(np.array([0, 3]))
    users.roll_back(np.array([1]))
    assert changed() == [[True, False, False, True]] * len(own)
    users.commit(np.array([2]))
    users.commit(np.array([1]))  # of which nothing is pending
    assert changed() == [[True, False, True, True]] * len(own)


@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in LAYERED])
def test_divergence_is_an_error(name):
    algorithm = learn(LEARNERS[name])
    for rows in algorithm.users.held.values():
        rows.put(np.arange(K), torch.full_like(rows.all(), torch.inf))
    with pytest.raises(RangeError, match="diverge"):
        run(algorithm, 0, 1).metrics()
    algorithm.problem.splits = ("test",)  # without losses
    with pytest.raises(RangeError, match="diverge"):
        algorithm.metrics()


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_tuned_models_are_those_that_users_trained_from_the_last_average(name):
    """Tuned measures are those of the users who trained in the round."""
    part = Participation(schedule=[(2, 1)])
    algorithm = learn(LEARNERS[name], 0.3, participation=part, rounds=2)
    held = {int(k): w for k, w in zip(*algorithm.users.local_update(2), strict=True)}
    algorithm = learn(LEARNERS[name], 0.3, participation=part, rounds=3)
    assert list(held) == [0, 2, 3]
    now, tasks = algorithm.metrics(), algorithm.problem.tasks
    errors = [float((tasks[k].x_test @ w - tasks[k].y_test).square().mean()) for k, w in held.items()]
    assert now["tuned_test_error"] == pytest.approx(np.mean(errors))
    assert now["tuned_test_error_worst"] == pytest.approx(np.max(errors))
    assert now["tuned_test_error"] != now["test_error"]
    algorithm.users.evaluates = False
    algorithm.step(3)
    assert not any(name.startswith("tuned") for name in algorithm.metrics())
    algorithm.users.evaluates, algorithm.problem.tuned = True, False
    algorithm.step(4)
    assert not any(name.startswith("tuned") for name in algorithm.metrics())
