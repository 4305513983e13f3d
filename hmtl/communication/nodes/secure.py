"""Nodes of secure sums, see `hmtl.communication.secure.protocol`: hosts mask terms, and the server unmasks their sum.

The server broadcasts to relays what they need to serve users: all keys, who shared seeds, whose terms counted. Relays
hand on what users seal for each other, and the server passes on only what no relay can. Relays also join what
users reveal, as far as each can. All of it is overhead.

n users advertise keys, each has k neighbours.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.accounting.ledger import SERVER_TO_RELAYS, USERS_TO_RELAYS
from hmtl.communication.attendance import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.encoding import from_bytes, to_bytes
from hmtl.communication.messages import (
    IN_VAIN,
    KEYS,
    SHARED,
    SHARES,
    UNMASK,
    Message,
    Users,
    nothing,
    overhead_only,
    relay_name,
)
from hmtl.communication.nodes.adding import AddingHost, AddingRelay, AddingServer, formats_of_terms
from hmtl.communication.nodes.base import relay_of
from hmtl.communication.nodes.few_bit_sums import FewBitHost, FewBitRelay, FewBitServer
from hmtl.communication.row_formats import RowFormat
from hmtl.communication.secure import protocol
from hmtl.communication.secure.neighbors import Degree, Secure
from hmtl.communication.secure.protocol import Bytes, Mask, Roster, UnmaskingError
from hmtl.topology import Topology

NUMBER = 4  # bytes of a number
ENTRY = NUMBER + protocol.KEYS  # bytes of a neighbour and its keys
NOBODY: Users = np.empty(0, np.int64)
log = logging.getLogger(__name__)


class SecureHost(AddingHost):
    """A host whose users mask their terms.

    Args: as in `AddingHost`, and
        secure: settings of secure sums.
    """

    def __init__(self, *args: Any, secure: Secure, **options: Any) -> None:
        super().__init__(*args, **options)
        self.secure = secure
        self._round = -1
        self._relays: tuple[str, ...] = ()
        self._messages: list[Message] = []  # with terms that are not yet masked
        self._secrets: dict[int, protocol.MaskingUser] = {}  # of the users who take part
        self._fewest = 0  # users behind a sum
        self._neighbors = 0  # of each user

    def send(self, round: int, relays: Sequence[str]) -> list[Message]:
        """Compute the terms of the users who take part, and advertise keys."""
        self._round, self._relays = round, tuple(relays)
        self._messages = super().send(round, relays)
        self._secrets = {k: protocol.MaskingUser(k) for k in self._messages[0].of_users().tolist()}
        return self._rows(KEYS, {k: user.advertised for k, user in self._secrets.items()})

    def share(self, messages: Sequence[Message]) -> list[Message]:
        """Share the seeds of each user's masks among its neighbours."""
        sealed = {}
        for k, row in self._received(messages).items():
            n, threshold = bytes_to_numbers(row[: 2 * NUMBER]).tolist()
            self._fewest = self.secure.fewest(n, len(self.waiting))
            entries = row[2 * NUMBER :].reshape(-1, ENTRY)
            numbers, keys = entries[:, :NUMBER], entries[:, NUMBER:]
            self._neighbors = len(keys)
            sealed[k] = self._secrets[k].share(bytes_to_numbers(numbers.ravel()), keys, threshold).ravel()
        return self._rows(SHARES, sealed)

    def mask(self, shared: Sequence[Message], messages: Sequence[Message]) -> list[Message]:
        """Return the masked terms of those users who were told which of their neighbours shared seeds."""
        told = self._received(shared)
        users = np.array(list(told), np.int64)
        sealed = np.zeros((len(users), self._neighbors, protocol.SEALED), np.uint8)
        for message in messages:
            to, rows = message.of_users(), message.overhead[message.rows()].numpy()
            here = np.isin(to, users)
            sealed[np.searchsorted(users, to[here]), rows[here, 0]] = rows[here, 1:]
        for k, bits, own in zip(users.tolist(), told.values(), sealed, strict=True):
            self._secrets[k].take(_bools(bits, self._neighbors), own)
        terms, *others = self._messages
        at = torch.from_numpy(np.searchsorted(terms.of_users(), users))
        masked = _Rows(self.formats, terms.payload.shape[1], terms.payload[at], terms.overhead[at])
        for place, k in enumerate(users.tolist()):
            masked.add(place, self._secrets[k].mask(masked.parts))
        self._messages = []
        return [replace(terms, links=users, payload=masked.payload, overhead=masked.overhead, users=users), *others]

    def answer(self, messages: Sequence[Message]) -> list[Message]:
        """Reveal a share of one seed of each neighbour, if enough users counted."""
        shares = {}
        for k, row in self._received(messages).items():
            total = int(bytes_to_numbers(row[:NUMBER])[0])
            counted = _bools(row[NUMBER:], self._neighbors)
            revealed = self._secrets[k].reveal(counted) if total >= self._fewest else None
            if revealed is not None:
                shares[k] = revealed.ravel()
        return self._rows(UNMASK, shares)

    def _received(self, messages: Sequence[Message]) -> dict[int, Bytes]:
        """Return the row of each user of this host who takes part."""
        rows = {k: row for message in messages for k, row in _by_user(message).items()}
        return {k: rows[k] for k in self._secrets if k in rows}

    def _rows(self, kind: str, rows: Mapping[int, Bytes]) -> list[Message]:
        """Return a message with a row for each of these users; none if there are no rows."""
        if not rows:
            return []
        users, content = np.array(list(rows), np.int64), torch.from_numpy(np.stack(list(rows.values())))
        empty, relays = nothing(len(users)), self._relays
        return [Message(self._round, USERS_TO_RELAYS, kind, self.name, relays, users, empty, content, users)]


