"""Who takes part in a round. K users, H relays.

Relays report whom they heard, the server decides, and every node reads that decision. If a relay falls silent after
that, the server decides again (`Server.attend_again`), and the round is attempted once more.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmtl.coding.plan import PLAN_DIGEST_BYTES
from hmtl.communication.codecs.formats import FORMATS, INT64
from hmtl.communication.codecs.rows import bytes_to_numbers, numbers_to_bytes
from hmtl.errors import CodingError
from hmtl.io.arrays import Bytes
from hmtl.topology import Topology

DOUBTED = -1  # in place of the version of a relay whose state is wrong


@dataclass(frozen=True)
class Report:
    """What relay i reports to the server.

    Attributes:
        heard: the users whose IVs arrived.
        version: of the relay's state, see `Attempt`.
        payload, overhead: bytes of an IV, and of what travels with it.
        requested: whether a user within range requests the whole row that its updates add to, see
            `codecs.few_bit_words`.
        format: of these IVs, one of FORMATS.
        prepared: the attempt that led to an update of which the relay does not know whether it counted; `version` if
            there is none.
    """

    heard: NDArray[np.int64]
    version: int
    payload: int
    overhead: int
    requested: bool = False
    format: str = INT64
    prepared: int = 0

    def to_bytes(self, t: Topology, i: int) -> Bytes:
        """Return the report of relay i as bytes: one bit per user within range, and four numbers."""
        heard = np.zeros(t.K, dtype=bool)
        heard[self.heard] = True
        version = tagged(self.version, self.format, self.requested)
        numbers = numbers_to_bytes([version, self.prepared, self.payload, self.overhead])
        return np.concatenate([np.packbits(heard[t.G[i] == 1]), numbers])

    @classmethod
    def from_bytes(cls, content: Bytes, t: Topology, i: int) -> "Report":
        """Return the report that `to_bytes` wrote; raise CodingError if it did not write this."""
        check_length(content, cls.nbytes(t, i))
        users = np.flatnonzero(t.G[i])
        bits = np.unpackbits(content[:-16], count=len(users)).astype(bool)
        number, prepared, payload, overhead = bytes_to_numbers(content[-16:]).tolist()
        version, row_format, requested = untagged(number)
        return cls(users[bits], version, payload, overhead, requested, row_format, prepared)

    @staticmethod
    def nbytes(t: Topology, i: int) -> int:
        """Return the length of relay i's report in bytes."""
        return -(-int(t.G[i].sum()) // 8) + 16


class Attempt(NamedTuple):
    """What an attendance is announced with: which attempt at which state it begins.

    An attempt may fail when some aggregators have computed the models already, so the number of rounds does not say
    which state a node has. Therefore the version of a state is the number of the attempt that led to it.

    Attributes:
        number: of the attempt, counted from 1 over the whole run.
        agreed: the last attempt before it in which all aggregators agreed, so that its models count; 0: none.
        since: the version of the relay that is furthest behind; `agreed` if none is.
        digest: of the plan that the server made, see `Flow.digest`.
    """

    number: int = 0
    agreed: int = 0
    since: int = 0
    digest: bytes = bytes(PLAN_DIGEST_BYTES)

    def to_bytes(self) -> Bytes:
        """Return the attempt as ATTEMPT_BYTES bytes."""
        return np.concatenate([numbers_to_bytes(self[:3]), np.frombuffer(self.digest, np.uint8)])

    @classmethod
    def from_bytes(cls, content: Bytes) -> "Attempt":
        """Return the attempt that `to_bytes` wrote."""
        number, agreed, since = bytes_to_numbers(content[:12]).tolist()
        return cls(number, agreed, since, content[12:].tobytes())


ATTEMPT_BYTES = 12 + PLAN_DIGEST_BYTES


@dataclass(frozen=True, eq=False)
class Attendance:
    """A round's network G_t and the roles in it.

    Attributes:
        topology: who hears whom when everybody is present.
        heard: G_t, the links over which an IV arrived; absent users are empty columns, absent relays empty rows.
        reporting: the relays that reported [H]; some of them may have heard nobody.
        aggregating: the relays that learn all IVs of the round and compute the models [H].
        behind: the aggregating relays that missed a round and need the state of a node that did not [H].
        source: the relay that sends this state; -1 if no relay needs it, or if the server sends it.
        requested: whether some relay reported a request.
        format: of the users' rows, as relays reported it of most users; other rows are as if they had not arrived.
    """

    topology: Topology
    heard: Topology
    reporting: NDArray[np.bool_]
    aggregating: NDArray[np.bool_]
    behind: NDArray[np.bool_]
    source: int
    requested: bool
    format: str

    @cached_property
    def users(self) -> NDArray[np.int64]:
        """The users whose IV arrived at some relay."""
        return np.array(self.heard.present, dtype=np.int64)

    @cached_property
    def relays(self) -> tuple[int, ...]:
        """The relays that reported."""
        return tuple(np.flatnonzero(self.reporting).tolist())

    @cached_property
    def aggregators(self) -> tuple[int, ...]:
        """The relays that aggregate."""
        return tuple(np.flatnonzero(self.aggregating).tolist())

    @cached_property
    def near(self) -> NDArray[np.uint8]:
        """The users within range of each relay that reported [H, K]."""
        return self.topology.restricted(relays=self.relays).G

    @cached_property
    def reached(self) -> Topology:
        """The relays that may send each user its model: aggregators if one hears the user, or any that reported."""
        best = self.topology.restricted(relays=self.aggregators).G
        return self.topology.restricted(links=np.where(best.any(axis=0), best, self.near))

    def to_bytes(self) -> Bytes:
        """Return the attendance as bytes: one bit per link, three bits per relay, and one number."""
        bits = [self.heard.G[self.topology.G == 1], self.reporting, self.aggregating, self.behind]
        number = tagged(self.source + 1, self.format, self.requested)
        return np.concatenate([np.packbits(np.concatenate(bits)), numbers_to_bytes([number])])

    @classmethod
    def from_bytes(cls, content: bytes, t: Topology) -> "Attendance":
        """Return the attendance that `to_bytes` wrote.

        Raises:
            CodingError: it did not write this, or it is one on which `decide` does not decide.
        """
        check_length(content, cls.nbytes(t))
        H, n = t.H, int(t.G.sum())
        bits = np.unpackbits(np.frombuffer(content[:-4], np.uint8), count=n + 3 * H)
        links = np.zeros_like(t.G)
        links[t.G == 1] = bits[:n]
        reporting, aggregating, behind = bits[n:].astype(bool).reshape(3, H)
        source, row_format, requested = untagged(int.from_bytes(content[-4:], "little"))
        hearing = np.asarray(links.any(axis=1))
        useful = reporting & (hearing | ~hearing.any())
        if (hearing > reporting).any() or (aggregating > useful).any() or (behind > aggregating).any():
            raise CodingError("relays aggregate or hear users that do not take part")
        if source and (source > H or not behind.any() or (reporting <= behind)[source - 1]):
            raise CodingError("no relay can hand the others the state that they missed")
        heard = t.restricted(links=links)
        return cls(t, heard, reporting, aggregating, behind, source - 1, requested, row_format)

    @staticmethod
    def nbytes(t: Topology) -> int:
        """Return the length of an attendance in bytes, without the attempt."""
        return -(-(int(t.G.sum()) + 3 * t.H) // 8) + 4


def decide(
    t: Topology, reports: Mapping[int, Report], agreed: int, preferred: Collection[int], server: bool = False
) -> Attendance:
    """Return the server's decision, given the reports of some relays.

    The aggregators are the preferred relays that heard at least one user; if there are none, all relays that heard one;
    if nobody was heard, all relays that hold the current state. At least one relay that holds the current state must be
    present, since it hands the state to the others. Without such a relay nobody can aggregate, and the round is empty.
    If the server aggregates, too, it holds the current state, so no other relays stand in for the preferred ones.

    The best aggregators change from round to round, but switching to them would cost more than it saves, since every
    new aggregator has to be handed the state.

    Args:
        t: who hears whom when everybody is present.
        reports: the report of each relay that sent one.
        agreed: the version of the current state.
        preferred: the relays that aggregate if they can; empty: the server aggregates alone.
        server: whether the server aggregates.
    """
    votes = Counter[str]()
    for report in reports.values():
        votes[report.format] += len(report.heard)
    row_format = max(votes, key=votes.__getitem__, default=INT64)
    links = np.zeros_like(t.G)
    reporting, current = np.zeros((2, t.H), dtype=bool)
    for i, report in reports.items():
        links[i, report.heard] = report.format == row_format
        reporting[i], current[i] = True, agreed in (report.version, report.prepared)
    heard = np.asarray(links.any(axis=1))
    chosen = np.isin(np.arange(t.H), list(preferred))
    able = next((relays for relays in (heard & chosen, heard) if relays.any() or server), current)
    aggregating = able & (len(preferred) > 0 and (server or bool(current.any())))
    behind = aggregating & ~current
    source = int(np.flatnonzero(current)[0]) if behind.any() and not server else -1
    requested = any(report.requested for report in reports.values())
    heard_by = t.restricted(links=links)
    return Attendance(t, heard_by, reporting, aggregating, behind, source, requested, row_format)


def tagged(number: int, row_format: str, requested: bool) -> int:
    """Return a number below 2²⁵ with a tag of 6 bits: a format of rows, and whether a user requests a whole one."""
    return number << 6 | FORMATS.index(row_format) << 1 | requested


def untagged(number: int) -> tuple[int, str, bool]:
    """Return what `tagged` was given; raise CodingError if the format is unknown."""
    place = number >> 1 & 31
    if place >= len(FORMATS):
        raise CodingError(f"Rows have the unknown format {place}. Install the same version at all nodes.")
    return number >> 6, FORMATS[place], bool(number & 1)


def check_length(content: bytes | Bytes, nbytes: int) -> None:
    """Raise CodingError if content has another length."""
    if len(content) != nbytes:
        raise CodingError(f"it has {len(content)} bytes instead of {nbytes}")
