"""Algorithms: a problem comes in, messages and models go out; each has a user side and an aggregator side."""

from hmtl.mtl.algorithms.averaging import FedAvg, FedProx
from hmtl.mtl.algorithms.base import Aggregator, Algorithm, Users
from hmtl.mtl.algorithms.fedu import FedU
from hmtl.mtl.algorithms.fitting import fitting
from hmtl.mtl.algorithms.mocha import MOCHA, CoCoA, Local
from hmtl.mtl.algorithms.personal import Ditto, PFedMe

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
    "Users",
    "fitting",
]
