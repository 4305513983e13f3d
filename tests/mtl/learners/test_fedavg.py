"""FedAvg's weights, and where FedProx comes to rest; their rounds are in test_base.py and test_networks.py."""

import numpy as np
import pytest
import torch
from quadratics import COUNTS, D, K, P, learn, quadratics, run, shared

from hmtl.mtl import FedAvg, FedProx, Participation


@pytest.mark.parametrize(("weights", "p"), [("rows", COUNTS), ("equal", np.ones(K)), (torch.sqrt, np.sqrt(COUNTS))])
def test_the_average_has_these_weights(weights, p):
    algorithm = learn(FedAvg(weights), participation=Participation(fraction=0.8))
    users, sent = algorithm.users.local_update(0)
    want = np.average(sent[:], axis=0, weights=p[users])
    np.testing.assert_allclose(shared(run(algorithm, 0, 1)), want, rtol=1e-9)


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_fedprox_comes_to_rest_where_every_proximal_step_cancels(mu):
    """If users minimise exactly, w = Σ p_k argmin_k(w), a linear equation in w; FedAvg rests elsewhere."""
    H, b = quadratics()
    inverse = np.linalg.inv(H + mu * np.eye(D))
    want = np.linalg.solve(np.eye(D) - mu * np.tensordot(P, inverse, 1), P @ np.einsum("kij,kj->ki", inverse, b))
    np.testing.assert_allclose(shared(learn(FedProx(mu), 0.5, 40, rounds=30)), want, rtol=0, atol=1e-7)
    alone = P @ np.linalg.solve(H, b[:, :, None])[:, :, 0]  # FedAvg's: the mean of the users' optima
    assert abs(want - alone).max() > 0.02
    assert abs(want - np.linalg.solve(np.tensordot(P, H, 1), P @ b)).max() > 1e-3  # nor is it the pooled optimum
