"""Contracts of `Loss` and `Regularizer`, as tests that pytest collects from a subclass.

    class TestMyRegularizer(RegularizerContract):
        def make(self):
            return MyRegularizer(lam=0.3)

K users, d features, n rows. All tensors are float64.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hmtl.data import Task
from hmtl.mtl import Dense, Loss, Regularizer, Symmetric


def cases(test: Callable[..., None], n: int = 20) -> Callable[..., None]:
    """Run a test of a contract on n seeds."""
    quiet = [HealthCheck.differing_executors, HealthCheck.too_slow]
    return settings(max_examples=n, deadline=None, suppress_health_check=quiet)(
        given(seed=st.integers(0, 2**32 - 1))(test)
    )


class RegularizerContract(ABC):
    """A regularizer is R(W, Ω) = ½ tr(W A Wᵀ) with A = A(Ω); it has R* and B = A⁻¹, and may learn Ω.

    Override `make`, and `K` if the regularizer needs more users.
    """

    K: ClassVar[int] = 5
    d: ClassVar[int] = 6

    @abstractmethod
    def make(self) -> Regularizer:
        """Return a new regularizer, as a configuration makes it."""

    def facts(self, seed: int) -> Tensor:
        """Return the facts [K, f] about K users with random tasks."""
        rng, regularizer = np.random.default_rng(seed), self.make()
        facts = []
        for k in range(self.K):
            x, y = torch.from_numpy(rng.normal(size=(8, self.d))), torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
            facts.append(regularizer.facts(Task(str(k), x, y, x, y)))
        return torch.stack(facts)

    def states(self, seed: int) -> Iterator[tuple[Regularizer, Tensor, Symmetric]]:
        """Yield a prepared regularizer, a random W [d, K], and Ω: the first one, and one learned elsewhere."""
        rng, regularizer = np.random.default_rng(seed), self.make().prepared(self.facts(seed))
        W, other = (torch.from_numpy(rng.normal(size=(self.d, self.K))) for _ in range(2))
        start = regularizer.start(self.K, self.d)
        for Omega in (start, regularizer.update_omega(other, start)):
            yield regularizer, W, Omega

    @cases
    def test_value_and_gradient(self, seed: int) -> None:
        """R(W, Ω) is ½ tr(W A Wᵀ), and its gradient by autograd W A; nothing is detached."""
        for regularizer, W, Omega in self.states(seed):
            A, at = regularizer.coupling(Omega).dense(), W.clone().requires_grad_()
            R = regularizer(at, Omega)
            torch.testing.assert_close(R.detach(), 0.5 * (W @ A @ W.T).trace(), rtol=1e-10, atol=0)
            assert R.requires_grad, "R does not depend on W: remove the detach in forward"
            (gradient,) = torch.autograd.grad(R, at)
            torch.testing.assert_close(gradient, W @ A, rtol=1e-9, atol=1e-9)

    @cases
    def test_coupling(self, seed: int) -> None:
        """A is symmetric and positive semidefinite, in double precision."""
        for regularizer, _, Omega in self.states(seed):
            A = regularizer.coupling(Omega).dense()
            assert A.shape == (self.K, self.K)
            assert A.dtype == torch.float64
            torch.testing.assert_close(A, A.T, rtol=1e-10, atol=0)
            assert torch.linalg.eigvalsh(A)[0] > -1e-9 * A.abs().max()

    @cases
    def test_conjugate(self, seed: int) -> None:
        """R(W) + R*(V) = ⟨V, W⟩ for W = V B, and at least ⟨V, W⟩ for other W."""
        for regularizer, V, Omega in self.states(seed):
            B, dual = regularizer.inverse(Omega).dense(), float(regularizer.inverse(Omega).quadratic(V.T))
            scale = max(1.0, dual)
            W = V @ B
            assert abs(float(regularizer(W, Omega)) + dual - float((V * W).sum())) < 1e-6 * scale
            W = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=V.shape)) @ B
            assert float(regularizer(W, Omega)) + dual >= float((V * W).sum()) - 1e-6 * scale

    @cases
    def test_structure(self, seed: int) -> None:
        """A and B compute what dense matrices do, and messages with sums lead to the same models."""
        for regularizer, W, Omega in self.states(seed):
            for M in (regularizer.coupling(Omega), regularizer.inverse(Omega)):
                full, V = Dense(M.dense()), W.T
                near = 1e-9 * float(full.C.abs().max() * V.square().sum())
                assert (M @ V - full @ V).abs().max() <= near
                assert (M.models(V, M.terms(V).sum(0)) - full @ V).abs().max() <= near
                assert (M.diagonal() - full.diagonal()).abs().max() <= near
                assert abs(float(M.quadratic(V) - full.quadratic(V))) <= near
                slack = torch.linalg.eigvalsh(M.dominating().diag() - full.C)[0]
                assert slack >= -near, "adding all updates is not safe"

    @cases
    def test_learning_omega_never_raises_R(self, seed: int) -> None:
        for regularizer, W, Omega in self.states(seed):
            one = W[:, :1].expand(-1, self.K).clone()  # of rank one; Ω has to stay usable for any W
            for models in (W, one, torch.zeros_like(W)):
                new = regularizer.update_omega(models, Omega)
                assert float(regularizer(models, new)) <= float(regularizer(models, Omega)) * (1 + 1e-5) + 1e-12
                assert regularizer.inverse(new).dense().isfinite().all()

    @cases
    def test_preparing_changes_no_other(self, seed: int) -> None:
        """`prepared` returns a new regularizer and shares no tensors with the old one."""
        old, Omega = self.make(), self.make().start(self.K, self.d)
        before = snapshot(old)
        first = old.prepared(self.facts(seed))
        assert snapshot(old) == before, "prepared changes the regularizer on which it is called"
        A = first.coupling(Omega).dense()
        second = first.prepared(self.facts(seed + 1))
        second.to(torch.float32)
        assert first is not old
        assert second is not first
        assert torch.equal(first.coupling(Omega).dense(), A), "two regularizers share tensors"
        assert torch.equal(old.prepared(self.facts(seed)).coupling(Omega).dense(), A), "prepared is not repeatable"


class LossContract(ABC):
    """A loss is an element-wise convex function of the prediction that autograd can differentiate.

    Override `make`. Targets are drawn from the labels of the loss, or are real numbers if it has none.
    """

    C: ClassVar[int] = 3  # classes, for a loss of classes

    @abstractmethod
    def make(self) -> Loss:
        """Return a new loss, as a configuration makes it."""

    def sample(self, seed: int, n: int = 12) -> tuple[Loss, Tensor, Tensor, Tensor]:
        """Return a loss, two predictions [n], or [n, C] for classes, and targets y [n]."""
        loss, rng = self.make(), np.random.default_rng(seed)
        shape = (n, self.C) if loss.classes else (n,)
        if loss.classes:
            y = rng.integers(self.C, size=n).astype(float)
        else:
            y = rng.normal(0, 2, size=n) if loss.labels is None else rng.choice(loss.labels, size=n)
        p, q = (torch.from_numpy(rng.normal(0, 3, size=shape)) for _ in range(2))
        return loss, p, q, torch.from_numpy(y)

    @cases
    def test_elementwise(self, seed: int) -> None:
        """Loss and error are one finite number per row, and do not depend on other rows."""
        loss, p, _, y = self.sample(seed)
        values, errors = loss(p, y), loss.error(p, y)
        assert values.shape == errors.shape == y.shape
        assert values.isfinite().all()
        assert (errors >= 0).all()
        for j in range(len(y)):
            torch.testing.assert_close(loss(p[j : j + 1], y[j : j + 1])[0], values[j], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(loss.error(p[j : j + 1], y[j : j + 1])[0], errors[j], rtol=1e-12, atol=1e-12)

    @cases
    def test_slope(self, seed: int) -> None:
        """The loss is convex, and `gradient` returns its slope: it lies above its tangents."""
        loss, p, q, y = self.sample(seed)
        slope = loss.gradient(p, y)
        for other in (q, p + 1e-3 * (q - p), p - 1e-3 * (q - p)):
            rise = (slope * (other - p)).reshape(len(y), -1).sum(1)
            assert (loss(other, y) >= loss(p, y) + rise - 1e-10).all()


class DualLossContract(LossContract):
    """A loss for SDCA also has a conjugate ℓ*(−a) and the exact step of one dual variable a."""

    GRID: ClassVar[Tensor] = torch.linspace(-20, 20, 4001, dtype=torch.float64)

    @cases
    def test_conjugate(self, seed: int) -> None:
        """ℓ(p) + ℓ*(−a) ≥ −a·p, with equality if −a is the slope of ℓ at p."""
        loss, p, q, y = self.sample(seed)
        a = -loss.gradient(p, y)
        conjugate = loss.conjugate(a, y)
        torch.testing.assert_close(loss(p, y) + conjugate, -a * p, rtol=1e-9, atol=1e-9)
        assert (loss(q, y) + conjugate >= -a * q - 1e-9).all()

    @cases
    def test_conjugate_is_the_supremum(self, seed: int) -> None:
        """ℓ*(−a) is the supremum of −a·p − ℓ(p), which may be infinite; ℓ*(0) is finite."""
        loss, _, _, y = self.sample(seed)
        a = torch.from_numpy(np.random.default_rng(seed).uniform(-5, 5, size=len(y)).round(2))
        values = -a[:, None] * self.GRID - loss(self.GRID.expand(len(y), -1), y[:, None])
        most, at = values.max(1)
        for conjugate, sup, where in zip(loss.conjugate(a, y).tolist(), most.tolist(), at.tolist(), strict=True):
            if math.isinf(conjugate):
                assert where in (0, len(self.GRID) - 1), "the conjugate is infinite, but the supremum is not"
            else:
                assert abs(conjugate - sup) < 1e-3
        assert loss.conjugate(torch.zeros_like(y), y).isfinite().all()

    @cases
    def test_coordinate_step(self, seed: int) -> None:
        """The step maximizes −ℓ*(−a′) − (a′ − a)·p − (q/2)(a′ − a)² over a′."""
        loss, p, slope_at, y = self.sample(seed)
        rng = np.random.default_rng(seed)
        a = -loss.gradient(slope_at, y) * torch.from_numpy(rng.choice([0.0, 0.5, 1.0], size=len(y)))
        q = torch.from_numpy(10 ** rng.uniform(-3, 2, size=len(y)) * rng.choice([0.0, 1.0, 1.0], size=len(y)))
        p = torch.where(q == 0, 0.0, p)

        def value(new: Tensor) -> Tensor:
            return -loss.conjugate(new, y) - (new - a) * p - q / 2 * (new - a).square()

        new = loss.coordinate_step(a, p, y, q)
        best = value(new)
        assert best.isfinite().all(), "after the step, the conjugate is infinite"
        for step in np.concatenate([np.linspace(-3, 3, 121), [-1e-3, 1e-3, -1e-2, 1e-2]]):
            for other in (new + step, torch.full_like(new, step)):
                assert (best >= value(other) - 1e-9).all()


def snapshot(module: torch.nn.Module) -> tuple[list[str], dict[str, list[float]]]:
    """Return the names of all attributes of a module and the values of its tensors, for comparison."""
    return sorted(vars(module)), {name: tensor.tolist() for name, tensor in module.state_dict().items()}