@dataclass(frozen=True, eq=False)
class Introduction:
    """What the server tells all relays about the users who advertised keys.

    Attributes:
        roster: these users.
        heard: which relays heard them, as a topology.
    """

    roster: Roster
    heard: Topology

    @cached_property
    def serving(self) -> NDArray[np.int64]:
        """The relay that speaks for each user [n]: evenly, so that few users are cut off if one relay falls silent."""
        return self.heard.serving[self.roster.users]

    @cached_property
    def handing(self) -> NDArray[np.int64]:
        """The relay that hands on what each user seals for each neighbour [n, k]; -1: no relay hears both.

        It is the one that serves the user, if it hears the neighbour.
        """
        around, near = self.roster.around, self.heard.G[:, self.roster.users] == 1
        handing = np.full(around.shape, -1)
        for i, hears in enumerate(near):
            prior = (handing < 0) | (self.serving == i)[:, None]
            handing[hears[:, None] & hears[around] & prior] = i
        return handing

    def to_bytes(self, t: Topology) -> Bytes:
        """Return n, k, t, the users in the order of the circle, their keys, and a bit for each link of these users."""
        roster = self.roster
        users, degree = roster.users[roster.order], roster.degree
        numbers = numbers_to_bytes([len(users), degree.neighbors, degree.threshold, *users.tolist()])
        links = self.heard.G[:, users][t.G[:, users] == 1]
        return np.concatenate([numbers, roster.advertised[roster.order].ravel(), np.packbits(links)])

    @classmethod
    def from_bytes(cls, content: Bytes, t: Topology) -> "Introduction":
        """Return what `to_bytes` wrote."""
        n, *degree = bytes_to_numbers(content[: 3 * NUMBER]).tolist()
        ends = np.cumsum([3 * NUMBER, n * NUMBER, n * protocol.KEYS])
        _, numbers, keys, bits = np.split(content, ends)
        users, advertised = bytes_to_numbers(numbers), keys.reshape(n, protocol.KEYS)
        ascending, links = np.argsort(users), np.zeros_like(t.G)
        rows, columns = np.nonzero(t.G[:, users])
        links[rows, users[columns]] = _bools(bits, len(rows))
        roster = Roster(users[ascending], advertised[ascending], Degree(*degree), np.argsort(ascending))
        return cls(roster, t.restricted(links=links))


