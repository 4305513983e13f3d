"""A relay that lies reads no term of users whom another relay also hears, and one user who lies spoils no round."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adding import Terms, terms
from apart import Apart
from cryptography.exceptions import InvalidTag

from hmtl.coding import shamir
from hmtl.communication import SumsOfRows
from hmtl.communication.messages import IVS, KEYS, SERVER, SHARED, SHARES, UNMASK, Message, nothing
from hmtl.communication.secure.crypto import agree, expand, unseal
from hmtl.communication.secure.masking import MaskingUser
from hmtl.communication.secure.neighbors import Secure
from hmtl.topology import Topology, symmetric

K, SECURE = 24, Secure(0.1)
MASKED = SumsOfRows(secure=SECURE)


class Liar:
    """Relay i, which changes what it sends, and remembers what it hears.

    Args:
        lies: of these kinds: `keys` of its own to users, and that all these neighbours shared; keys of its own to the
            server (`advertised`); that nobody `shared`; that nobody `counted`.

    Attributes:
        heard: what each user within range sent, by kind.
        told: the neighbours of each user whose keys are the relay's.
    """

    def __init__(self, apart: Apart, i: int, lies: str) -> None:
        self.apart, self.name, self.lies, self.own = apart, f"relay {i}", lies, [MaskingUser(k) for k in range(K)]
        self.heard: dict[str, dict[int, np.ndarray]] = {KEYS: {}, SHARES: {}, IVS: {}, UNMASK: {}}
        self.told: dict[int, list[int]] = {}
        self.users: dict[int, MaskingUser] = {}  # with the secrets that they have during the round

    def change(self, node: str, message: Message) -> Message:
        near = np.flatnonzero(self.apart.server.topology.G[int(self.name[-1])])
        self.users |= {k: user for host in self.apart.hosts for k, user in host._secrets.items()}
        if node == self.name and message.sender.startswith("host") and message.kind in self.heard:
            part = message.payload if message.kind == IVS else message.overhead
            rows = zip(message.users.tolist(), part[message.rows()].numpy(), strict=True)
            self.heard[message.kind] |= {k: row for k, row in rows if k in near}
        if message.sender != self.name:
            return message
        users, rows, lies = message.users, message.overhead[message.rows()].numpy().copy(), self.lies.split()
        to_users = node.startswith("host")
        if message.kind == KEYS and ("keys" if to_users else "advertised") in lies:
            for k, row in zip(users.tolist(), rows, strict=True):
                row[:], told = self.replaced(row, self.true if to_users else self.heard[KEYS])
                self.told[k] = told or self.told.get(k, [])
        elif message.kind == SHARED and to_users and "keys" in lies:
            users, rows = near, np.full((len(near), rows.shape[1]), 255, np.uint8)
        elif message.kind == SHARED and to_users and "shared" in lies:
            rows[:] = 0
        elif message.kind == UNMASK and to_users and "counted" in lies:
            rows[:, 4:] = 0
        else:
            return message
        return replace(message, payload=nothing(len(rows)), overhead=torch.from_numpy(rows), users=users, at=None)

    def replaced(self, row: np.ndarray, keys: dict[int, np.ndarray]) -> tuple[np.ndarray, list[int]]:
        """Return a row with keys of its own in place of these keys, and whose they are."""
        content, users = row.tobytes(), [k for k, key in keys.items() if key.tobytes() in row.tobytes()]
        for k in users:
            content = content.replace(keys[k].tobytes(), self.own[k].advertised.tobytes())
        return np.frombuffer(content, np.uint8), users

    @property
    def true(self) -> dict[int, np.ndarray]:
        """What all users advertised, which the server broadcasts."""
        return {k: user.advertised for k, user in self.users.items()}

    def reads(self, k: int) -> np.ndarray | None:
        """Return the numbers of a user's term, if all its neighbours' keys were the relay's."""
        others = self.told.get(k, [])
        if not others or not {k} <= self.heard[SHARES].keys() & self.heard[IVS].keys():
            return None
        keys = [self.heard[KEYS][k][at : at + 32].tobytes() for at in (0, 32)]
        rows, shares = self.heard[SHARES][k].reshape(-1, 48), {}
        for j in others:
            key = agree(self.own[j]._sealing, keys[0])
            for place, row in enumerate(rows):
                try:
                    shares[place] = unseal(key, k < j, row.tobytes())[:16]
                except (InvalidTag, TypeError):
                    continue
        t = SECURE.degree(K, K).threshold
        if len(shares) < t:
            return None
        points = np.array([[list(share) for share in list(shares.values())[:t]]], np.uint8)
        own = shamir.join(np.array([list(shares)[:t]]), points)[0].tobytes()
        y = self.heard[IVS][k].view(np.uint64) - expand(own, 0, 6, 64)
        for j in others:
            common = expand(agree(self.own[j]._masking, keys[1]), 0, 6, 64)
            y = y - common if k < j else y + common
        return y


