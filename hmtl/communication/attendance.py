"""Who takes part in a round, and in what: the relays report, the server decides, and all know the same.

K users, H relays.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hmtl.topology import Topology

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Report:
    """What relay i tells the server.

    Attributes:
        heard: whose IVs arrived.
        version: how many rounds it has aggregated.
        payload, overhead: bytes of an IV, and of what travels with it.
    """

    heard: NDArray[np.int64]
    version: int
    payload: int
    overhead: int

    def to_bytes(self, t: Topology, i: int) -> Bytes:
        """A bit for each user of the relay, and three numbers of 4 bytes."""
        heard = np.zeros(t.K, dtype=bool)
        heard[self.heard] = True
        return np.concatenate(
            [np.packbits(heard[t.G[i] == 1]), numbers_to_bytes([self.version, self.payload, self.overhead])]
        )

    @classmethod
    def from_bytes(cls, content: Bytes, t: Topology, i: int) -> "Report":
        users = np.flatnonzero(t.G[i])
        bits = np.unpackbits(content[:-12], count=len(users)).astype(bool)
        return cls(users[bits], *bytes_to_numbers(content[-12:]).tolist())

    @staticmethod
    def nbytes(t: Topology, i: int) -> int:
        return -(-len(t.N(i)) // 8) + 12


@dataclass(frozen=True, eq=False)
class Attendance:
    """A round's network G_t, and who does what in it.

    Attributes:
        heard: G_t, the links over which an IV arrived; absent users are empty columns, absent relays empty rows.
        there: the relays that reported, [H]; some may have heard nobody.
        aggregating: the relays that learn all IVs of the round and compute the models, [H].
        behind: those of them that missed a round, and need the state of one that did not, [H].
        source: the relay that sends this state; -1 where nobody needs it.
    """

    heard: Topology
    there: NDArray[np.bool_]
    aggregating: NDArray[np.bool_]
    behind: NDArray[np.bool_]
    source: int

    @cached_property
    def users(self) -> NDArray[np.int64]:
        """Those whose IV arrived somewhere."""
        return np.array(self.heard.present, dtype=np.int64)

    @property
    def relays(self) -> tuple[int, ...]:
        """Those that are there."""
        return tuple(np.flatnonzero(self.there).tolist())

    @property
    def aggregators(self) -> tuple[int, ...]:
        """The relays that aggregate."""
        return tuple(np.flatnonzero(self.aggregating).tolist())

    def to_bytes(self, t: Topology) -> Bytes:
        """A bit for each link of the network, three for each relay, and a number of 4 bytes."""
        bits = [self.heard.G[t.G == 1], self.there, self.aggregating, self.behind]
        return np.concatenate([np.packbits(np.concatenate(bits)), numbers_to_bytes([self.source])])

    @classmethod
    def from_bytes(cls, content: Bytes, t: Topology) -> "Attendance":
        H, n = t.H, int(t.G.sum())
        bits = np.unpackbits(content[:-4], count=n + 3 * H)
        links = np.zeros_like(t.G)
        links[t.G == 1] = bits[:n]
        there, aggregating, behind = bits[n:].astype(bool).reshape(3, H)
        return cls(t.restricted(links=links), there, aggregating, behind, int(bytes_to_numbers(content[-4:])[0]))

    @staticmethod
    def nbytes(t: Topology) -> int:
        return -(-(int(t.G.sum()) + 3 * t.H) // 8) + 4


Routes = tuple[NDArray[np.int64], NDArray[np.bool_]]


def routes(t: Topology, there: Collection[int], aggregators: Collection[int]) -> Routes:
    """How models come to the users.

    Args:
        t: who hears whom when all are there.
        there, aggregators: relays.

    Returns:
        [K] the relay that sends each user its model, an aggregator where one hears the user; -1 where no relay is
        there. And [K] whether the model comes to that relay by way of the server, because it is no aggregator.
    """
    near = t.restricted(relays=aggregators).G
    direct = np.asarray(near.any(axis=0))
    reached = np.where(direct, near, t.restricted(relays=there).G)
    return t.restricted(links=reached).serving, reached.any(axis=0) > direct


def decide(t: Topology, reports: Mapping[int, Report], version: int, home: Collection[int]) -> Attendance:
    """What the server makes of the reports, by relay.

    Of the relays at `home` in aggregating, those aggregate that heard somebody; if none did, all relays that did; if
    nobody was heard, all that hold the present state. One such relay has to be there: others get the state from it
    first. Without it, nobody can aggregate, and the round is empty. Which of the relays at home are best would change
    from round to round; but what it saves is less than handing over the state takes.

    Args:
        version: how many rounds were aggregated so far.
        home: the relays that aggregate if they can; none: the server does.
    """
    links = np.zeros_like(t.G)
    there, current = np.zeros((2, t.H), dtype=bool)
    for i, report in reports.items():
        links[i, report.heard] = 1
        there[i], current[i] = True, report.version == version
    heard = np.asarray(links.any(axis=1))
    at_home = np.isin(np.arange(t.H), list(home))
    able = next((some for some in (heard & at_home, heard) if some.any()), current)
    aggregating = able & (len(home) > 0 and bool(current.any()))
    behind = aggregating & ~current
    source = int(np.flatnonzero(current)[0]) if behind.any() else -1
    return Attendance(t.restricted(links=links), there, aggregating, behind, source)


def numbers_to_bytes(numbers: Sequence[int] | NDArray[np.int64]) -> Bytes:
    """Whole numbers below 2³¹ as 4 bytes each."""
    return np.array(numbers, dtype="<i4").view(np.uint8)


def bytes_to_numbers(content: Bytes) -> NDArray[np.int64]:
    """The inverse of `numbers_to_bytes`."""
    return np.ascontiguousarray(content).view("<i4").astype(np.int64)