class SecureRelay(AddingRelay):
    """A relay that serves users in secure sums. It cannot tell masked terms from random numbers.

    Attributes:
        combining: whether the server has just asked it to combine what users revealed.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.combining = False
        self._known: Introduction | None = None  # of this round, once the server has told
        self._serves: Users = NOBODY  # the users that it serves, as places in the roster
        self._kept: list[tuple[Users, Bytes]] = []  # the sealed shares that it hands on, and to whom
        self._counted: Users = NOBODY
        self._revealed: Bytes | None = None  # by the users that it serves [n, k, 16]

    def advertise(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Pass on the keys of users within range."""
        self.round, self._known, self._counted, self._revealed = round, None, NOBODY, None
        self._kept.clear()
        passed = []
        for message in messages:
            users = message.of_users()
            near = np.flatnonzero(self.topology.G[self.i][users])
            at = message.rows()[torch.from_numpy(near)]
            passed.append(self._to_server(KEYS, message.payload, message.overhead, users[near], at))
        return passed

    def introduce(self, messages: Sequence[Message]) -> list[Message]:
        """Tell the users that this relay serves their neighbours' keys."""
        if not messages:
            return []
        self._known = Introduction.from_bytes(messages[0].overhead[0].numpy(), self.topology)
        self._serves = mine = np.flatnonzero(self._known.serving == self.i)
        roster, shape = self._known.roster, (len(mine), self._known.roster.degree.neighbors)
        size = np.tile(numbers_to_bytes([len(roster.users), roster.degree.threshold]), (len(mine), 1))
        numbers = numbers_to_bytes(roster.neighbors[mine].ravel()).reshape(*shape, NUMBER)
        entries = np.concatenate([numbers, roster.keys[mine]], axis=2).reshape(len(mine), shape[1] * ENTRY)
        return self._rows(KEYS, mine, np.concatenate([size, entries], axis=1))

    def collect(self, messages: Sequence[Message]) -> list[Message]:
        """Tell the server which users shared seeds. Keep what this relay hands on, and pass on what no relay does."""
        if self._known is None or not messages:
            return []
        sealed, handing = self._table(messages, protocol.SEALED), self._known.handing
        shared = np.asarray(sealed.any(axis=(1, 2)))
        apart = (handing < 0) & (self._known.serving == self.i)[:, None]
        self._kept.append(self._addressed(sealed, shared[:, None] & (handing == self.i)))
        users, rows = self._addressed(sealed, shared[:, None] & apart)
        passed = [self._to_server(SHARES, nothing(len(rows)), torch.from_numpy(rows), users)] if len(rows) else []
        return [*self._bits(SHARED, shared[self._serves]), *passed]

    def pass_on(self, shared: Sequence[Message], shares: Sequence[Message]) -> list[Message]:
        """Tell the users who shared seeds which neighbours did, and hand on what these sealed for them."""
        if not shared:
            self._known = None  # it does not know which seeds are needed, and leaves the round
        if self._known is None:
            return []
        roster = self._known.roster
        roster.shared = _bools(shared[0].overhead[0].numpy(), len(roster.users))
        self._serves = self._serves[roster.shared[self._serves]]
        told = self._rows(SHARED, self._serves, np.packbits(roster.shared[roster.around[self._serves]], axis=1))
        for users, rows in self._kept:
            here = np.flatnonzero(np.isin(users, roster.users[roster.shared]))
            told.append(self._to_users(SHARES, nothing(len(here)), torch.from_numpy(rows[here]), users[here]))
        return [*told, *(self._to_users(SHARES, m.payload, m.overhead, m.of_users(), m.rows()) for m in shares)]

    def ask(self, messages: Sequence[Message]) -> list[Message]:
        """Tell the users who shared seeds how many users counted, and which of their neighbours did."""
        if not messages:
            self._known = None
        if self._known is None:
            return []
        roster = self._known.roster
        counted = _bools(messages[0].overhead[0].numpy(), len(roster.users))
        self._counted = roster.users[counted]
        total = np.tile(numbers_to_bytes([len(self._counted)]), (len(self._serves), 1))
        bits = np.packbits(counted[roster.around[self._serves]], axis=1)
        return self._rows(UNMASK, self._serves, np.concatenate([total, bits], axis=1))

    def hear(self, messages: Sequence[Message]) -> list[Message]:
        """Take what the users revealed that this relay serves, and tell the server whose shares these are."""
        if self._known is None or not messages or not len(self._counted):
            return []
        table = self._table(messages, protocol.SHARE)
        self._revealed = np.zeros_like(table)
        self._revealed[self._serves] = table[self._serves]
        return self._bits(UNMASK, np.asarray(table[self._serves].any(axis=2)))

    def combine(self, messages: Sequence[Message]) -> list[Message]:
        """Send the server a part of each seed that it needs, given which shares all relays know."""
        self.combining = bool(messages)
        if self._known is None or self._revealed is None or not messages or not len(self._serves):
            return []
        bits = _bools(messages[0].overhead[0].numpy(), self._known.roster.around.shape)
        parts = self._known.roster.join(self._counted, bits, self._revealed)
        return [self._to_server(UNMASK, *overhead_only(parts.ravel()))]

    def _table(self, messages: Sequence[Message], size: int) -> Bytes:
        """Return what users within range sent for each neighbour [n, k, size]; zeros if nothing arrived."""
        assert self._known
        roster, near = self._known.roster, self._known.heard.N(self.i)
        table = np.zeros((*roster.around.shape, size), np.uint8)
        for message in messages:
            users, rows = message.of_users(), message.overhead[message.rows()].numpy()
            here = np.isin(users, near)
            table[np.searchsorted(roster.users, users[here])] = rows[here].reshape(-1, *table.shape[1:])
        return table

    def _addressed(self, sealed: Bytes, chosen: NDArray[np.bool_]) -> tuple[Users, Bytes]:
        """Return the users to whom some sealed shares go, and rows with these and, first, whose they are [49]."""
        assert self._known
        roster, (at, place) = self._known.roster, np.nonzero(chosen)
        users, senders = roster.neighbors[at, place], roster.opposite[place].astype(np.uint8)
        order = np.argsort(users, kind="stable")
        return users[order], np.concatenate([senders[:, None], sealed[at, place]], axis=1)[order]

    def _bits(self, kind: str, values: NDArray[np.bool_]) -> list[Message]:
        """Return a message to the server with a bit for each value, if there are any."""
        return [self._to_server(kind, *overhead_only(np.packbits(values)))] if values.size else []

    def _rows(self, kind: str, places: NDArray[np.int64], content: Bytes) -> list[Message]:
        """Return a message with a row for each of the users at some places in the roster."""
        assert self._known
        users = self._known.roster.users[places]
        return [self._to_users(kind, nothing(len(users)), torch.from_numpy(content), users)]


