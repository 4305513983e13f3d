"""Large models are trained one after the other in memory that is kept; small ones all at once."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hmtl import Federation
from hmtl.communication import Uncoded
from hmtl.mtl import Ditto, FedAvg


@pytest.mark.parametrize("communicator", [{}, {"communicator": Uncoded}], ids=["default", "uncoded"])
@pytest.mark.parametrize(
    "algorithm", [pytest.param(FedAvg(), marks=pytest.mark.slow), Ditto(lam=0.1)], ids=["fedavg", "ditto"]
)
def test_models_are_the_same_however_many_are_trained_at_once(algorithm, communicator, tmp_path, monkeypatch):
    models = []
    for size in (2**26, 1, 800):
        monkeypatch.setattr("hmtl.mtl.algorithms.learner_sides.MODEL_CHUNK_BYTES", size)
        torch.manual_seed(0)
        data = [TensorDataset(torch.randn(n, 6), torch.randint(3, (n,))) for n in (5, 21, 40, 3, 77)]
        network = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
        federation = Federation(network, data, algorithm=algorithm, output_dir=tmp_path / str(size), **communicator)
        federation.train(3)
        models.append(torch.stack([nn.utils.parameters_to_vector(each.parameters()) for each in federation.models]))
    for each in models[1:]:
        torch.testing.assert_close(each, models[0], rtol=0, atol=1e-6)
