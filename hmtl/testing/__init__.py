"""Contracts to inherit for tests of your own parts. They need pytest and hypothesis::

    # test_mine.py
    from hmtl.testing import RegularizerContract
    from mine import Ring

    class TestRing(RegularizerContract):
        def make(self):
            return Ring(lam=0.1)

`pytest test_mine.py` then runs all tests of the contract. There is a contract for each kind of part: `LossContract`
(`DualLossContract` for losses that dual solvers accept), `RegularizerContract`, `LearnerContract`,
`CommunicatorContract`, `LinksContract` and `QuantizerContract`.
"""

from hmtl.testing.communication import CommunicatorContract, LinksContract, QuantizerContract
from hmtl.testing.learners import LearnerContract
from hmtl.testing.learning import DualLossContract, LossContract, RegularizerContract
from hmtl.testing.topologies import restricted, topologies

__all__ = [
    "CommunicatorContract",
    "DualLossContract",
    "LearnerContract",
    "LinksContract",
    "LossContract",
    "QuantizerContract",
    "RegularizerContract",
    "restricted",
    "topologies",
]
