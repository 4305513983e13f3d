"""Learning algorithms, one module each, with two sides that exchange nothing but messages (see `base`)."""

from hmtl.mtl.algorithms.base import Aggregator, Algorithm, Users
from hmtl.mtl.algorithms.fedavg import FedAvg
from hmtl.mtl.algorithms.fedper import FedPer, FedRep, LGFedAvg
from hmtl.mtl.algorithms.fedu import FedU
from hmtl.mtl.algorithms.local_networks import LocalNetworks
from hmtl.mtl.algorithms.mocha import MOCHA, CoCoA, Local
from hmtl.mtl.algorithms.proximal import Ditto, FedProx, PFedMe
from hmtl.mtl.algorithms.random_effects import MixedEffects, RandomEffects
from hmtl.mtl.algorithms.scaffold import Scaffold
from hmtl.mtl.algorithms.setup_exchange import preprocessing_setups

__all__ = [
    "MOCHA",
    "Aggregator",
    "Algorithm",
    "CoCoA",
    "Ditto",
    "FedAvg",
    "FedPer",
    "FedProx",
    "FedRep",
    "FedU",
    "LGFedAvg",
    "Local",
    "LocalNetworks",
    "MixedEffects",
    "PFedMe",
    "RandomEffects",
    "Scaffold",
    "Users",
    "preprocessing_setups",
]
