"""Nodes of secure sums, see `hmtl.communication.secure.protocol`: hosts mask terms, and the server unmasks their sum.

What users and server tell each other for it passes the relays, a row for each user. All of it is overhead.

n users advertise keys, each has k neighbours.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.accounting.ledger import SERVER_TO_RELAYS, USERS_TO_RELAYS
from hmtl.communication.attendance import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.encoding import from_bytes, to_bytes
from hmtl.communication.messages import IN_VAIN, KEYS, SHARES, UNMASK, Message, Users, nothing, relay_name
from hmtl.communication.nodes.adding import AddingHost, AddingRelay, AddingServer, formats_of_terms
from hmtl.communication.nodes.base import relay_of
from hmtl.communication.nodes.few_bit_sums import FewBitHost, FewBitRelay, FewBitServer
from hmtl.communication.row_formats import RowFormat
from hmtl.communication.secure import protocol
from hmtl.communication.secure.neighbors import Secure, degree
from hmtl.communication.secure.protocol import Bytes, Mask, UnmaskingError

NUMBER = 4  # bytes of a number
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
            self._fewest = self.secure.fewest(n)
            numbers, keys = _split(row[2 * NUMBER :], NUMBER, protocol.KEYS)
            sealed[k] = self._secrets[k].share(bytes_to_numbers(numbers.ravel()), keys, threshold).ravel()
        return self._rows(SHARES, sealed)

    def mask(self, messages: Sequence[Message]) -> list[Message]:
        """Return the masked terms of those users to whom the server passed on their neighbours' shares."""
        shares = self._received(messages)
        for k, row in shares.items():
            shared, sealed = _split(row, 1, protocol.SEALED)
            self._secrets[k].take(shared.ravel() == 1, sealed)
        (terms, *others), users = self._messages, np.array(list(shares), np.int64)
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
            revealed = self._secrets[k].reveal(row[NUMBER:] == 1) if total >= self._fewest else None
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