class SecureServer(AddingServer):
    """A server that chooses neighbours, and unmasks the sum of masked terms.

    Args: as in `AddingServer`, and
        secure: settings of secure sums.

    Attributes:
        combining: whether it has just asked relays to combine what users revealed.
    """

    def __init__(self, *args: Any, secure: Secure, **options: Any) -> None:
        super().__init__(*args, **options)
        self.secure = secure
        self.combining = False
        self._known: Introduction | None = None  # of this round, if there are enough users
        self._relays: list[int] = []  # those that take part
        self._revealed: dict[int, Bytes] | None = None  # which shares each relay knows, as bits
        self._unknown = False  # whether the sum is

    def introduce(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Choose neighbours for the users who advertised keys, and tell relays the keys of all."""
        self.round, self._known, self._unknown = round, None, False
        self._relays = sorted({relay_of(message) for message in messages})  # a message for each host
        advertised: dict[int, Bytes] = {}
        heard = np.zeros_like(self.topology.G)
        for message in messages:
            advertised |= _by_user(message)
            heard[relay_of(message), message.of_users()] = 1
        users = np.array(sorted(advertised), np.int64)
        chosen = self.secure.degree(n := len(users), self.topology.K)
        if chosen is None:
            if n:
                log.warning("round %d is empty: %d users are too few for secure sums", round, n)
            self._unknown = n > 0
            return []
        keys, order = np.stack([advertised[k] for k in users.tolist()]), np.random.default_rng().permutation(n)
        roster = Roster(users, keys, chosen, order)
        self._known = Introduction(roster, self.topology.restricted(links=heard))
        return self._to(self._relays, KEYS, *overhead_only(self._known.to_bytes(self.topology)))

    def pass_on(self, shared: Sequence[Message], shares: Sequence[Message]) -> list[Message]:
        """Tell relays which users shared seeds, and pass on the shares that no relay hands on."""
        if self._known is None or not shared:
            return []
        roster, serving = self._known.roster, self._known.serving
        for message in shared:
            mine = np.flatnonzero(serving == relay_of(message))
            roster.shared[mine] = _bools(message.overhead[0].numpy(), len(mine))
        passed = self._to(self._relays, SHARED, *overhead_only(np.packbits(roster.shared)))
        for message in shares:
            users, rows = message.of_users(), message.rows()
            places = np.searchsorted(roster.users, users)
            via = np.where(roster.shared[places], serving[places], -1)
            for i in np.unique(via[via >= 0]).tolist():
                here, to, empty = np.flatnonzero(via == i), (relay_name(i),), message.payload
                at, sealed = rows[torch.from_numpy(here)], message.overhead
                passed.append(
                    Message(self.round, SERVER_TO_RELAYS, SHARES, self.name, to, i, empty, sealed, users[here], at)
                )
        return passed

    def retry(self) -> list[Message]:
        """Tell the relays if one of them fell silent, so that the attempt was in vain."""
        return self._verdict(IN_VAIN, self.attendance.relays) if self.silent else []

    def ask(self) -> list[Message]:
        """Tell relays which users counted."""
        self._revealed, known = None, self._to_unmask
        if known is None:
            return []
        counted = np.isin(known.roster.users, self.attendance.users)
        return self._to(self._relays, UNMASK, *overhead_only(np.packbits(counted)))

    def unmask(self, messages: Sequence[Message]) -> list[Message]:
        """Ask relays to combine the shares that users revealed to them, and unmask the sum with what they answer.

        If one of them does not answer, ask again without its shares. If the others are too few, take the round as one
        without terms.
        """
        known, counted = self._to_unmask, self.attendance.users
        self.combining = False
        if known is None:
            return []
        roster, answers = known.roster, {relay_of(message): message.overhead[0].numpy() for message in messages}
        if self._revealed is not None and self._revealed.keys() <= answers.keys():
            parts = [answers[i].reshape(-1, protocol.SHARE) for i in self._revealed]
            self._keep(counted, np.bitwise_xor.reduce(np.stack(parts)))
            return []
        if self._revealed is None:
            self._revealed = answers
        self._revealed = {i: bits for i, bits in self._revealed.items() if i in answers}
        table = np.zeros(roster.around.shape, bool)
        for i, bits in self._revealed.items():
            mine = np.flatnonzero((known.serving == i) & roster.shared)
            table[mine] = _bools(bits, (len(mine), roster.degree.neighbors))
        try:
            if len(counted) < (fewest := self.secure.fewest(len(roster.users), self.topology.K)):
                raise UnmaskingError(f"{len(counted)} users counted, but {fewest} are needed")
            roster.holders(counted, table)
        except UnmaskingError as error:
            log.warning("round %d is empty: its sum cannot be unmasked: %s", self.round, error)
            self._unknown = True
            self._keep(NOBODY, np.empty((0, protocol.SHARE), np.uint8))
            return []
        self.combining = True
        return self._to(self._relays, UNMASK, *overhead_only(np.packbits(table)))

    def hand_back(self) -> list[Message]:
        """Send the row to the relays; in an empty round, the last one."""
        messages = super().hand_back()
        self.empty = self.empty or self._unknown
        return messages

    @property
    def _to_unmask(self) -> Introduction | None:
        """Who began the round, if its sum is to be unmasked."""
        return None if self.empty or not len(self.attendance.users) else self._known

    def _keep(self, counted: Users, seeds: Bytes) -> None:
        """Keep the sum of the terms, without masks; if nobody counted, zeros."""
        kept = self.aggregation.ivs
        total = _Rows(self.formats, self.sizes[0], kept["payload"], kept["overhead"][:, : self.sizes[1]], True)
        if self._known and len(counted):
            total.add(0, self._known.roster.unmask(counted, seeds, total.parts), -1)
        else:
            total.payload, total.overhead = torch.zeros_like(total.payload), torch.zeros_like(total.overhead)
        overhead = torch.cat([total.overhead, self.note], dim=1)
        self.aggregation.keep(self.round, self.name, counted, {"payload": total.payload, "overhead": overhead})


class SecureFewBitHost(SecureHost, FewBitHost):
    """A host whose users mask terms of few bits."""


class SecureFewBitRelay(SecureRelay, FewBitRelay):
    """A relay of masked terms of few bits."""


class SecureFewBitServer(SecureServer, FewBitServer):
    """A server of masked terms of few bits."""


class _Rows:
    """Rows of terms or sums, to which masks are added: numbers of w bits, and further numbers of 64 bits.

    Args:
        formats: the formats of rows.
        nbytes: bytes of the numbers of a user's term.
        payload, overhead: the rows, uint8 [n, bytes] each.
        added: whether these are sums of terms.
    """

    def __init__(self, formats: Any, nbytes: int, payload: Tensor, overhead: Tensor, added: bool = False) -> None:
        self._format: RowFormat = formats_of_terms(formats, nbytes)[added]
        self.payload, self.overhead = payload, overhead
        self.parts = [(self._format.L, self._format.bits), (overhead.shape[1] // 8, 64)]

    def add(self, place: int, masks: Sequence[Mask], sign: int = 1) -> None:
        """Add masks to a row, modulo 2^w in each number."""
        numbers, further = (torch.from_numpy(sign * mask.astype(np.int64))[None] for mask in masks)
        at = slice(place, place + 1)
        self.payload[at] = self._format.pack(self._format.unpack(self.payload[at]) + numbers)
        if further.shape[1]:
            self.overhead[at] = to_bytes(from_bytes(self.overhead[at], torch.int64) + further)


def _by_user(message: Message) -> dict[int, Bytes]:
    """Return the overhead of each user's row."""
    rows = message.overhead.numpy()
    return {k: rows[at] for k, at in zip(message.of_users().tolist(), message.rows().tolist(), strict=True)}


def _bools(bits: Bytes, shape: int | tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the values that `np.packbits` packed."""
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
