"""pFedMe comes to rest where the Moreau envelopes of all users do; its rounds are in test_base.py."""

import numpy as np
import pytest
from quadratics import learn, near, quadratics, shared

from hmtl.mtl import PFedMe


@pytest.mark.parametrize(
    ("lam", "eta", "beta"),
    [(0.5, 2.0, 0.7), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((0.5, 2.0, 1.0), (2.0, 0.4, 1.7)))],
)
def test_pfedme_comes_to_rest_where_the_envelopes_do(lam, eta, beta):
    """R = 1: where Σ_k (w − v_k(w)) = 0, the gradient of the mean of Moreau envelopes, each user weighing the same."""
    H, b = quadratics()
    inverse = np.linalg.inv(H + lam * np.eye(H.shape[1]))
    w = np.linalg.solve(np.eye(len(b[0])) - lam * inverse.mean(0), np.einsum("kij,kj->ki", inverse, b).mean(0))
    algorithm = learn(PFedMe(lam, eta, beta=beta), 0.3 if lam > 1 else 0.5, 40, rounds=40)
    np.testing.assert_allclose(shared(algorithm), w, rtol=0, atol=1e-7)
    np.testing.assert_allclose(algorithm.W.T, near(H, b, lam, w), rtol=0, atol=1e-7)
