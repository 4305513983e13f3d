"""Steps down the penalty against plain products, and regularizers whose coupling has a form."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hmtl.mtl import penalties, sums
from hmtl.mtl.penalties import gradient_step

K, M = 12, 37


def coupling(share: float, seed: int = 0) -> Tensor:
    """Return a symmetric matrix with a share of nonzero entries, and a diagonal."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(K, K)) * (rng.random((K, K)) < share)
    return torch.from_numpy(a + a.T + np.diag(rng.uniform(1, 2, K)))


def models(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(K, M, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.fixture(params=[7, 50])
def work(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blocks be parts of a row, a few rows, or everything."""
    monkeypatch.setattr(penalties, "WORK", request.param)
    monkeypatch.setattr(sums, "WORK", request.param)


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps(share: float, dtype: torch.dtype) -> None:
    A, W = coupling(share), models(dtype)
    lengths = torch.linspace(0, 0.3, K, dtype=torch.float64)
    for parts in (1, 3):
        new = W.double()
        for _ in range(parts):
            new = new - lengths[:, None] / parts * (A @ new)
        before = W.clone()
        stepped = gradient_step(A, W, lengths, parts)
        assert torch.equal(W, before)
        assert stepped.dtype == dtype
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(stepped.double(), new, rtol=tolerance, atol=tolerance)
