"""A shared and an own model of each user: where Ditto comes to rest, and the figures of both models."""

import numpy as np
import pytest
import torch
from layers import K, several_classes
from quadratics import learn, near, quadratics, rows, run, shared

from hmtl.mtl import APFL, Ditto, LocalNetworks, LocalSGD, NetworkAlgorithm, Participation, PFedMe, mlp


@pytest.mark.parametrize("lam", [0.3, 2.0])
def test_ditto_comes_to_rest_near_the_pooled_optimum(lam):
    """With one full step in a round, FedAvg is gradient descent on all rows; v_k = argmin_k near its end."""
    H, b = quadratics()
    X, y = rows()
    pooled = np.linalg.lstsq(np.concatenate(X), np.concatenate(y), rcond=None)[0]
    algorithm = learn(Ditto(lam), 0.4, rounds=150)
    np.testing.assert_allclose(shared(algorithm), pooled, rtol=0, atol=1e-7)
    np.testing.assert_allclose(algorithm.W.T, near(H, b, lam, pooled), rtol=0, atol=1e-7)
    assert abs(algorithm.W.T.numpy() - pooled).max() > 0.1


@pytest.mark.parametrize("kind", [Ditto, lambda lam: PFedMe(lam, eta=0.1)], ids=["ditto", "pfedme"])
def test_the_larger_lambda_the_nearer_to_the_shared_model(kind):
    apart = []
    for lam in (0.01, 0.1, 1.0, 9.0):
        algorithm = run(NetworkAlgorithm(kind(lam), several_classes(), LocalSGD(0.1, 5, 100), mlp), 0, 8)
        apart.append(float((algorithm.W.T - algorithm.users.held["averaged"].all()).norm()))
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 0.3 * apart[0]


@pytest.mark.parametrize("learner", [Ditto(0.5), PFedMe(0.8, 0.5, 2), APFL()], ids=["ditto", "pfedme", "apfl"])
def test_figures(learner):
    """Errors are those of the users' own models; the primal, and errors of the shared model, as numpy has them."""
    X, y = rows()
    algorithm = learn(learner, 0.1, 3, rounds=4)
    V, w, now = algorithm.W.T.numpy(), shared(algorithm), algorithm.metrics()
    own = algorithm.users.held["v"].all().numpy()
    errors, of_shared = (
        [np.mean((x @ v - t) ** 2) for x, t, v in zip(X, y, models, strict=True)] for models in (V, [w] * K)
    )
    assert now["test_error"] == now["train_error"] == pytest.approx(np.mean(errors))
    assert now["test_error_worst"] == pytest.approx(max(errors))
    assert now["primal"] == pytest.approx(np.sum(errors) / 2 + learner.lam / 2 * ((own - w) ** 2).sum())
    assert now["global_test_error"] == pytest.approx(np.mean(of_shared))
    assert now["global_test_error"] > now["test_error"]


def test_local_training_needs_no_messages():
    """The models are Ditto's own ones without a pull towards the shared one, bit for bit."""
    part = Participation(low=0.3, dropout=0.3)
    local, ditto = (
        NetworkAlgorithm(learner, several_classes(), LocalSGD(0.05, 2, 4, 0.1), mlp, 3, part)
        for learner in (LocalNetworks(), Ditto(0.0))
    )
    for round in range(5):
        users, ivs = local.users.local_update(round)
        assert ivs.shape == (len(users), local.users.numbers) == (len(users), 0)
        local.users.commit(users)
        ditto.step(round)
        assert torch.equal(local.W, ditto.W)
    assert {name: ditto.metrics()[name] for name in local.metrics()} == local.metrics()
