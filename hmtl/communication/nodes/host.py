"""A host: the node that holds the users of a process. K users, m numbers per IV or model, e further numbers."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.accounting.ledger import USERS_TO_RELAYS
from hmtl.communication.codecs.formats import REQUEST
from hmtl.communication.flows.flow import Shape
from hmtl.communication.flows.planner import Planner
from hmtl.communication.flows.recipe import Transport
from hmtl.communication.gate import Gate
from hmtl.communication.messages import IVS, RECEIPTS, Message, host_name, nothing, relay_name, relay_number
from hmtl.communication.sides import HandedRows, PlayedUsers, SentRows
from hmtl.communication.turns import Turn
from hmtl.errors import CodingError
from hmtl.io.arrays import Ids

ALL = slice(0, None)
MIN_BLOCK_COLUMNS = 64
SEND_CHUNK_BYTES = 2**23  # bytes of rows that are sent at once, so that they stay in the processor's cache


class Host:
    """The users of one process.

    Each user knows its own IV, the model that it receives, and whether its IV counted.

    A user who received no model stays idle until one arrives. Until then its update may have counted, so it must be
    neither repeated nor discarded, and its model is out of date.

    Args:
        planner: plans of the network.
        transport: how rows travel.
        users: the users of this process.
        number: number of the process.
        members: the numbers of these users in the network.

    Attributes:
        waiting: whether each user waits for a model, or belongs to another process [K].
        pending: whether each user's update is pending [K].
        sent: the round of each user's last IV [K].
        dtype, device: of the IVs.
        last_turn: in this round; "": none.
        unsent: users and columns of rows that were announced, and have not been sent yet.
        whole: whether rows have to be sent whole, not some columns at a time.
    """

    STATE = ("waiting", "pending", "sent")

    def __init__(self, planner: Planner, transport: Transport, users: PlayedUsers, number: int, members: Ids) -> None:
        self.name, self.users, self.members = host_name(number), users, members
        self.coder = transport.user_coder(members)
        self.whole = self.coder.whole
        self.planner, self.transport, K = planner, transport, planner.topology.K
        self.waiting: NDArray[np.bool_] = ~np.isin(np.arange(K), members)
        self.pending: NDArray[np.bool_] = np.zeros(K, dtype=bool)
        self.sent: NDArray[np.int64] = np.zeros(K, dtype=np.int64)
        self.dtype, self.device = torch.float64, torch.device("cpu")
        self.last_turn = ""
        self.unsent = deque[tuple[slice, slice]]()
        self._idle = self.waiting.copy()
        self._round, self._relays = -1, tuple[str, ...]()
        self._hold(members[:0], torch.empty(0, 0))

    def update(self, round: int, relays: Sequence[str]) -> None:
        """Compute the IVs of the users who take part."""
        if not {*relays} <= {*map(relay_name, range(self.planner.topology.H))}:
            raise CodingError("a host was asked to send rows to others than relays, which it refuses.")
        self._idle = self.waiting.copy()
        users, ivs = self.users.local_update(round, np.flatnonzero(self._idle))
        K, layout = len(self.waiting), self.transport.row_layout
        row, dtype = layout.numbers + layout.further, layout.dtype
        if len(users) and ((*ivs.shape, ivs.dtype) != (len(users), row, dtype) or users[-1] >= K):
            raise CodingError(
                f"The IVs have shape {tuple(ivs.shape)} and type {ivs.dtype} for {len(users)} users who take part, out "
                f"of the network's {K}. Let `local_update` return a row for each of them, of `numbers` + `further` = "
                f"{row} numbers of type {dtype}, as `row_layout` says, or of int64 if rows are terms."
            )
        self.waiting[self.members] = True
        self.pending[users] = True
        self.sent[users] = round
        self.dtype, self.device = ivs.dtype, ivs.device
        self._round, self._relays = round, tuple(relays)
        self._hold(users, ivs)

    def announce(self) -> list[Message]:
        """Return who takes part and how long rows are, and requests of users who lack a row, for relays within range.

        The rows follow by `block`.
        """
        nbytes, _ = self.transport.lengths[self.coder.format(self.dtype)]
        sizes = nbytes, 8 * self.transport.row_layout.further
        payload, overhead = (torch.empty(len(self._users), n, dtype=torch.uint8, device="meta") for n in sizes)
        return self._first_messages(payload, overhead)

    def rows(self) -> list[Message]:
        """Return the rows of the users who take part, and requests of users who lack a row, for relays within range."""
        self.unsent.clear()
        return self._first_messages(*self._encoded(ALL, ALL))

    def block(self) -> list[Message]:
        """Return the next numbers of some users, about SEND_CHUNK_BYTES bytes."""
        if not self.unsent:
            return []
        users, columns = self.unsent.popleft()
        return [self._message(self._users[users], *self._encoded(users, columns), first=columns.start)]

    def _hold(self, users: Ids, ivs: HandedRows) -> None:
        """Hold the rows of these users until they are sent: some columns of all users, or some users' whole rows."""
        self._users, self._ivs = users, ivs
        n, m, room = len(users), self.transport.row_layout.numbers, SEND_CHUNK_BYTES // ivs.dtype.itemsize
        at_once = getattr(ivs, "at_once", n)  # users whose rows are made while they are sent
        if self.whole:
            at_once = room // max(1, m)
        blocks = list[tuple[slice, slice]]()
        for part in _cut(n, at_once):
            columns = (
                [ALL] if self.whole else list(_cut(m, max(MIN_BLOCK_COLUMNS, room // max(1, part.stop - part.start))))
            )
            blocks += [(part, each) for each in columns[:-1]]
            blocks.append((part, slice(columns[-1].start, None)))  # with the further numbers
        self.unsent = deque(blocks if n else ())

    def _encoded(self, users: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Return the payload and overhead of some columns of some users' rows."""
        further = self._ivs.further(users) if isinstance(self._ivs, SentRows) else None
        return self.coder.encode(self._users[users], self._ivs[users, columns], columns.start, further)

    def _first_messages(self, payload: Tensor, overhead: Tensor) -> list[Message]:
        """Return a message with these rows of the users who take part, and requests of others."""
        lacking = self.coder.requesting(self.members[self._idle[self.members]])
        flags = torch.ones(len(lacking), 1, dtype=torch.uint8)
        requests = (
            [replace(self._message(lacking, nothing(len(lacking)), flags), format=REQUEST)] if len(lacking) else []
        )
        whole = self._message(self._users, payload, overhead)
        relays = tuple(relay_number(name) for name in self._relays)
        routes = None if self.transport.recipe.adds else self.planner.row_receivers(relays)
        if routes is None:
            return [whole, *requests]
        rows = []
        for i, name in zip(relays, self._relays, strict=True):  # users whom none of them hears send nothing
            at = np.flatnonzero(routes[self._users] == i)
            mine = self._users[at]
            rows.append(replace(whole, receivers=(name,), links=mine, users=mine, at=torch.from_numpy(at)))
        return rows + requests

    def _message(self, users: Ids, payload: Tensor, overhead: Tensor, first: int = 0) -> Message:
        header = self._round, USERS_TO_RELAYS, IVS, self.name, self._relays
        row_format = self.coder.format(self.dtype)
        return Message(*header, users, payload, overhead, users, dtype=self.dtype, first=first, format=row_format)

    def expects(self, message: Message, turn: Turn, gate: Gate) -> Shape | None:
        """Return the shape of such a message; None: the node expects none."""
        return Shape(0, 1, True) if message.kind == RECEIPTS else self.transport.delivered(self.planner, message)

    def follow(self, planner: Planner) -> None:
        """Continue with the topology of another planner."""
        self.planner = planner

    def conclude(self, receipts: Sequence[Message], models: Sequence[Message]) -> None:
        """End the round: roll back updates whose receipts say that nobody aggregated, and take models."""
        self._hold(self.members[:0], torch.empty(0, 0))
        for message in receipts:
            users = message.of_users()
            sent_now = self.pending[users] & (self.sent[users] == message.round)
            self.users.roll_back(users[sent_now])
            self.pending[users[sent_now]] = False
            self.waiting[users] = self._idle[users]
        self.receive(models)

    def receive(self, models: Sequence[Message]) -> None:
        """Take models; each comes with the round in which the user's IV counted last.

        A user whose model did not arrive, or for whom it does not follow from what arrived, stays idle.
        """
        if (arrived := self.transport.arrived(self.planner, self.members, models)) is None:
            return
        users, payload, overhead, row_format = arrived
        read = self.coder.read(users, overhead, models[0].round, row_format)
        if not len(read.users):
            return
        self._settle(read.users, read.last)
        numbers = self.coder.decode(read.users, payload, read.extras, self.dtype, row_format)
        factors = self.users.receive(read.users, numbers.to(self.device))
        if factors is not None:
            self.coder.rescale(read.users, factors)

    def state_dict(self) -> dict[str, Any]:
        own = {name: torch.from_numpy(getattr(self, name).copy()) for name in self.STATE}
        return own | {"coder": self.coder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.STATE:
            setattr(self, name, state[name].numpy().copy())
        self.coder.load_state_dict(state["coder"])

    def _settle(self, users: Ids, last: NDArray[np.int64]) -> None:
        """Commit or roll back pending updates; `last` is the round in which an IV counted last."""
        counted = last == self.sent[users]
        committed = users[self.pending[users] & counted]
        self.users.commit(committed)
        self.coder.commit(committed)
        self.users.roll_back(users[self.pending[users] & ~counted])
        self.waiting[users] = self.pending[users] = False


def _cut(n: int, size: int) -> Iterator[slice]:
    """Yield slices that cut n rows or columns into portions; one empty slice for none."""
    size = max(size, 1)
    for start in range(0, max(1, n), size):
        yield slice(start, min(start + size, n))
