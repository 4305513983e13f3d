"""Contracts that a part of your own can be held to, and networks to try it on; needs pytest and hypothesis.

    # test_mine.py
    from hmtl.testing import RegularizerContract
    from mine import Ring

    class TestRing(RegularizerContract):
        def make(self):
            return Ring(lam=0.1)

`pytest test_mine.py` then runs them all. There is one for each part: `LossContract` (`DualLossContract` of
one that a dual solver takes), `RegularizerContract`, `CommunicatorContract` and `LinksContract`.
"""

from hmtl.testing.communication import CommunicatorContract, LinksContract
from hmtl.testing.learning import DualLossContract, LossContract, RegularizerContract
from hmtl.testing.networks import restricted, topologies

__all__ = [
    "CommunicatorContract",
    "DualLossContract",
    "LinksContract",
    "LossContract",
    "RegularizerContract",
    "restricted",
    "topologies",
]
