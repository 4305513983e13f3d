"""Learning algorithms, one module each, with two sides that exchange nothing but messages (see `base`)."""

from hmtl.mtl.algorithms.base import Aggregator, Algorithm, Users
from hmtl.mtl.algorithms.fedavg import FedAvg
from hmtl.mtl.algorithms.fedu import FedU
from hmtl.mtl.algorithms.mocha import MOCHA, CoCoA, Local
from hmtl.mtl.algorithms.proximal import Ditto, FedProx, PFedMe
from hmtl.mtl.algorithms.random_effects import RandomEffects
from hmtl.mtl.algorithms.setup_exchange import preprocessing_setup

__all__ = [
    "MOCHA",
    "Aggregator",
    "Algorithm",
    "CoCoA",
    "Ditto",
    "FedAvg",
    "FedProx",
    "FedU",
    "Local",
    "PFedMe",
    "RandomEffects",
    "Users",
    "preprocessing_setup",
]
