"""A shared and an own model of each user: how near they are, and the figures of both models."""

import numpy as np
import pytest
from layers import K, several_classes
from quadratics import learn, rows, run, shared

from hmtl.mtl import APFL, Ditto, LocalSGD, NetworkAlgorithm, PFedMe, mlp


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
