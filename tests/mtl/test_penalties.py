"""Steps down the penalty against plain products, and regularizers whose coupling has a form."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hmtl.mtl import Mean, Regularizer, Ridge, SharedModel, TaskRelationship, penalties, sums
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


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("regularizer", [Ridge(0.3), Mean(0.7, 0.2), SharedModel(0.5), TaskRelationship(0.4)], ids=str)
def test_regularizers(regularizer: Regularizer) -> None:
    """R is ½ tr(W A Wᵀ) and its gradient W A, for the A of `coupling`."""
    Omega = torch.eye(K, dtype=torch.float64) + 0.1
    W, A = models().T.clone().requires_grad_(), regularizer.coupling(Omega)
    value = regularizer(W, Omega)
    torch.testing.assert_close(value, 0.5 * torch.trace(W @ A @ W.T), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value, W)[0], (W @ A).detach(), rtol=1e-10, atol=1e-12)
    assert (regularizer.form(Omega) is None) == isinstance(regularizer, TaskRelationship)
    if (form := regularizer.form(Omega)) is not None:
        torch.testing.assert_close(form.delta.diag() + form.U @ form.C @ form.U.T, A, rtol=1e-12, atol=1e-12)


def test_a_redefined_coupling_does_not_inherit_the_form() -> None:
    class Stronger(Mean):
        def coupling(self, Omega: Tensor) -> Tensor:
            return 2 * super().coupling(Omega)

    W, Omega = models().T, torch.eye(K, dtype=torch.float64)
    assert Stronger(0.1).form(Omega) is None
    torch.testing.assert_close(Stronger(0.1)(W, Omega), 2 * Mean(0.1)(W, Omega))
