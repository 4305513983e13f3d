"""The aggregation of a process. K users, m numbers per IV or model.

Aggregators of one process that hold equal bytes compute equal models, so they share one `Aggregation`: the first relay
of a round keeps the IVs and computes the models; the others verify by digests that they would have computed the same.

An update is prepared until it is known whether it counts, and the state before is kept beside it: the verdict says so,
or else the next attendance, by the attempt that was agreed on. So no lost message makes aggregators and server differ.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.agreement import Digest
from hmtl.communication.attendance import Attendance, check_length, tagged, untagged
from hmtl.communication.codecs.formats import BYTES, ROUNDS
from hmtl.communication.codecs.plain import HeardUsers
from hmtl.communication.codecs.rows import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.flows.recipe import Transport
from hmtl.communication.messages import PARTS, Content
from hmtl.communication.sides import PlayedAggregator
from hmtl.errors import CodingError, RangeError, few
from hmtl.io.arrays import NOBODY, Ids

log = logging.getLogger(__name__)
MAX_ABS_NUMBER = 2.0**60  # of numbers in a user's row
NEVER = -2  # in place of the round in which a user's IV counted last, until one has counted


@dataclass(frozen=True, eq=False)
class PackedModels:
    """Models on their way to the users: a row for each of K users, or one row for all.

    Attributes:
        content: numbers of the models; further numbers and receipts as overhead, see `AggregatorCoder.encode`.
    """

    content: Content

    @cached_property
    def digest(self) -> bytes:
        digest = Digest()
        digest.add_rows(self.content.payload)
        digest.add_rows(self.content.overhead)
        return digest.value()


class Aggregation:
    """The aggregator of a process, with the IVs and models of a round.

    Args:
        aggregator: computes the models.
        transport: how IVs and models travel.
        revocable: whether an update may have to be rolled back, because messages can be lost.

    Attributes:
        counted: the round in which each user's IV counted last [K].
        users: the users from whose IVs the models of the round are computed [n].
        ivs: payload and overhead of these IVs, uint8 [n, bytes].
        version: of the state, see `Attempt`.
        prepared: the attempt that led to an update of which it is not known whether it counts; 0: none.
        past: the IVs of the last rounds as they traveled, with their users, uint8 [bytes] for each round.
        since: the version of the state before these rounds.
        unknown: whether the sum of a round is unknown or out of range, so that nobody counts.
    """

    name = "aggregation"

    def __init__(self, aggregator: PlayedAggregator, transport: Transport, revocable: bool) -> None:
        self.aggregator, self.transport, self.revocable = aggregator, transport, revocable
        self.coder = transport.aggregator_coder()
        self.counted: NDArray[np.int64] = np.full(transport.K, NEVER)
        self.users: Ids = NOBODY
        self.ivs: dict[str, Tensor] = {}
        self.version, self.prepared, self.past, self.since = 0, 0, list[Tensor](), 0
        self.unknown = False
        self._before: dict[str, Any] = {}  # the state without the update that is prepared
        self._round, self._attempt = -1, 0
        self._keeper = ""
        self._models: PackedModels | None = None
        self._digest = b""

    def open(self, round: int, attempt: int, node: str, users: Ids) -> bool:
        """Begin an attempt with the IVs of these users; return whether `node` keeps them for its process."""
        if self._attempt != attempt:
            self._round, self._attempt, self._keeper, self.users, self.ivs = round, attempt, node, users, {}
            self.unknown = False
        return self._keeper == node

    def room(self, sizes: tuple[int, int]) -> dict[str, Tensor]:
        """Return the memory for the IVs, whose payload and overhead have these sizes in bytes."""
        if not self.ivs:
            each = zip(PARTS, sizes, strict=True)
            self.ivs = {part: torch.empty(len(self.users), nbytes, dtype=torch.uint8) for part, nbytes in each}
        return self.ivs

    def keep(self, users: Ids, ivs: dict[str, Tensor]) -> None:
        """Take the IVs of a round, or their sum."""
        self.users, self.ivs = users, ivs

    def keep_nobody(self) -> None:
        """Treat the round as one in which nobody counts: the sum is zero."""
        self.users, self.unknown = NOBODY, True
        self.ivs = {part: torch.zeros(1, rows.shape[1], dtype=torch.uint8) for part, rows in self.ivs.items()}

    def places(self, users: Ids) -> Tensor:
        """Return the rows of these users among the IVs."""
        return torch.from_numpy(np.searchsorted(self.users, users))

    def update(self, digest: bytes, dtype: torch.dtype, attendance: Attendance) -> None:
        """Compute the models from the IVs that are kept, and prepare the update.

        Args:
            digest: digest of these IVs; empty if no relay aggregates.
            dtype: type in which the models are computed.
            attendance: of the round; it says in which format the IVs are.
        """
        if self.revocable:
            self._before = self.state_dict() | {"aggregator": self.aggregator.state_dict()}
        if digest:
            self._remember(attendance.format)
        self._models, self._digest = self._aggregate(dtype, attendance.format, attendance.requested), digest
        self.prepared = self._attempt

    def settle(self, agreed: int) -> None:
        """Keep the update that is prepared if its attempt was agreed on, and undo it otherwise."""
        if self.prepared == agreed:
            self.version = agreed
        elif self.prepared:
            assert self._before, "an update cannot be undone, since no message can be lost"
            self.aggregator.load_state_dict(self._before["aggregator"])
            self.load_state_dict(self._before)
        self.prepared, self._before = 0, {}

    def _aggregate(self, dtype: torch.dtype, row_format: str, requested: bool) -> PackedModels:
        models = self._updated(dtype, row_format)
        self.counted[self.users] = self._round
        rows, m = 1 if self.coder.adds else len(self.counted), self.coder.numbers
        answers = self.transport.row_layout.answers
        if len(models) != rows or models.shape[1] - m not in answers:
            raise CodingError(
                f"The aggregator returned models of shape {tuple(models.shape)} for {len(self.counted)} users. Let it "
                f"return {rows} rows of m={m} numbers and as many further ones as `answers` of the users' "
                f"layout says: {' or '.join(map(str, answers))}."
            )
        heard = HeardUsers(self.users, self.counted, self._round, requested)
        payload, overhead, row_format = self.coder.encode(models, dtype, heard)
        return PackedModels(Content(payload, overhead, format=row_format))

    def _updated(self, dtype: torch.dtype, row_format: str) -> Tensor:
        """Update the aggregator, and return the models; if a sum is out of range, as in a round without terms."""
        before = self.aggregator.state_dict() if self.coder.adds else {}
        try:
            ivs = self.coder.decode(self.users, self.ivs["payload"], self.ivs["overhead"], dtype, row_format)
            self.ivs = {part: rows.new_empty(0, rows.shape[1]) for part, rows in self.ivs.items()}
            models = self._computed(ivs)
        except RangeError as error:
            if not self.coder.adds or self.unknown:
                raise
            log.warning(
                "round %d counts nobody: a sum is wrong, and nobody knows whose term is: %s", self._round, error
            )
            self.aggregator.load_state_dict(before)
            self.keep_nobody()
            return self._updated(dtype, row_format)
        return models

    def _computed(self, ivs: Tensor) -> Tensor:
        """Return the aggregator's models; if it fails, without rows of numbers from which nothing can be computed."""
        try:
            return self.aggregator.update(self.users, ivs)
        except Exception:  # a row that another node made up may lead to any
            right = (ivs.abs() <= MAX_ABS_NUMBER).all(dim=1).numpy()  # NaN is not
            if self.coder.adds or not self._before or right.all():
                raise
            wrong = few([*map(str, self.users[~right].tolist())])
            log.warning("round %d: rows of users %s do not count: their numbers are too large", self._round, wrong)
            self.aggregator.load_state_dict(self._before["aggregator"])
            self.users = self.users[right]
            return self.aggregator.update(self.users, ivs[torch.from_numpy(right)])

    def _remember(self, row_format: str) -> None:
        """Keep the IVs of this round for relays that miss it, if they take no more bytes than the coder's state.

        Of floats, none are kept: the state is as small as the IVs of a round or two.
        """
        parts, K = [self.ivs[part] for part in PARTS], len(self.counted)
        room = sum(tensor.nbytes for tensor in self.coder.state_dict().values())
        if sum(part.nbytes for part in parts) > room:
            self.past, self.since = [], self._attempt
            return
        tag = tagged(self._attempt, row_format, requested=False)
        header = numbers_to_bytes([tag, self._round, len(parts[0]), *(part.shape[1] for part in parts)])
        users = np.packbits(np.isin(np.arange(K), self.users))
        self.past = [*self.past, torch.from_numpy(np.concatenate([header, users, *(p.numpy().ravel() for p in parts)]))]
        while sum(map(len, self.past)) > room:
            self.since, self.past = _attempt_of(self.past[0].numpy()), self.past[1:]

    def models(self, digest: bytes) -> PackedModels | None:
        """Return the models if they were computed from IVs with this digest, otherwise None."""
        return self._models if digest == self._digest else None

    def close(self) -> None:
        """Release the round's IVs and models, which may be large."""
        self.ivs, self._models = {}, None

    def missed(self, since: int, adopted: int = 0) -> tuple[NDArray[np.uint8], str]:
        """Return what a relay needs whose state has version `since`: the IVs of later rounds, or the state.

        A relay that adopted a state does not know the IVs before; `adopted` is the version of this state. The format
        says which it is: ROUNDS or BYTES.
        """
        if since < max(self.since, adopted):
            return self.state_bytes(), BYTES
        rows = [row.numpy() for row in self.past if _attempt_of(row.numpy()) > since]
        return np.concatenate([numbers_to_bytes([len(rows), *map(len, rows)]), *rows]), ROUNDS

    def catch_up(self, content: NDArray[np.uint8], content_format: str, dtype: torch.dtype) -> bool:
        """Load what another node's `missed` returned; return whether it was the whole state."""
        if content_format != ROUNDS:
            self.adopt(content)
            return True
        for row in _rounds(content):
            if _attempt_of(row) > self.version:  # another relay of this process may have taken part
                self._repeat(row, dtype)
        return False

    def check(self, content: NDArray[np.uint8], content_format: str, agreed: int) -> None:
        """Raise CodingError if no other node's `missed` returned this, or it does not lead to the version `agreed`."""
        if content_format == BYTES:
            parts = self.aggregator.state_dict(), self.coder.state_dict()
            state = sum(tensor.nbytes for state in parts for tensor in state.values())
            check_length(content, 4 + state + 4 * len(self.counted))
            versions = bytes_to_numbers(content[:4]).tolist()
        elif content_format == ROUNDS:
            versions = [self._check_round(row) for row in _rounds(content)]
        else:
            raise CodingError(f"no state has the format {content_format}")
        if not max(versions) == versions[-1] == agreed:
            raise CodingError(f"it leads to the state of attempt {versions[-1]}, not of {agreed}")

    def _check_round(self, row: NDArray[np.uint8]) -> int:
        """Return the attempt of a past round; raise CodingError if it is not as `_remember` made it."""
        lengths, nbytes = self.transport.lengths, -(-len(self.counted) // 8)
        check_length(row[: 20 + nbytes], 20 + nbytes)
        tag, _, *shape = bytes_to_numbers(row[:20]).tolist()
        attempt, row_format, _ = untagged(tag)
        n = int(np.unpackbits(row[20 : 20 + nbytes], count=len(self.counted)).sum())
        each = lengths.get(row_format, (-1, -1))[1], 8 * self.transport.row_layout.further
        check_length(row, 20 + nbytes + n * sum(each))
        if shape != [n, *each]:
            raise CodingError("it has rows of other sizes than it says")
        return attempt

    def _repeat(self, row: NDArray[np.uint8], dtype: torch.dtype) -> None:
        """Aggregate a past round."""
        tag, self._round, n, *sizes = bytes_to_numbers(row[:20]).tolist()
        self._attempt, row_format, requested = untagged(tag)
        users, *parts = np.split(row[20:], np.cumsum([-(-len(self.counted) // 8), n * sizes[0]]))
        self.users = np.flatnonzero(np.unpackbits(users, count=len(self.counted)))
        rows = [torch.from_numpy(part.copy()).view(n, size) for part, size in zip(parts, sizes, strict=True)]
        self.ivs = dict(zip(PARTS, rows, strict=True))
        self._remember(row_format)
        self._aggregate(dtype, row_format, requested)
        self.version = self._attempt

    def state_bytes(self) -> NDArray[np.uint8]:
        """Return everything that a node needs to aggregate the next round."""
        parts = self.aggregator.state_dict(), self.coder.state_dict()
        tensors = [state[name] for state in parts for name in sorted(state)]
        content = [tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy() for tensor in tensors]
        return np.concatenate([numbers_to_bytes([self.version]), *content, numbers_to_bytes(self.counted)])

    def adopt(self, content: NDArray[np.uint8]) -> None:
        """Load what another node's `state_bytes` returned."""
        version = int(bytes_to_numbers(content[:4])[0])
        if version != self.version:
            self.version, self.past, self.since = version, [], version
        unread = torch.from_numpy(content[4:].copy())
        for part in (self.aggregator, self.coder):
            state = part.state_dict()
            for name in sorted(state):
                old = state[name]
                own, unread = unread[: old.nbytes], unread[old.nbytes :]
                state[name] = own.clone().view(old.dtype).view(old.shape).to(old.device)
            part.load_state_dict(state)
        self.counted = bytes_to_numbers(unread.numpy())

    def state_dict(self) -> dict[str, Any]:
        own = {"counted": torch.from_numpy(self.counted.copy()), "version": self.version, "prepared": self.prepared}
        own |= {"past": self.past, "since": self.since, "before": self._before}
        return own | {"coder": self.coder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counted = state["counted"].numpy().copy()
        self.version, self.prepared, self._before = state["version"], state["prepared"], state["before"]
        self.past, self.since = state["past"], state["since"]
        self.coder.load_state_dict(state["coder"])
        self._attempt = 0
        self.close()


def _attempt_of(row: NDArray[np.uint8]) -> int:
    """Return the attempt of a past round."""
    return untagged(int(bytes_to_numbers(row[:4])[0]))[0]


def _rounds(content: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Return the past rounds in what another node's `missed` returned; raise CodingError if there are none."""
    n = int(bytes_to_numbers(content[:4])[0]) if len(content) >= 4 else 0
    check_length(content[: 4 + 4 * max(n, 1)], 4 + 4 * n)
    sizes = bytes_to_numbers(content[4 : 4 + 4 * n])
    check_length(content, 4 + 4 * n + int(sizes.sum()))
    return np.split(content[4 + 4 * n :], np.cumsum(sizes)[:-1])
