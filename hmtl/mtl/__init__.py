"""Multi-task learning: tasks, a loss and a regularizer come in; models W [d, K] with a certified duality gap go out.

An algorithm talks in messages only, intermediate values [K, m] up and models [K, m + e] down, and does not know who
carries them.
"""

from hmtl.mtl.algorithms import MOCHA, Algorithm
from hmtl.mtl.losses import Hinge, Loss
from hmtl.mtl.problem import Problem, Rows, sigma_prime
from hmtl.mtl.regularizers import Regularizer, Ridge, TaskRelationship
from hmtl.mtl.solvers import SDCA, LocalSolver

__all__ = [
    "MOCHA",
    "SDCA",
    "Algorithm",
    "Hinge",
    "LocalSolver",
    "Loss",
    "Problem",
    "Regularizer",
    "Ridge",
    "Rows",
    "TaskRelationship",
    "sigma_prime",
]