class SecureRelay(AddingRelay):
    """A relay that passes on what users and server tell each other. It cannot tell masked terms from random numbers."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._serves: Users = NOBODY  # whose rows it passes on

    def pass_up(self, round: int, kind: str, messages: Sequence[Message]) -> list[Message]:
        """Pass on the rows of users within range, of all that it heard or those that the server told it to serve."""
        self.round, passed = round, []
        within = self.topology.N(self.i) if kind == KEYS else self._serves
        for message in messages:
            users = message.of_users()
            chosen = np.flatnonzero(np.isin(users, within))
            at = message.rows()[torch.from_numpy(chosen)]
            passed.append(self._to_server(kind, message.payload, message.overhead, users[chosen], at))
        return passed

    def pass_down(self, kind: str, messages: Sequence[Message]) -> list[Message]:
        """Pass on what the server tells users."""
        if kind == KEYS:
            self._serves = np.concatenate([NOBODY, *(message.of_users() for message in messages)])
        return [self._to_users(kind, m.payload, m.overhead, m.of_users(), m.rows()) for m in messages]


class SecureServer(AddingServer):
    """A server that chooses neighbours, and unmasks the sum of masked terms.

    Args: as in `AddingServer`, and
        secure: settings of secure sums.
    """

    def __init__(self, *args: Any, secure: Secure, **options: Any) -> None:
        super().__init__(*args, **options)
        self.secure = secure
        self._protocol: protocol.UnmaskingServer | None = None  # of this round, if there are enough users
        self._via = np.full(self.topology.K, -1)  # the relay that passes on the rows of each user; -1: none
        self._known = True  # whether the sum is

    def introduce(self, round: int, messages: Sequence[Message]) -> list[Message]:
        """Choose neighbours for the users who advertised keys, and tell each its neighbours' keys."""
        self.round, self._protocol, self._known = round, None, True
        advertised: dict[int, tuple[int, Bytes]] = {}
        for message in reversed(messages):  # the first relay that heard a user serves it
            advertised |= {k: (relay_of(message), row) for k, row in _by_user(message).items()}
        users = np.array(sorted(advertised), np.int64)
        chosen = degree(n := len(users), self.secure.colluding)
        if chosen is None:
            if n:
                log.warning("round %d is empty: %d users are too few for secure sums", round, n)
            self._known = not n
            return []
        self._via[users] = [advertised[k][0] for k in users.tolist()]
        keys, order = np.stack([advertised[k][1] for k in users.tolist()]), np.random.default_rng().permutation(n)
        self._protocol = server = protocol.UnmaskingServer(users, keys, chosen, order)
        size = np.tile(numbers_to_bytes([n, chosen.threshold]), (n, 1))
        numbers = numbers_to_bytes(server.neighbors.ravel()).reshape(*server.neighbors.shape, NUMBER)
        return self._rows(KEYS, users, [size, _joined(numbers, server.keys)])

    def pass_on(self, messages: Sequence[Message]) -> list[Message]:
        """Pass on the sealed shares to the users who shared theirs."""
        server = self._protocol
        if server is None or not messages:
            return []
        rows = {k: row for message in messages for k, row in _by_user(message).items()}
        users = np.array(sorted(rows), np.int64)
        server.take(users, np.stack([rows[k] for k in users.tolist()]).reshape(len(users), -1, protocol.SEALED))
        shared, sealed = server.pass_on()
        here = server.shared
        return self._rows(SHARES, users, [_joined(shared[here, :, None].astype(np.uint8), sealed[here])])

    def retry(self) -> list[Message]:
        """Tell the relays if one of them fell silent, so that the attempt was in vain."""
        return self._verdict(IN_VAIN, self.attendance.relays) if self.silent else []

    def ask(self) -> list[Message]:
        """Tell the users who shared seeds how many users counted, and which of their neighbours did."""
        server, counted = self._protocol, self.attendance.users
        if server is None or self.empty or not len(counted):
            return []
        users, total = server.users[server.shared], numbers_to_bytes([len(counted)])
        counts = server.counted(counted)[server.shared].astype(np.uint8)
        return self._rows(UNMASK, users, [np.tile(total, (len(users), 1)), counts])

    def unmask(self, messages: Sequence[Message]) -> None:
        """Unmask the sum of the terms, given the shares that users revealed; or take the round as one without terms."""
        server, counted = self._protocol, self.attendance.users
        if server is None or self.empty or not len(counted):
            return
        rows = {k: row for message in messages for k, row in _by_user(message).items()}
        answers = np.array(sorted(rows), np.int64)
        kept = self.aggregation.ivs
        total = _Rows(self.formats, self.sizes[0], kept["payload"], kept["overhead"][:, : self.sizes[1]], True)
        try:
            if len(counted) < (fewest := self.secure.fewest(len(server.users))):
                raise UnmaskingError(f"{len(counted)} users counted, but {fewest} are needed")
            shares = np.array([rows[k] for k in answers.tolist()], np.uint8)
            shares = shares.reshape(len(answers), server.degree.neighbors, protocol.SHARE)
            total.add(0, server.unmask(counted, answers, shares, total.parts), -1)
            users = counted
        except UnmaskingError as error:
            log.warning("round %d is empty: its sum cannot be unmasked: %s", self.round, error)
            self._known, users = False, NOBODY
            total.payload, total.overhead = torch.zeros_like(total.payload), torch.zeros_like(total.overhead)
        overhead = torch.cat([total.overhead, self.note], dim=1)
        self.aggregation.keep(self.round, self.name, users, {"payload": total.payload, "overhead": overhead})

    def hand_back(self) -> list[Message]:
        """Send the row to the relays; in an empty round, the last one."""
        messages = super().hand_back()
        self.empty = self.empty or not self._known
        return messages

    def _rows(self, kind: str, users: Users, columns: Sequence[Bytes]) -> list[Message]:
        """Return a message to each relay with the rows of those users [n] whom it serves."""
        content, messages = torch.from_numpy(np.concatenate(columns, axis=1)), []
        for i in np.unique(self._via[users]).tolist():
            chosen = np.flatnonzero(self._via[users] == i)
            to, at, empty = (relay_name(i),), torch.from_numpy(chosen), nothing(len(users))
            messages.append(
                Message(self.round, SERVER_TO_RELAYS, kind, "server", to, i, empty, content, users[chosen], at)
            )
        return messages


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


def _joined(first: Bytes, second: Bytes) -> Bytes:
    """Return rows [n, k·(a + b)] of entries [n, k, a] and [n, k, b]."""
    return np.concatenate([first, second], axis=2).reshape(len(first), -1)


def _split(row: Bytes, a: int, b: int) -> tuple[Bytes, Bytes]:
    """Return the entries [k, a] and [k, b] of a row that `_joined` made."""
    entries = row.reshape(-1, a + b)
    return entries[:, :a], entries[:, a:]
