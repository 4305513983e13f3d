"""Who hears whom.

In: a matrix, a rule, a seed or a file. Out: a `Topology`, validated once and frozen, and its picture.
"""

from hmtl.topology.drawing import draw
from hmtl.topology.files import from_file
from hmtl.topology.generators import any_r, geometric, heterogeneous, symmetric
from hmtl.topology.topology import Topology

__all__ = ["Topology", "any_r", "draw", "from_file", "geometric", "heterogeneous", "symmetric"]