class Register:
    """What hosts have signed."""

    def __init__(self) -> None:
        self.digests: dict[int, bytes] = {}

    def sign(self, round: int, digests: Mapping[int, bytes]) -> bool:
        self.digests |= digests
        return True

    def signed(self, round: int) -> Mapping[int, bytes]:
        return self.digests


def lied_to(r: int, lies: str, i: int = 0) -> tuple[Liar, torch.Tensor]:
    """Play a round of 24 users, r of 3 relays hear each; return relay i, which lies, and the terms."""
    values = terms(0, K, reach=50)
    apart = Apart(symmetric(K, 3, r), [Terms([values], [set()])], MASKED)
    apart.hosts[0].notary = Register() if "signed" in lies else None
    liar = Liar(apart, i, lies)
    apart.play(0, change=liar.change)
    return liar, values


def read(r: int, lies: str) -> int:
    """Return how many terms three relays read, if one of them lies, and then another; one, if all hear all users."""
    number = 0
    for i in range(3 if r < 3 else 1):  # if each hears all users, they are alike
        liar, values = lied_to(r, lies, i)
        views = {k: liar.reads(k) for k in range(K)}
        number += sum(y is not None and y.view(np.int64).tolist() == values[k, :6].tolist() for k, y in views.items())
    return number


@pytest.mark.parametrize("r", [2, 3])
@pytest.mark.parametrize("lies", ["keys", "keys advertised"])
def test_a_relay_that_answers_with_its_own_keys_reads_no_term_of_users_whom_another_hears(r: int, lies: str) -> None:
    assert read(r, lies) == 0


def test_it_reads_the_terms_of_users_whom_only_it_hears() -> None:
    """Unless their hosts sign keys."""
    assert read(1, "keys") == K
    assert read(1, "keys signed") == 0


@pytest.mark.parametrize(("lies", "r"), [("shared", 1), ("shared", 2), ("shared", 3), ("counted", 2), ("counted", 3)])
def test_a_relay_that_lies_about_who_shared_or_counted_learns_no_two_seeds(lies: str, r: int) -> None:
    """Without masks in common, or with both seeds of a user, it would read terms."""
    liar, values = lied_to(r, lies)
    for k, row in liar.heard[IVS].items():
        y = row.view(np.uint64) - expand(liar.users[k]._own, 0, 6, 64)
        assert y.view(np.int64).tolist() != values[k, :6].tolist(), "masks in common are there"
    assert not (lies == "counted" and liar.heard[UNMASK]), "users whom relays tell different things reveal nothing"


def test_users_know_how_many_neighbours_they_have() -> None:
    """Fewer shares of a seed would be enough if users had fewer neighbours; only relay 0 hears users 0 to 9."""
    users = Terms([terms(0, 20)], [set()])
    apart, sent = Apart(Topology(np.kron(np.eye(2), np.ones(10)).astype(np.uint8)), [users], MASKED), set[int]()

    def change(node: str, message: Message) -> Message:
        if message.kind == KEYS and node.startswith("host") and message.sender == "relay 0":
            return replace(message, overhead=message.overhead[:, :-68])
        if message.kind == SHARES and message.sender.startswith("host"):
            sent.update(message.users.tolist())
        return message

    apart.play(0, change=change)
    assert sent == set(range(10, 20))
    assert apart.total.seen[0][0].tolist() == sorted(sent)
    assert apart.total.state["last"].tolist() == users.ivs[0][10:].sum(0, keepdim=True).tolist()


def test_honest_relays_read_nothing_and_all_count() -> None:
    liar, values = lied_to(2, "")
    assert all(liar.reads(k) is None for k in range(K))
    assert liar.apart.total.state["last"].tolist() == values.sum(0, keepdim=True).tolist()


def test_a_relay_cannot_invent_users_whom_other_relays_did_not_hear() -> None:
    """They would be neighbours that hold shares. Where only this relay hears a user, nobody can tell."""
    absent, invented = {5, 6, 7}, MaskingUser(0).advertised
    users = Terms([terms(0, 20)], [absent])
    apart, told = Apart(symmetric(20, 4, 2), [users], MASKED), list[bytes]()

    def change(node: str, message: Message) -> Message:
        if message.kind == KEYS and (node, message.sender) == (SERVER, "relay 0"):
            more = np.array([k for k in sorted(absent) if apart.server.topology.G[0, k]], np.int64)
            rows = torch.from_numpy(np.tile(invented, (len(more), 1)))
            overhead, ids = torch.cat([message.overhead[message.rows()], rows]), np.append(message.users, more)
            assert len(more)
            return replace(message, payload=torch.empty(len(ids), 0), overhead=overhead, users=ids, at=None)
        if message.kind == KEYS and node.startswith("host"):
            told.extend(row.tobytes() for row in message.overhead.numpy())
        return message

    apart.play(0, change=change)
    assert told
    assert not any(invented.tobytes() in row for row in told)
    assert apart.total.seen[0][0].tolist() == sorted(set(range(20)) - absent)
    assert apart.total.state["last"].tolist() == users.ivs[0][apart.total.seen[0][0]].sum(0, keepdim=True).tolist()


