"""FedAvg's weights; its rounds are in test_base.py."""

import numpy as np
import pytest
import torch
from quadratics import COUNTS, K, learn, run, shared

from hmtl.mtl import FedAvg, Participation


@pytest.mark.parametrize(("weights", "p"), [("rows", COUNTS), ("equal", np.ones(K)), (torch.sqrt, np.sqrt(COUNTS))])
def test_the_average_has_these_weights(weights, p):
    algorithm = learn(FedAvg(weights), participation=Participation(fraction=0.8))
    users, sent = algorithm.users.local_update(0)
    want = np.average(sent[:], axis=0, weights=p[users])
    np.testing.assert_allclose(shared(run(algorithm, 0, 1)), want, rtol=1e-9)
