"""SCAFFOLD comes to rest where FedAvg does not; its rounds are in test_base.py."""

import numpy as np
import pytest
from quadratics import P, learn, quadratics

from hmtl.mtl import FedAvg, Participation, Scaffold


@pytest.mark.slow
@pytest.mark.parametrize("part", [Participation(), Participation(0.3, dropout=0.3)], ids=["all", "some absent"])
def test_it_comes_to_rest_where_the_gradients_of_all_cancel(part):
    """After many local steps in a round, too."""
    H, b = quadratics()
    optimum = np.linalg.solve(np.tensordot(P, H, 1), P @ b)
    models = [learn(each, 0.1, 15, participation=part, rounds=250).W.T.numpy() for each in (Scaffold(), FedAvg())]
    assert abs(models[0] - optimum).max() < 1e-7
    assert abs(models[1] - optimum).max() > 1e-2
