"""Multi-task learning: from tasks, a loss and a regularizer to one model per user, with a certified duality gap.

An algorithm has a user side and an aggregator side. They exchange nothing but messages, IVs [K, m + e] up and models
[K, m + e] down, and do not know what carries them. In the terms of federated learning, a user is a client, its IV
(intermediate value) is the client's update, and the aggregator is the server; here, each relay may be an aggregator.
"""

from hmtl.mtl.algorithms.base import Aggregator, Algorithm, Users
from hmtl.mtl.algorithms.learner_sides import NetworkAlgorithm
from hmtl.mtl.algorithms.mixed_effects import MixedEffects
from hmtl.mtl.algorithms.mocha import MOCHA, CoCoA, Local
from hmtl.mtl.algorithms.setup_exchange import preprocessing_setups
from hmtl.mtl.learners.apfl import APFL
from hmtl.mtl.learners.base import Learner, Numbers, Section, Train
from hmtl.mtl.learners.fedavg import FedAvg, FedProx
from hmtl.mtl.learners.fednova import FedNova
from hmtl.mtl.learners.fedu import FedU
from hmtl.mtl.learners.local import LocalNetworks
from hmtl.mtl.learners.personal_layers import FedPer, FedRep, LGFedAvg
from hmtl.mtl.learners.personal_models import Ditto
from hmtl.mtl.learners.pfedme import PFedMe
from hmtl.mtl.learners.scaffold import Scaffold
from hmtl.mtl.learners.server_optimizers import FedAdam, FedAvgM, FedYogi
from hmtl.mtl.losses import CrossEntropy, Hinge, Logistic, Loss, OneVsRest, SmoothHinge, Squared
from hmtl.mtl.networks.architectures import cnn, mlp
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem
from hmtl.mtl.regularizers import Clustered, Common, Graph, Mean, Regularizer, Ridge, SharedModel, TaskRelationship
from hmtl.mtl.solvers.base import LocalSolver
from hmtl.mtl.solvers.sdca import SDCA
from hmtl.mtl.solvers.sgd import LocalSGD
from hmtl.mtl.solvers.trainers import LocalTrainer, TorchTrainer
from hmtl.mtl.symmetric import Dense, LowRank, Symmetric
from hmtl.mtl.torch_loss import TorchLoss

__all__ = [
    "APFL",
    "MOCHA",
    "SDCA",
    "Aggregator",
    "Algorithm",
    "Clustered",
    "CoCoA",
    "Common",
    "CrossEntropy",
    "Dense",
    "Ditto",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedU",
    "FedYogi",
    "Graph",
    "Hinge",
    "LGFedAvg",
    "Learner",
    "Local",
    "LocalNetworks",
    "LocalSGD",
    "LocalSolver",
    "LocalTrainer",
    "Logistic",
    "Loss",
    "LowRank",
    "Mean",
    "MixedEffects",
    "NetworkAlgorithm",
    "Numbers",
    "OneVsRest",
    "PFedMe",
    "Participation",
    "Problem",
    "Regularizer",
    "Ridge",
    "Scaffold",
    "Section",
    "SharedModel",
    "SmoothHinge",
    "Squared",
    "Symmetric",
    "TaskRelationship",
    "TorchLoss",
    "TorchTrainer",
    "Train",
    "Users",
    "cnn",
    "mlp",
    "preprocessing_setups",
]
