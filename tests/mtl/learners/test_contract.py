"""Learners fulfill the contract of learners; `hmtl.testing.LearnerContract` has the tests."""

import pytest
from layers import deep

from hmtl.mtl import APFL, FedAdam, FedAvg, FedNova, FedPer, FedRep, FedU, LocalNetworks, Scaffold
from hmtl.testing import LearnerContract

LEARNERS = [Scaffold()]
LEARNERS += [
    pytest.param(each, marks=pytest.mark.slow)
    for each in (FedAvg(), FedU(), FedAdam(), FedNova(), APFL(), FedRep(), FedPer(coupled=True), LocalNetworks())
]


def name(learner):
    return type(learner).__name__ + " coupled" * getattr(learner, "coupled", False)


@pytest.mark.parametrize("learner", LEARNERS, ids=name)
@pytest.mark.parametrize("test", [each for each in dir(LearnerContract) if each.startswith("test_")])
def test_learner(learner, test):
    class Contract(LearnerContract):
        def make(self):
            return learner

        def network(self, d, C):
            return deep(d, C).float()

    getattr(Contract(), test)()
