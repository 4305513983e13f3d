"""What a solver states about itself, and how an algorithm checks it."""

import pytest

from hmtl.errors import ConfigError
from hmtl.mtl import SDCA, CrossEntropy, Hinge, LocalSGD, LocalSolver, Loss


class Valley(Loss):
    """A loss without a coordinate step."""

    def forward(self, prediction, y):
        return (prediction - y).square()

    def conjugate(self, a, y):
        return a.square() / 4 - a * y


def test_needs():
    SDCA().check("duals", Hinge())
    LocalSGD().check("networks", CrossEntropy())
    with pytest.raises(ConfigError, match="SDCA needs coordinate_step, which Valley does not define"):
        SDCA().check("duals", Valley())
    for solver, kind in ((SDCA(), "networks"), (LocalSGD(), "duals")):
        with pytest.raises(ConfigError, match="Choose solver="):
            solver.check(kind, Hinge())


def test_a_solver_defines_the_whole_contract():
    class Half(LocalSolver):
        improves = "duals"

    with pytest.raises(TypeError):
        Half()
