"""Messages between nodes.

Nodes are named `server`, `relay 3` or `host 0`; a host holds the users of a process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding.aggregators import SERVER as SERVER
from hmtl.communication.codecs.formats import BYTES
from hmtl.communication.codecs.rows import put, take
from hmtl.errors import CodingError
from hmtl.io.arrays import Ids

IVS = "IVs"  # from users to the relays within range; then, forwarded or added, from relays to the server
REPORT = "report"  # from a relay to the server: whom it heard
ATTENDANCE = "attendance"  # from the server to relays: who takes part, and who aggregates
STATE = "state"  # from an aggregator via the server to relays that missed a round
COMBINATIONS = "combinations"  # of what a relay heard, to the server
BROADCAST = "broadcast"  # combinations of what relays sent, from the server to relays
DIGESTS = "digests"  # of what an aggregator learned and computed, to the server
VERDICT = "verdict"  # from the server: all aggregators agree, or the attempt is in vain because a relay fell silent
RECEIPTS = "receipts"  # to users in an empty round: their IVs did not count
KEYS = "keys"  # of secure sums: from users by relays to the server, all of them back to relays, and to neighbors
SHARES = "shares"  # sealed by users for their neighbors, by a relay that hears both, or else by the server
SHARED = "shared"  # whose shares users could read, by relays to the server; who shared, back to users
UNMASK = "unmask"  # whose terms counted, to users by relays; what these reveal, and what relays make of it, back
MODELS = "models"  # from an aggregator to users, via the server if no aggregator is within range of the user

PARTS = ("payload", "overhead")  # the parts of a message's rows
AGREED, IN_VAIN = True, False  # the verdicts


def relay_name(i: int) -> str:
    """Return the name of relay i."""
    return f"relay {i}"


def relay_number(name: str) -> int:
    """Return i for the name of relay i."""
    return int(name.split()[1])


def host_name(n: int) -> str:
    """Return the name of host n."""
    return f"host {n}"


@dataclass(frozen=True, eq=False)
class Message:
    """Rows of bytes with a header, from one node to others.

    Attributes:
        round: the round in which the message is sent.
        tier: one of `ledger.TIERS`; "" where it arrives in another process.
        kind: one of this module's kinds.
        sender, receivers: names of nodes.
        links: the link of the tier on which each row is counted [n], or one link for all rows.
        payload: IVs, models or combinations of them, uint8 [rows, L].
        overhead: what travels with them, uint8 [rows, L'].
        users: the user of each row [n], who may have several, or all users that a single row is for; None if rows
            belong to no user.
        at: which rows are sent [n], so that one tensor can serve many messages; None: all.
        dtype: for IVs, the type in which the payload's numbers are computed; they may travel in another.
        first: the first of a row's numbers that the payload holds; the others follow in further messages.
        format: one of `formats.FORMATS`, in which the sender says that the rows are.
    """

    round: int
    tier: str
    kind: str
    sender: str
    receivers: tuple[str, ...]
    links: int | Ids
    payload: Tensor
    overhead: Tensor
    users: Ids | None = None
    at: Tensor | None = None
    dtype: torch.dtype = torch.float64
    first: int = 0
    format: str = BYTES

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.payload) if self.at is None else len(self.at)

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of payload and overhead of a row."""
        return self.payload.shape[1], self.overhead.shape[1]

    @property
    def only_row(self) -> NDArray[np.uint8]:
        """The overhead of its only row; raise CodingError if it has no row, several rows, or an empty one."""
        if len(self.overhead) != 1 or not self.overhead.shape[1]:
            raise CodingError(f"it has {len(self.overhead)} rows of {self.overhead.shape[1]} bytes instead of one row")
        return self.overhead[0].numpy()

    @property
    def announces(self) -> bool:
        """Whether the rows of this message follow in later ones; here they have a shape, but no content."""
        return self.payload.is_meta

    def rows(self) -> Tensor:
        """Return the numbers of the rows that are sent [n]."""
        return torch.arange(len(self.payload)) if self.at is None else self.at

    def of_users(self) -> Ids:
        """Return `users`, for a message whose rows belong to users."""
        assert self.users is not None, f"{self.kind} of {self.sender} belong to no users"
        return self.users


class Content(NamedTuple):
    """What a message carries, see `Message`."""

    payload: Tensor
    overhead: Tensor
    users: Ids | None = None
    at: Tensor | None = None
    format: str = BYTES


def nothing(rows: int) -> Tensor:
    """Return an empty payload or overhead, uint8 [rows, 0]."""
    return torch.empty(rows, 0, dtype=torch.uint8)


def overhead_only(content: NDArray[np.uint8], row_format: str = BYTES) -> Content:
    """Return the content of a message whose only row is overhead."""
    row = torch.from_numpy(content)[None]
    return Content(row[:, :0], row, format=row_format)


def alike(messages: Sequence[Message], what: Callable[[Message], object]) -> list[Message]:
    """Return the messages that say the same as most of them do, where they should all do so."""
    said = [what(message) for message in messages]
    usual = max(said, key=said.count)
    return [message for message, each in zip(messages, said, strict=True) if each == usual]


def by_user(messages: Sequence[Message]) -> tuple[Ids, dict[str, Tensor]]:
    """Return the users of messages, ascending, and the rows of each part in this order.

    A part is not copied if one tensor already holds its rows in this order.
    """
    users = np.concatenate([message.of_users() for message in messages])
    order = torch.from_numpy(users.argsort())
    at, rows = torch.cat([message.rows() for message in messages])[order], {}
    for part in PARTS:
        sources = [getattr(message, part) for message in messages]
        if all(source is sources[0] for source in sources):
            rows[part] = take(sources[0], at)
            continue
        rows[part] = torch.empty(len(users), sources[0].shape[1], dtype=torch.uint8)
        places = torch.split(order.argsort(), [len(message) for message in messages])
        for message, source, to in zip(messages, sources, places, strict=True):
            put(rows[part], to, source, message.rows())
    return users[order.numpy()], rows
