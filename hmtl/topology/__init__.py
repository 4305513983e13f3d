"""Who hears whom.

In: a matrix, a rule, a seed or a file. Out: a `Topology`, validated once and frozen, and its picture; or a `Moving`,
which has one for each round.

Words are the paper's. In those of federated learning, a *user* is a client, a *relay* an edge server, the *server* the
cloud; an *intermediate value*, IV, is the update that a client sends, and an *iteration* is a round.
"""

from hmtl.topology.drawing import draw
from hmtl.topology.files import from_file
from hmtl.topology.generators import any_r, geometric, heterogeneous, symmetric
from hmtl.topology.moving import Contacts, Moving, Walk, from_contacts, moving
from hmtl.topology.topology import Topology

__all__ = [
    "Contacts",
    "Moving",
    "Topology",
    "Walk",
    "any_r",
    "draw",
    "from_contacts",
    "from_file",
    "geometric",
    "heterogeneous",
    "moving",
    "symmetric",
]
