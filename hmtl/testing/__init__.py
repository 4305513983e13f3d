"""Contracts for parts of your own, to be inherited by test classes; needs pytest and hypothesis."""

from hmtl.testing.communication import CommunicatorContract, LinksContract
from hmtl.testing.networks import restricted, topologies

__all__ = ["CommunicatorContract", "LinksContract", "restricted", "topologies"]
