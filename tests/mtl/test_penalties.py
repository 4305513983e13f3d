"""Penalties and steps by the structure of a coupling, against plain products."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hmtl.mtl import Mean, Regularizer, Ridge, SharedModel, TaskRelationship, penalties, sums
from hmtl.mtl.penalties import Dense, Sparse

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
@pytest.mark.parametrize("kind", [Dense, Sparse])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_penalty_and_steps(kind: Callable[[Tensor], Dense | Sparse], share: float, dtype: torch.dtype) -> None:
    A, W = coupling(share), models(dtype)
    tight = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    structured = kind(A)
    want = 0.5 * torch.trace(W.double().T @ A @ W.double())
    torch.testing.assert_close(structured.penalty(W), want, **tight)
    lengths = torch.linspace(0, 0.3, K, dtype=torch.float64)
    for parts in (1, 3):
        new = W.double()
        for _ in range(parts):
            new = new - lengths[:, None] / parts * (A @ new)
        before = W.clone()
        stepped = structured.stepped(W, lengths, parts)
        assert torch.equal(W, before)
        assert stepped.dtype == dtype
        torch.testing.assert_close(stepped.double(), new, **tight)


@pytest.mark.parametrize("kind", [Dense, Sparse])
def test_penalty_of_models_near_each_other(kind: Callable[[Tensor], Dense | Sparse]) -> None:
    """It depends on the small distances between large models."""
    L = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    w = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    W = torch.stack([w, w + 1e-3])
    want = 0.5 * (W[0].double() - W[1].double()).square().sum()
    torch.testing.assert_close(kind(L).penalty(W), want, rtol=0.1, atol=0)


def test_rows_of_a_sparse_step_have_the_same_bits_for_any_set_of_users() -> None:
    A, W, lengths = coupling(0.1), models(torch.float32), torch.full((K,), 0.1, dtype=torch.float64)
    whole = Sparse(A).stepped(W, lengths, 1)
    for k in range(K):
        at = A[k].nonzero()[:, 0]
        part = Sparse(A[at][:, at]).stepped(W[at], lengths[at], 1)
        assert torch.equal(part[at.tolist().index(k)], whole[k])


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("regularizer", [Ridge(0.3), Mean(0.7, 0.2), SharedModel(0.5), TaskRelationship(0.4)], ids=str)
def test_regularizers(regularizer: Regularizer) -> None:
    """R is ½ tr(W A Wᵀ) and its gradient W A, for the A of `coupling`."""
    Omega = torch.eye(K, dtype=torch.float64) + 0.1
    W, A = models().T.clone().requires_grad_(), regularizer.coupling(Omega)
    value = regularizer(W, Omega)
    torch.testing.assert_close(value, 0.5 * torch.trace(W @ A @ W.T), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value, W)[0], (W @ A).detach(), rtol=1e-10, atol=1e-12)
    assert (regularizer.form(Omega) is None) == isinstance(regularizer, SharedModel | TaskRelationship)
    if (form := regularizer.form(Omega)) is not None:
        torch.testing.assert_close(form.delta.diag() + form.U @ form.C @ form.U.T, A, rtol=1e-12, atol=1e-12)


def test_a_redefined_coupling_does_not_inherit_the_form() -> None:
    class Stronger(Mean):
        def coupling(self, Omega: Tensor) -> Tensor:
            return 2 * super().coupling(Omega)

    W, Omega = models().T, torch.eye(K, dtype=torch.float64)
    assert Stronger(0.1).form(Omega) is None
    torch.testing.assert_close(Stronger(0.1)(W, Omega), 2 * Mean(0.1)(W, Omega))
