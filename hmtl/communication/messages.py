"""What travels between nodes, which are called `server`, `relay 3` or `host 0`; a host holds the users of a process."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Users = NDArray[np.int64]
"""Numbers of users, ascending."""

IVS = "IVs"  # from users to the relays that hear them; uncoded, on to the server
REPORT = "report"  # of a relay to the server: whom it heard
ATTENDANCE = "attendance"  # of the server to the relays: who is there, and who aggregates
STATE = "state"  # of an aggregator, by way of the server, for relays that missed a round
COMBINATIONS = "combinations"  # of what a relay heard, to the server
BROADCAST = "broadcast"  # combinations of these, to the relays
DIGESTS = "digests"  # of what an aggregator decoded and computed, to the server
VERDICT = "verdict"  # of the server: all aggregators agree, or somebody was silent, so that it has to be done again
RECEIPTS = "receipts"  # to users, where the round is empty: their IVs did not count
MODELS = "models"  # from an aggregator to users, by way of the server where none of them hears the user

SERVER = "server"
AGREED, IN_VAIN = True, False  # what a verdict can be


def relay_name(i: int) -> str:
    """The name of relay i."""
    return f"relay {i}"


def host_name(n: int) -> str:
    """The name of host n."""
    return f"host {n}"


@dataclass(frozen=True, eq=False)
class Message:
    """Rows of bytes with a header, from one node to others.

    Attributes:
        round: in which it is sent.
        tier: one of `ledger.TIERS`.
        kind: one of this module's.
        sender, receivers: names of nodes.
        links: the links of the tier on which rows are counted: one for all rows, or one for each [n].
        payload: IVs or models or combinations of them, uint8 [rows, L].
        overhead: what travels with them, uint8 [rows, L'].
        users: whose rows these are [n], or for whom the one row is; None where rows belong to no user.
        at: which rows are meant [n], so that one tensor can serve many messages; None: all.
        dtype: of IVs: the type that the numbers in the payload are computed in, whatever they travel as.
    """

    round: int
    tier: str
    kind: str
    sender: str
    receivers: tuple[str, ...]
    links: int | Users
    payload: Tensor
    overhead: Tensor
    users: Users | None = None
    at: Tensor | None = None
    dtype: torch.dtype = torch.float64

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.payload) if self.at is None else len(self.at)

    def rows(self) -> Tensor:
        """The numbers of the rows that are meant [n]."""
        return torch.arange(len(self.payload)) if self.at is None else self.at

    def of_users(self) -> Users:
        """`users`, of a message whose rows belong to users."""
        assert self.users is not None, f"{self.kind} of {self.sender} belong to no users"
        return self.users


def nothing(rows: int) -> Tensor:
    """A part of a message that is empty, uint8 [rows, 0]."""
    return torch.empty(rows, 0, dtype=torch.uint8)


def note(content: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Payload and overhead of a message that is overhead alone, one row of it."""
    return nothing(1), torch.from_numpy(content)[None]
