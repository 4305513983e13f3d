"""Nodes of secure sums, see `hmtl.communication.secure.masking`: hosts mask terms, and the server unmasks their sum.

The server broadcasts to relays what they need to serve users: all keys, who shared seeds, whose terms counted. Relays
hand on what users seal for each other, and the server passes on only what no relay can. Relays also join what
users reveal, as far as each can. All of it is overhead.

One relay cannot deceive users that others hear, too: a user with several relays takes part only if two of them pass on
the same keys and tell it the same. A user with one relay takes part, but holds no shares of others' seeds.

n users advertise keys, each has k neighbors.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.accounting.ledger import USERS_TO_RELAYS
from hmtl.communication.attendance import check_length
from hmtl.communication.codecs.formats import DIGEST
from hmtl.communication.codecs.rows import bytes_to_numbers, from_bytes, numbers_to_bytes, to_bytes
from hmtl.communication.codecs.words import RowFormat
from hmtl.communication.flows.flow import Copy, Shape
from hmtl.communication.flows.planner import Planner
from hmtl.communication.flows.sums import TransportOfSums
from hmtl.communication.gate import Gate
from hmtl.communication.messages import (
    IN_VAIN,
    KEYS,
    SHARED,
    SHARES,
    UNMASK,
    Content,
    Message,
    nothing,
    overhead_only,
    relay_number,
)
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.host import Host
from hmtl.communication.nodes.relay import Relay
from hmtl.communication.nodes.server import Server
from hmtl.communication.secure import masking
from hmtl.communication.secure.crypto import KEY_DIGEST_BYTES, digest
from hmtl.communication.secure.masking import Mask, Roster, UnmaskingError
from hmtl.communication.secure.neighbors import Degree, Secure, lone
from hmtl.communication.turns import Turn
from hmtl.errors import CodingError, few
from hmtl.io.arrays import NOBODY, Bytes, Ids
from hmtl.topology import Topology

NUMBER_BYTES = 4  # bytes of a number
ENTRY_BYTES = NUMBER_BYTES + masking.PUBLIC_KEYS_BYTES  # bytes of a neighbor and its keys
log = logging.getLogger(__name__)


class Notary(Protocol):
    """Signs which keys a host's users advertise, and knows those that others signed, as digests of their entries."""

    def sign(self, round: int, digests: Mapping[int, bytes]) -> bool: ...

    def signed(self, round: int) -> Mapping[int, bytes]: ...


