"""Multi-task learning: tasks, a loss and a regularizer come in; models W [d, K] with a certified duality gap go out.

An algorithm talks in messages only, intermediate values [K, m] up and models [K, m + e] down, and does not know who
carries them.
"""

from hmtl.mtl.algorithms import MOCHA, Algorithm, CoCoA, FedAvg, FedU, Local
from hmtl.mtl.losses import CrossEntropy, Hinge, Logistic, Loss, SmoothHinge, Squared
from hmtl.mtl.models import cnn, mlp
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem, Rows, sigma_prime
from hmtl.mtl.regularizers import Clustered, Graph, Mean, Regularizer, Ridge, SharedModel, TaskRelationship
from hmtl.mtl.sgd import LocalSGD
from hmtl.mtl.solvers import SDCA, LocalSolver

__all__ = [
    "MOCHA",
    "SDCA",
    "Algorithm",
    "Clustered",
    "CoCoA",
    "CrossEntropy",
    "FedAvg",
    "FedU",
    "Graph",
    "Hinge",
    "Local",
    "LocalSGD",
    "LocalSolver",
    "Logistic",
    "Loss",
    "Mean",
    "Participation",
    "Problem",
    "Regularizer",
    "Ridge",
    "Rows",
    "SharedModel",
    "SmoothHinge",
    "Squared",
    "TaskRelationship",
    "cnn",
    "mlp",
    "sigma_prime",
]
