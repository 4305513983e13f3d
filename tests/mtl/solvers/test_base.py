"""What a solver states about itself, how an algorithm checks it, and that it is a torch module."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from hmtl.errors import ConfigError
from hmtl.mtl import (
    MOCHA,
    SDCA,
    CrossEntropy,
    FedAvg,
    Hinge,
    LocalSGD,
    LocalSolver,
    LocalTrainer,
    Loss,
    NetworkAlgorithm,
    Regularizer,
    Squared,
    TorchTrainer,
)
from hmtl.mtl.solvers.sdca import DualSubproblem


class Valley(Loss):
    """A loss without a coordinate step."""

    def forward(self, prediction, y):
        return (prediction - y).square()

    def conjugate(self, a, y):
        return a.square() / 4 - a * y


class Unchanged(LocalTrainer):
    def train(self, model, data, round, generator):
        return model


class Careless(Unchanged):
    """Does not call its base class."""

    def __init__(self):
        self.rate = 0.1


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


SOLVERS = [SDCA(0.5), LocalSGD(0.1, 1), TorchTrainer(torch.optim.Adam, epochs=1), Unchanged()]


@pytest.mark.parametrize("kind", [LocalSolver, Loss, Regularizer, *map(type, SOLVERS)])
def test_solvers_losses_and_regularizers_are_modules(kind):
    assert issubclass(kind, nn.Module)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_an_algorithm_calls_its_solver(random_problem, solver):
    """As a module, so that hooks run; a copy does the same, and neither has numbers of its own."""
    problem, calls = random_problem(2, K=3, loss=Squared()).problem, []
    assert not solver.state_dict()
    models = []
    for each in (solver, copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        each.register_forward_hook(lambda module, given, improved: calls.append(module))
        learner = (
            MOCHA(problem, each) if solver.improves == "duals" else NetworkAlgorithm(FedAvg(), problem, each, nn.Linear)
        )
        learner.step(0)
        models.append(learner.W)
        assert calls.pop() is learner.solver is each
    assert torch.equal(models[0], models[1])
    assert torch.equal(models[0], models[2])


def test_what_a_solver_holds_is_no_state_of_the_users(random_problem):
    class Weighted(SDCA):
        def __init__(self):
            super().__init__(1.0)
            self.register_buffer("constants", torch.ones(7))

    problem = random_problem(2, K=3).problem
    names, plain = ([*MOCHA(problem, each).users.state_dict()] for each in (Weighted(), SDCA(1.0)))
    assert names == plain


def test_a_call_improves_the_local_subproblem(random_problem):
    """User k's Σ_j s_j ℓ*(−a′_j) + w_k·Δv_k + ½ c_k ‖Δv_k‖² falls, with Δv_k = Σ_j s_j (a′_j − a_j) x_kj."""
    case, rng = random_problem(5, K=3, loss=Squared()), np.random.default_rng(0)
    problem, rows = case.problem, case.problem.rows
    W, c = rng.normal(size=(3, case.d)), np.array([0.5, 1.0, 2.0])
    start = DualSubproblem(torch.zeros_like(rows.y), *map(torch.from_numpy, (W, c)))
    solver = SDCA(1.0)
    a, dV = solver(
        problem.loss, rows, start, solver.draw(0, 0, range(3), rows.counts), torch.tensor([*rows.counts[:2], 0])
    )
    own = list(zip(case.s, case.by_user(a), case.X, case.y, strict=True))
    v = np.stack([s * a_k @ x for s, a_k, x, _ in own])
    np.testing.assert_allclose(dV, v, atol=1e-12)
    losses = np.array([(s * (a_k**2 / 2 - a_k * y)).sum() for s, a_k, _, y in own])
    value = losses + (W * v).sum(1) + c / 2 * (v**2).sum(1)
    assert (value < 0).tolist() == [True, True, False]
    assert value[2] == 0


def test_a_trainer_has_no_modes():
    trainer = Unchanged()
    assert trainer.eval() is trainer


def test_a_solver_that_does_not_call_its_base_class(random_problem):
    with pytest.raises(ConfigError, match="Careless"):
        NetworkAlgorithm(FedAvg(), random_problem(2, K=3).problem, Careless(), nn.Linear)