class SecureHost(Host):
    """A host whose users mask their terms.

    Attributes:
        notary: by which users believe only keys that their hosts signed; None: they believe all.
    """

    def __init__(self, planner: Planner, transport: TransportOfSums, *args: Any) -> None:
        super().__init__(planner, transport, *args)
        self.whole = True
        assert transport.recipe.secure
        self.formats, self.secure = transport.formats, transport.recipe.secure
        self.notary: Notary | None = None
        self._secrets: dict[int, masking.MaskingUser] = {}  # of the users who take part
        self._fewest = 0  # users behind a sum
        self._neighbors = 0  # of each user
        self._told: dict[int, Bytes] = {}  # which of a user's neighbors shared seeds, as bits
        self._places = NOBODY  # of the users who were told, among the rows of all

    def advertise(self) -> list[Message]:
        """Advertise keys of the users who take part."""
        self._secrets, self._neighbors = {k: masking.MaskingUser(k) for k in self._users.tolist()}, 0
        if self.notary:
            entries = {k: (numbers_to_bytes([k]), user.advertised) for k, user in self._secrets.items()}
            digests = {k: digest(np.concatenate(each).tobytes()) for k, each in entries.items()}
            if not self.notary.sign(self._round, digests):
                self._secrets = {}
        return self._of_users(KEYS, {k: user.advertised for k, user in self._secrets.items()})

    def share(self, messages: Sequence[Message]) -> list[Message]:
        """Share the seeds of each user's masks among its neighbors."""
        rows, K, sealed = self._received(messages), len(self.waiting), {}
        told = {(int(bytes_to_numbers(row[:NUMBER_BYTES])[0]), len(row) // ENTRY_BYTES) for row in rows.values()}
        (n, k), *others = told or {(0, 0)}  # relays that tell users different n or k are not to be believed
        if others or (chosen := self.secure.accepted(n, K, k)) is None:
            return []
        self._fewest, self._neighbors = self.secure.fewest(n, K), chosen.neighbors
        signed, refused = self.notary.signed(self._round) if self.notary else None, set[int]()
        holds = self._holds
        for k, row in rows.items():
            entries = row[NUMBER_BYTES:].reshape(-1, ENTRY_BYTES)
            numbers, keys = bytes_to_numbers(entries[:, :NUMBER_BYTES].ravel()), entries[:, NUMBER_BYTES:]
            if signed is not None:
                pairs = zip(numbers.tolist(), entries, strict=True)
                genuine = np.array([signed.get(j) == digest(entry.tobytes()) for j, entry in pairs])
                keys = keys * genuine[:, None]
                refused.update(numbers[~genuine].tolist())
            holding = holds.take(numbers, mode="clip")
            if (shares := self._secrets[k].share(numbers, keys, chosen.threshold, holding)) is not None:
                sealed[k] = shares.ravel()
        if refused:
            log.warning(
                "round %d: keys of users %s are not used, because their hosts did not sign them: a relay or the server "
                "swapped them, or a host has no valid certificate",
                self._round,
                few([*map(str, sorted(refused))]),
            )
        return self._of_users(SHARES, sealed)

    def read(self, messages: Sequence[Message]) -> list[Message]:
        """Take what neighbors sealed for each user that holds shares, and tell whose it can read."""
        users = np.array([k for k, user in self._secrets.items() if len(user.neighbors)], np.int64)
        users = users[self._holds[users]]
        sealed = np.zeros((len(users), self._neighbors, masking.SEALED_BYTES), np.uint8)
        for message in messages:
            to, rows = message.of_users(), message.overhead[message.rows()].numpy()
            here = np.isin(to, users)
            sealed[np.searchsorted(users, to[here]), rows[here, 0]] = rows[here, 1:]
        read = zip(users.tolist(), sealed, strict=True)
        return self._of_users(SHARED, {k: np.packbits(self._secrets[k].take(own)) for k, own in read})

    def prepare(self, messages: Sequence[Message]) -> None:
        """Hold the terms of those users only who were told which of their neighbors shared seeds, and can mask."""
        told = {k: row for k, row in self._received(messages).items() if len(self._secrets[k].neighbors)}
        self._told = {k: row for k, row in told.items() if self._secrets[k].can_mask(_bools(row, self._neighbors))}
        users = np.array(list(self._told), np.int64)
        self._places = np.searchsorted(self._users, users)
        self._hold(users, self._ivs)

    def _encoded(self, users: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Return masked terms."""
        places = self._places[users]
        first, end = (places[0], places[-1] + 1) if len(places) else (0, 0)
        rows = self._ivs[slice(first, end), columns][torch.from_numpy(places - first)]
        payload, overhead = self.coder.encode(self._users[users], rows, columns.start)
        terms, _ = self.formats.up[self.coder.format(self.dtype)]
        masked = _MaskedRows(terms, payload.clone(), overhead.clone())
        for place, k in enumerate(self._users[users].tolist()):
            masked.add(place, self._secrets[k].mask(_bools(self._told[k], self._neighbors), masked.parts))
        return masked.payload, masked.overhead

    def answer(self, messages: Sequence[Message]) -> list[Message]:
        """Reveal a share of one seed of each neighbor, if enough users counted."""
        shares = {}
        for k, row in self._received(messages).items():
            total = int(bytes_to_numbers(row[:NUMBER_BYTES])[0])
            counted = _bools(row[NUMBER_BYTES:], self._neighbors)
            revealed = self._secrets[k].reveal(counted) if total >= self._fewest else None
            if revealed is not None:
                shares[k] = revealed.ravel()
        return self._of_users(UNMASK, shares)

    def expects(self, message: Message, turn: Turn, gate: Gate) -> Shape | None:
        k, K, kind, rows = self._neighbors, len(self.waiting), message.kind, message.overhead
        if kind == KEYS and message.format == DIGEST:
            return Shape(0, KEY_DIGEST_BYTES, True, format=DIGEST)
        if kind == KEYS:
            n = (
                {*bytes_to_numbers(rows[:, :NUMBER_BYTES].numpy().ravel()).tolist()}
                if rows.shape[1] >= NUMBER_BYTES
                else {0}
            )
            chosen = self.secure.accepted(max(n), K, rows.shape[1] // ENTRY_BYTES) if len(n) == 1 else None
            return Shape(0, NUMBER_BYTES + chosen.neighbors * ENTRY_BYTES, True) if chosen else None
        if kind not in (SHARES, SHARED, UNMASK):
            return super().expects(message, turn, gate)
        if not k:
            return None
        if kind == SHARES:
            return Shape(0, 1 + masking.SEALED_BYTES, True, places=k)
        return Shape(0, (kind == UNMASK) * NUMBER_BYTES + -(-k // 8), True)

    def conclude(self, receipts: Sequence[Message], models: Sequence[Message]) -> None:
        self._secrets, self._told = {}, {}  # serve for one round only
        super().conclude(receipts, models)

    @property
    def _holds(self) -> NDArray[np.bool_]:
        """Which users hold shares [K]."""
        return np.asarray(~lone(self.planner.topology.G).any(axis=0))

    def _received(self, messages: Sequence[Message]) -> dict[int, Bytes]:
        """Return the row of each user who takes part and whom its relays tell the same; some send a digest of it.

        At least two have to, unless the user has only one: if one of them lies, the other does not.
        """
        G, rows, told = self.planner.topology.G, dict[int, Bytes](), defaultdict[int, set[tuple[str, bytes]]](set)
        for message in messages:
            for k, row in _by_user(message).items():
                if k not in self._secrets:
                    continue
                content = row.tobytes()
                if message.format != DIGEST:
                    rows[k], content = row, digest(content)
                told[k].add((message.sender, content))
        least, words = np.minimum(G.sum(axis=0), 2), {k: {word for _, word in each} for k, each in told.items()}
        agreed = {k for k in rows if len(words[k]) == 1 and len(told[k]) >= least[k]}
        return {k: rows[k] for k in self._secrets if k in agreed}

    def _of_users(self, kind: str, rows: Mapping[int, Bytes]) -> list[Message]:
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
        """The relay that hands on what each user seals for each neighbor [n, k]; -1: no relay hears both.

        It is the one that serves the user, if it hears the neighbor.
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
    def from_bytes(cls, content: Bytes, t: Topology, secure: Secure) -> "Introduction":
        """Return what `to_bytes` wrote; raise CodingError if it did not write this for these settings."""
        check_length(content[: 3 * NUMBER_BYTES], 3 * NUMBER_BYTES)
        n, *degree = bytes_to_numbers(content[: 3 * NUMBER_BYTES]).tolist()
        users = NOBODY
        if 0 < n <= t.K:
            check_length(content[: (3 + n) * NUMBER_BYTES], (3 + n) * NUMBER_BYTES)
            users = bytes_to_numbers(content[3 * NUMBER_BYTES : (3 + n) * NUMBER_BYTES])
        if not len(users) or len({*users.tolist()} & {*range(t.K)}) != n:
            raise CodingError("it names users who are not there")
        if secure.degree(n, t.K, tuple(lone(t.G)[:, users].sum(axis=1).tolist())) != Degree(*degree):
            raise CodingError("it names other numbers of neighbors than there are")
        check_length(content, 3 * NUMBER_BYTES + n * ENTRY_BYTES + -(-int(t.G[:, users].sum()) // 8))
        ends = np.cumsum([3 * NUMBER_BYTES, n * NUMBER_BYTES, n * masking.PUBLIC_KEYS_BYTES])
        _, _, keys, bits = np.split(content, ends)
        advertised = keys.reshape(n, masking.PUBLIC_KEYS_BYTES)
        ascending, links = np.argsort(users), np.zeros_like(t.G)
        rows, columns = np.nonzero(t.G[:, users])
        links[rows, users[columns]] = _bools(bits, len(rows))
        roster = Roster(users[ascending], advertised[ascending], Degree(*degree), np.argsort(ascending))
        return cls(roster, t.restricted(links=links))


class SecureRelay(Relay):
    """A relay that serves users in secure sums. It cannot tell masked terms from random numbers."""

    def __init__(self, i: int, planner: Planner, transport: TransportOfSums, *args: Any) -> None:
        super().__init__(i, planner, transport, *args)
        assert transport.recipe.secure
        self.secure = transport.recipe.secure
        self._known: Introduction | None = None  # of this round, once the server has told
        self._serves: Ids = NOBODY  # the users that it serves, as places in the roster
        self._hears: Ids = NOBODY  # the users within range, likewise
        self._kept: list[Message] = []  # with the sealed shares that it hands on
        self._counted: Ids = NOBODY
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
            passed.append(self._to_server(KEYS, Content(message.payload, message.overhead, users[near], at)))
        return passed

    def introduce(self, messages: Sequence[Message]) -> list[Message]:
        """Tell the users that this relay serves their neighbors' keys, and others within range a digest of theirs."""
        if not messages:
            return []
        self._known = Introduction.from_bytes(messages[0].only_row, self.topology, self.secure)
        roster, serving = self._known.roster, self._known.serving
        self._hears = near = np.flatnonzero(self._known.heard.G[self.i][roster.users])
        self._serves = np.flatnonzero(serving == self.i)
        size, k = np.tile(numbers_to_bytes([len(roster.users)]), (len(near), 1)), roster.degree.neighbors
        numbers = numbers_to_bytes(roster.neighbors[near].ravel()).reshape(len(near), k, NUMBER_BYTES)
        entries = np.concatenate([numbers, roster.keys[near]], axis=2).reshape(len(near), k * ENTRY_BYTES)
        rows, mine = np.concatenate([size, entries], axis=1), serving[near] == self.i
        digests = np.array([list(digest(row.tobytes())) for row in rows[~mine]], np.uint8).reshape(-1, KEY_DIGEST_BYTES)
        (others,) = self._rows(KEYS, near[~mine], digests)
        return [*self._rows(KEYS, self._serves, rows[mine]), replace(others, format=DIGEST)]

    def collect(self, messages: Sequence[Message]) -> list[Message]:
        """Keep the sealed shares that this relay hands on, and pass on what no relay does."""
        if self._known is None or not messages:
            return []
        handing = self._known.handing
        sealed = self._table(messages, handing.shape[1], masking.SEALED_BYTES)
        sent = np.asarray(sealed.any(axis=2))
        users, rows = self._addressed(sealed, sent & (handing == self.i))
        self._kept = [self._to_users(SHARES, users, Content(nothing(len(rows)), torch.from_numpy(rows), users))]
        users, rows = self._addressed(sealed, sent & (handing < 0) & (self._known.serving == self.i)[:, None])
        return (
            [self._to_server(SHARES, Content(nothing(len(rows)), torch.from_numpy(rows), users))] if len(rows) else []
        )

    def pass_on(self, messages: Sequence[Message]) -> list[Message]:
        """Hand on to users what others sealed for them."""
        passed = ((m.of_users(), Content(m.payload, m.overhead, m.users, m.rows())) for m in messages)
        return [*self._kept, *(self._to_users(SHARES, links, content) for links, content in passed)]

    def confirm_shares(self, messages: Sequence[Message]) -> list[Message]:
        """Tell the server whose shares the users could read that this relay serves."""
        if self._known is None or not messages:
            return []
        k = self._known.roster.degree.neighbors
        return self._bits(SHARED, np.unpackbits(self._table(messages, -(-k // 8))[self._serves], axis=1, count=k))

    def announce(self, messages: Sequence[Message]) -> list[Message]:
        """Tell the users who shared seeds which neighbors did."""
        if not messages:
            self._known = None  # it does not know which seeds are needed, and leaves the round
        if self._known is None:
            return []
        roster = self._known.roster
        roster.shared = _bools(messages[0].overhead[0].numpy(), len(roster.users))
        self._serves, self._hears = (places[roster.shared[places]] for places in (self._serves, self._hears))
        return self._rows(SHARED, self._hears, np.packbits(roster.shared[roster.around[self._hears]], axis=1))

    def ask(self, messages: Sequence[Message]) -> list[Message]:
        """Tell the users who shared seeds how many users counted, and which of their neighbors did."""
        if not messages:
            self._known = None
        if self._known is None:
            return []
        roster = self._known.roster
        counted = _bools(messages[0].overhead[0].numpy(), len(roster.users))
        self._counted = roster.users[counted]
        total = np.tile(numbers_to_bytes([len(self._counted)]), (len(self._hears), 1))
        bits = np.packbits(counted[roster.around[self._hears]], axis=1)
        return self._rows(UNMASK, self._hears, np.concatenate([total, bits], axis=1))

    def hear(self, messages: Sequence[Message]) -> list[Message]:
        """Take what the users revealed that this relay serves, and tell the server whose shares these are."""
        if self._known is None or not messages or not len(self._counted):
            return []
        table = self._table(messages, self._known.roster.degree.neighbors, masking.SHARE_BYTES)
        self._revealed = np.zeros_like(table)
        self._revealed[self._serves] = table[self._serves]
        return self._bits(UNMASK, np.asarray(table[self._serves].any(axis=2)))

    def combine(self, messages: Sequence[Message]) -> list[Message]:
        """Send the server a part of each seed that it needs, given which shares all relays know."""
        self.combining = bool(messages)
        if self._known is None or self._revealed is None or not messages or not len(self._serves):
            return []
        bits = _bools(messages[0].overhead[0].numpy(), self._known.roster.around.shape)
        try:
            parts = self._known.roster.join(self._counted, bits, self._revealed)
        except UnmaskingError:  # the server asks for what nobody can combine
            return []
        return [self._to_server(UNMASK, overhead_only(parts.ravel()))]

    def expects(self, message: Message, turn: Turn, gate: Gate) -> Shape | None:
        kind, to_users = message.kind, message.sender not in gate.homes
        if kind not in (KEYS, SHARES, SHARED, UNMASK):
            return super().expects(message, turn, gate)
        if kind == KEYS and to_users:
            Introduction.from_bytes(message.only_row, self.topology, self.secure)
            return Shape(0, len(message.only_row))
        if kind == KEYS:
            return Shape(0, masking.PUBLIC_KEYS_BYTES, True)
        if self._known is None:
            return None
        n, k = self._known.roster.around.shape
        if to_users and kind == SHARES:
            return Shape(0, 1 + masking.SEALED_BYTES, np.flatnonzero(self.topology.G[self.i]), places=k)
        if to_users:
            return Shape(0, -(-n * (k if turn.action == "combine" else 1) // 8))
        return Shape(
            0, {SHARES: k * masking.SEALED_BYTES, SHARED: -(-k // 8), UNMASK: k * masking.SHARE_BYTES}[kind], True
        )

    def close(self) -> None:
        super().close()
        self._known, self._revealed, self._kept = None, None, []

    def _table(self, messages: Sequence[Message], *shape: int) -> Bytes:
        """Return what users within range sent, of this shape [n, ...]; zeros if nothing arrived."""
        assert self._known
        roster, near = self._known.roster, self._known.heard.N(self.i)
        table = np.zeros((len(roster.users), *shape), np.uint8)
        for message in messages:
            users, rows = message.of_users(), message.overhead[message.rows()].numpy()
            here = np.isin(users, near)
            table[np.searchsorted(roster.users, users[here])] = rows[here].reshape(-1, *shape)
        return table

    def _addressed(self, sealed: Bytes, chosen: NDArray[np.bool_]) -> tuple[Ids, Bytes]:
        """Return the users to whom some sealed shares go, and rows with these and, first, whose they are [49]."""
        assert self._known
        roster, (at, place) = self._known.roster, np.nonzero(chosen)
        users, senders = roster.neighbors[at, place], roster.opposite[place].astype(np.uint8)
        order = np.argsort(users, kind="stable")
        return users[order], np.concatenate([senders[:, None], sealed[at, place]], axis=1)[order]

    def _bits(self, kind: str, values: NDArray[Any]) -> list[Message]:
        """Return a message to the server with a bit for each value, if there are any."""
        return [self._to_server(kind, overhead_only(np.packbits(values)))] if values.size else []

    def _rows(self, kind: str, places: NDArray[np.int64], content: Bytes) -> list[Message]:
        """Return a message with a row for each of the users at some places in the roster."""
        assert self._known
        users = self._known.roster.users[places]
        return [self._to_users(kind, users, Content(nothing(len(users)), torch.from_numpy(content), users))]


class SecureServer(Server):
    """A server that chooses neighbors, and unmasks the sum of masked terms."""

    def __init__(self, planner: Planner, transport: TransportOfSums, aggregation: Aggregation) -> None:
        super().__init__(planner, transport, aggregation)
        assert transport.recipe.secure
        self.formats, self.secure, self._sums = transport.formats, transport.recipe.secure, aggregation
        self._known: Introduction | None = None  # of this round, if there are enough users
        self._relays: list[int] = []  # those that take part
        self._fewest = 0  # users behind a sum
        self._revealed: dict[int, Bytes] | None = None  # which shares each relay knows, as bits
        self._unknown = False  # whether the sum is

    def introduce(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Choose neighbors for the users who advertised keys, and tell relays the keys of all."""
        self.round, self._known, self._unknown = round, None, False
        self._relays = sorted({relay_number(message.sender) for message in messages})  # a message for each host
        G, K = self.topology.G, self.topology.K
        copies, heard = defaultdict[int, set[bytes]](set), np.zeros_like(G)
        for message in messages:
            for k, row in _by_user(message).items():
                copies[k].add(row.tobytes())
                heard[relay_number(message.sender), k] = 1
        passed, present = heard.sum(axis=0), G[self._relays].sum(axis=0)
        for k in sorted(copies):
            if len(copies[k]) > 1 or passed[k] < min(present[k], 2):
                log.warning("round %d: user %d is left out: the relays that hear it disagree on its keys", round, k)
                heard[:, k] = 0
        heard[:, passed < np.minimum(G.sum(axis=0), 2)] = 0  # nobody can contradict a relay that is the last of several
        users = np.flatnonzero(heard.any(axis=0))
        alone = tuple(lone(G)[:, users].sum(axis=1).tolist())
        chosen, self._fewest = self.secure.degree(n := len(users), K, alone), self.secure.fewest(n, K, alone)
        if chosen is None:
            if n:
                few_users = "round %d has no sum: %d users, of whom %d hold shares, are too few for secure sums"
                log.warning(few_users, round, n, n - sum(alone))
            self._unknown = n > 0
            return []
        keys = np.stack([np.frombuffer(min(copies[k]), np.uint8) for k in users.tolist()])
        roster = Roster(users, keys, chosen, np.random.default_rng().permutation(n))
        self._known = Introduction(roster, self.topology.restricted(links=heard))
        return self._to(self._relays, KEYS, overhead_only(self._known.to_bytes(self.topology)))

    def pass_on(self, messages: Sequence[Message]) -> list[Message]:
        """Pass on the shares that no relay hands on."""
        if self._known is None:
            return []
        passed = list[Message]()
        for message in messages:
            users, rows = message.of_users(), message.rows()
            via = self._known.serving[np.searchsorted(self._known.roster.users, users)]
            for i in np.unique(via).tolist():
                here = np.flatnonzero(via == i)
                content = Content(message.payload, message.overhead, users[here], rows[torch.from_numpy(here)])
                passed.append(self._copy(SHARES, Copy((i,), i, content)))
        return passed

    def choose_sharers(self, messages: Sequence[Message]) -> list[Message]:
        """Tell relays which users shared seeds: those whose shares enough neighbors could read."""
        if self._known is None or not messages:
            return []
        roster, read = self._known.roster, np.zeros(self._known.handing.shape, bool)
        holds = np.asarray(~lone(self.topology.G)[:, roster.users].any(axis=0))
        for message in messages:
            mine = np.flatnonzero(self._known.serving == relay_number(message.sender))
            read[mine] = _bools(message.overhead[0].numpy(), (len(mine), roster.degree.neighbors))
        roster.choose_sharers(read, holds)
        return self._to(self._relays, SHARED, overhead_only(np.packbits(roster.shared)))

    def retry(self) -> list[Message]:
        """Tell the relays if one of them fell silent, so that the attempt was in vain."""
        return self._verdict(IN_VAIN, self.attendance.relays) if self.silent else []

    def ask(self) -> list[Message]:
        """Tell relays which users counted."""
        self._revealed, known = None, self._to_unmask
        if known is None or len(self.attendance.users) < self._fewest:
            return []
        counted = np.isin(known.roster.users, self.attendance.users)
        return self._to(self._relays, UNMASK, overhead_only(np.packbits(counted)))

    def unmask(self, messages: Sequence[Message]) -> list[Message]:
        """Ask relays to combine the shares that users revealed to them, and unmask the sum with what they answer.

        If one of them does not answer, ask again without its shares. If the others are too few, take the round as one
        without terms.
        """
        known, counted = self._to_unmask, self.attendance.users
        self.combining = False
        if known is None:
            return []
        roster, answers = (
            known.roster,
            {relay_number(message.sender): message.overhead[0].numpy() for message in messages},
        )
        if self._revealed is not None and self._revealed.keys() <= answers.keys():
            parts = [answers[i].reshape(-1, masking.SHARE_BYTES) for i in self._revealed]
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
            if len(counted) < self._fewest:
                raise UnmaskingError(f"{len(counted)} users counted, but {self._fewest} are needed")
            roster.holders(counted, table)
        except UnmaskingError as error:
            log.warning("round %d has no sum: it cannot be unmasked: %s", self.round, error)
            self._sums.keep_nobody()
            return []
        self.combining = True
        return self._to(self._relays, UNMASK, overhead_only(np.packbits(table)))

    def expects(self, message: Message, turn: Turn, gate: Gate) -> Shape | None:
        kind = message.kind
        if kind == KEYS:
            return Shape(0, masking.PUBLIC_KEYS_BYTES, True)
        if kind not in (SHARES, SHARED, UNMASK):
            return super().expects(message, turn, gate)
        if self._known is None:
            return None
        roster, mine = self._known.roster, self._known.serving == relay_number(message.sender)
        if kind == SHARES:
            return Shape(0, 1 + masking.SEALED_BYTES, roster.users, places=roster.degree.neighbors)
        if kind == UNMASK and self._revealed is not None:
            return Shape(0, len(roster.needed(self.attendance.users)) * masking.SHARE_BYTES)
        served = int((mine & roster.shared if kind == UNMASK else mine).sum())
        return Shape(0, -(-served * roster.degree.neighbors // 8))

    def compare(self, *heard: Any) -> list[Message]:
        """Send the row to the relays; in an empty round, the last one."""
        messages = super().compare(*heard)
        self.empty = self.empty or self._unknown
        return messages

    def _announce(self) -> list[Message]:
        """Announce the attendance, without users who did not share seeds, whose terms nobody could unmask."""
        shared = self._known.roster.users[self._known.roster.shared] if self._known else NOBODY
        self._reports = {
            i: replace(report, heard=np.intersect1d(report.heard, shared)) for i, report in self._reports.items()
        }
        return super()._announce()

    @property
    def _to_unmask(self) -> Introduction | None:
        """Who began the round, if its sum is to be unmasked."""
        return None if self.empty or not len(self.attendance.users) else self._known

    def _keep(self, counted: Ids, seeds: Bytes) -> None:
        """Keep the sum of the terms, without masks."""
        kept = self._sums.ivs
        _, sums = self.formats.up[self.attendance.format]
        total = _MaskedRows(sums, kept["payload"], kept["overhead"])
        assert self._known
        total.add(0, self._known.roster.unmask(counted, seeds, total.parts), -1)
        self._sums.keep(counted, {"payload": total.payload, "overhead": total.overhead})


class _MaskedRows:
    """Rows of terms or sums, to which masks are added: numbers of w bits, and further numbers of 64 bits.

    Args:
        row_format: of the numbers.
        payload, overhead: the rows, uint8 [n, bytes] each.
    """

    def __init__(self, row_format: RowFormat, payload: Tensor, overhead: Tensor) -> None:
        self._format, self.payload, self.overhead = row_format, payload, overhead
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
