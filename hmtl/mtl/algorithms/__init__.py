"""Algorithms: a problem comes in, messages and models go out; each has a user side and an aggregator side."""

from hmtl.mtl.algorithms.base import Aggregator, Algorithm, Users
from hmtl.mtl.algorithms.fedu import FedAvg, FedU
from hmtl.mtl.algorithms.fitting import fitting
from hmtl.mtl.algorithms.mocha import MOCHA, CoCoA, Local

__all__ = ["MOCHA", "Aggregator", "Algorithm", "CoCoA", "FedAvg", "FedU", "Local", "Users", "fitting"]