Spoil = Callable[[np.ndarray], np.ndarray]


def of_six(row: np.ndarray) -> np.ndarray:
    """Return a row of keys as if six users had begun the round, who have five neighbours each."""
    return np.append(np.frombuffer(np.int32(6).tobytes(), np.uint8), row[4 : 4 + 5 * 68])


@pytest.mark.parametrize("kind", [KEYS, SHARES, SHARED, UNMASK])
@pytest.mark.parametrize(
    "garbage",
    [
        lambda row: row | 128,
        *(pytest.param(spoil, marks=pytest.mark.slow) for spoil in (of_six, lambda row: row[:2], lambda row: row[:-3])),
    ],
)
@pytest.mark.parametrize("to", ["host", SERVER])
def test_garbage_that_a_relay_sends_ends_no_run(to: str, garbage: Spoil, kind: str) -> None:
    apart = Apart(symmetric(12, 3, 1), [Terms([terms(n, 12) for n in range(2)], [set()] * 2)], MASKED)

    def change(node: str, message: Message) -> Message:
        if message.round or (message.sender, message.kind) != ("relay 0", kind) or not node.startswith(to):
            return message
        rows = np.array([garbage(row) for row in message.overhead[message.rows()].numpy()], np.uint8)
        return replace(message, payload=nothing(len(rows)), overhead=torch.from_numpy(rows), at=None)

    apart.play(0, change=change)
    apart.play(1)
    assert apart.total.seen[-1][0].tolist() == list(range(12))


def some(number: int) -> Spoil:
    """Return what leaves the shares of the first neighbours alone, and garbles the others."""
    return lambda row: np.append(row[: 48 * number], row[48 * number :] ^ 1)


SPOILED: dict[str, dict[str, Spoil]] = {
    "zero keys": {KEYS: np.zeros_like},
    "a zero key for sealing": {KEYS: lambda row: np.append(0 * row[:32], row[32:])},
    "a zero key for masks": {KEYS: lambda row: np.append(row[:32], 0 * row[32:])},
    "short keys": {KEYS: lambda row: row[:40]},
    "no keys, but shares": {KEYS: lambda row: row[:0], SHARES: lambda row: row},
    "garbled shares": {SHARES: some(0)},
    "garbled shares for most": {SHARES: some(1)},
    "garbled shares for one": {SHARES: some(10)},
    "zeros for shares": {SHARES: np.zeros_like},
    "short shares": {SHARES: lambda row: row[:-1]},
    "a term without shares": {SHARES: some(0), IVS: lambda row: row},
    "reads nothing": {SHARED: np.zeros_like},
    "short reading": {SHARED: lambda row: row[:0]},
    "reveals nothing": {UNMASK: np.zeros_like},
    "reveals too much": {UNMASK: lambda row: np.append(row, row)},
}


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("place", [7, pytest.param(0, marks=pytest.mark.slow)])
def test_one_user_who_sends_garbage_costs_no_more_than_its_own_term(spoiled: str, place: int) -> None:
    """It has a host of its own, whose rows may have any length."""
    ivs, rest = [terms(n, 12, reach=50) for n in range(2)], [k for k in range(12) if k != place]
    sides = [Terms(ivs, [set()] * 2, mine) for mine in (rest, [place])]
    apart, changes, seen = Apart(symmetric(12, 3, 2), sides, MASKED), SPOILED[spoiled], set[str]()

    def change(node: str, message: Message) -> Message:
        if message.round or message.sender != "host 1" or message.kind not in changes:
            return message
        seen.add(message.kind)
        if message.kind == IVS and not len(message):
            garbage = torch.full((1, 8 * 6), 77, dtype=torch.uint8)
            return replace(message, payload=garbage, overhead=garbage[:, :8], users=np.array([place]), at=None)
        rows = np.array([changes[message.kind](row) for row in message.overhead.numpy()], np.uint8)
        return replace(message, overhead=torch.from_numpy(rows))

    apart.play(0, change=change)
    apart.play(1)
    (first, _), (second, _) = apart.total.seen
    assert KEYS not in changes or KEYS in seen
    assert set(rest) <= set(first.tolist())
    assert second.tolist() == list(range(12))
    expected: Any = ivs[0][first].sum(0) + ivs[1].sum(0)
    assert apart.total.state["last"][0].tolist() == expected.tolist()
