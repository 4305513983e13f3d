"""The contracts catch typical mistakes in losses, regularizers and learners of a user's own."""

import pytest
import torch

from hmtl.mtl import Dense, FedAvg, Hinge, Loss, Regularizer, Ridge
from hmtl.testing import DualLossContract, LearnerContract, LossContract, RegularizerContract


class Detached(Ridge):
    """A penalty without a gradient, so that all users train alone."""

    def forward(self, W, Omega):
        return super().forward(W.detach(), Omega)


class Doubled(Ridge):
    """R without its ½."""

    def forward(self, W, Omega):
        return 2 * super().forward(W, Omega)


class Ones(Regularizer):
    """A coupling that is not positive definite."""

    def coupling(self, Omega):
        return Dense(self.lam * (1 - 2 * Omega.eye))


class Careless(Ridge):
    """Prepares itself instead of a copy."""

    def prepared(self, facts):
        self.lam *= 1 + float(facts.shape[0])
        return self


class Raising(Ridge):
    """Its update of Ω raises R."""

    def coupling(self, Omega):
        return self.lam * Omega

    def update_omega(self, W, Omega):
        return 2 * Omega


class WrongSign(Hinge):
    def conjugate(self, a, y):
        return -super().conjugate(a, y)


class Unclipped(Hinge):
    """Leaves [0, 1]."""

    def coordinate_step(self, a, prediction, y, q):
        return torch.where(q == 0, y, a + (y - prediction) / q)


class HalfStep(Hinge):
    def coordinate_step(self, a, prediction, y, q):
        return (a + super().coordinate_step(a, prediction, y, q)) / 2


class Concave(Loss):
    def forward(self, prediction, y):
        return -(prediction - y).square()


class Pooled(Loss):
    """A mean instead of one number per row."""

    def forward(self, prediction, y):
        return (prediction - y).square().mean().expand(y.shape)


class InPlace(FedAvg):
    """Writes into the rows that users hold."""

    def local(self, shared, own, train):
        shared.w[0].mul_(0.5)
        return {"w": train(shared.w)}


class Mixing(FedAvg):
    """Users who train together learn from each other."""

    def local(self, shared, own, train):
        return {"w": train(shared.w).mean(0).expand_as(shared.w)}


class Forgetful(FedAvg):
    """Its server keeps something in the learner, which is no part of a checkpoint."""

    rounds = 0

    def server(self, state, mean):
        self.rounds += 1
        return {"w": mean.w / self.rounds}


def contract(kind, part):
    class Contract(kind):
        def make(self):
            return part()

    return Contract()


@pytest.mark.parametrize(
    ("kind", "part", "test"),
    [
        (RegularizerContract, lambda: Detached(0.3), "test_value_and_gradient"),
        (RegularizerContract, lambda: Doubled(0.3), "test_value_and_gradient"),
        (RegularizerContract, lambda: Doubled(0.3), "test_conjugate"),
        (RegularizerContract, lambda: Ones(0.3), "test_coupling"),
        (RegularizerContract, lambda: Careless(0.3), "test_preparing_changes_no_other"),
        (RegularizerContract, lambda: Raising(0.3), "test_learning_omega_never_raises_R"),
        (DualLossContract, WrongSign, "test_conjugate"),
        (DualLossContract, WrongSign, "test_conjugate_is_the_supremum"),
        (DualLossContract, Unclipped, "test_coordinate_step"),
        (DualLossContract, HalfStep, "test_coordinate_step"),
        (LossContract, Concave, "test_slope"),
        (LossContract, Pooled, "test_elementwise"),
        (LearnerContract, InPlace, "test_local_leaves_its_arguments_unchanged"),
        (LearnerContract, Mixing, "test_users_train_in_blocks_of_any_size"),
        (LearnerContract, Forgetful, "test_a_resumed_run_goes_on_with_the_same_bits"),
    ],
)
def test_caught(kind, part, test):
    """By the test itself: hypothesis would look for a simpler example."""
    own, of = getattr(kind, test).hypothesis.inner_test, contract(kind, part)
    with pytest.raises(AssertionError):
        any(own(of, seed=seed) for seed in range(20))


def test_a_contract_needs_make():
    with pytest.raises(TypeError, match="make"):
        RegularizerContract()
