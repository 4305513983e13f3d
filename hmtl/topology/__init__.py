"""Which relay hears which user.

A `Topology` is a validated, immutable matrix, made from a matrix, a rule, a seed or a file. A `Moving` network has one
for each round.

The names are those of the paper. In the language of federated learning, a *user* is a client, a *relay* an edge server
and the *server* the cloud; an *intermediate value*, IV, is the update that a client sends, and an *iteration* a round.
"""

from hmtl.topology.files import from_file
from hmtl.topology.generators import any_r, geometric, heterogeneous, symmetric
from hmtl.topology.matching import balanced
from hmtl.topology.moving import Contacts, Moving, Walk, from_contacts, moving
from hmtl.topology.names import Names
from hmtl.topology.topology import Topology

__all__ = [
    "Contacts",
    "Moving",
    "Names",
    "Topology",
    "Walk",
    "any_r",
    "balanced",
    "from_contacts",
    "from_file",
    "geometric",
    "heterogeneous",
    "moving",
    "symmetric",
]
