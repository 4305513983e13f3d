"""Contracts that a part of your own has to keep, as classes of tests that yours inherits; pytest runs them.

from hmtl.testing import LossContract

class TestMyLoss(LossContract):
    def make(self):
        return MyLoss(0.5)
"""

from hmtl.testing.learning import DualLossContract, LossContract, RegularizerContract

__all__ = ["DualLossContract", "LossContract", "RegularizerContract"]
