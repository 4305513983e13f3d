"""A relay that lies reads no term of users whom another relay also hears, and one user who lies spoils no round."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adding import Terms, terms
from apart import Apart

from hmtl.coding import shamir
from hmtl.communication import SumsOfRows
from hmtl.communication.attendance import Report
from hmtl.communication.codecs.formats import BYTES
from hmtl.communication.messages import IVS, KEYS, REPORT, SERVER, SHARED, SHARES, UNMASK, Message, nothing
from hmtl.communication.nodes import secure
from hmtl.communication.secure.crypto import agree, expand, key_from, unseal
from hmtl.communication.secure.masking import MaskingUser
from hmtl.communication.secure.neighbors import Secure
from hmtl.topology import Topology, symmetric

K, SECURE = 24, Secure(0.1)
T = 2  # users who may collude, of 24: three shares reveal a seed
MASKED = SumsOfRows(secure=SECURE)
OWN, COMMON = 0, 1  # the two seeds of a user: of its own mask, and of the key for masks in common
Seeds = dict[tuple[int, int], bytes]
"""Seeds by kind and user."""


class Liar:
    """Relay i, which changes what it sends, remembers what it hears, and joins all shares that it can.

    Args:
        lies: what it tells whom, in words.
            To users: `keys` of its own, and that all these neighbors shared; that nobody `shared`; that nobody
            `counted`; `pairs`: that a user who colludes is the only neighbor. To users whom it alone hears, `half`:
            that all counted, to every second one, and that nobody did, to the others; `hosts`: the same, by hosts;
            `few`: that only t neighbors shared, whose terms it then hides.
            To the server: keys of its own, for all users (`advertised`) or those whom it alone hears (`invented`).
        colluding: users who tell it all they know.

    Attributes:
        heard: what each user within range sent, by kind.
        told: what it told each user last, by kind.
        near, alone: the users within range, and those of them whom no other present relay hears.
        users: with the secrets that they have during the round.
    """

    def __init__(
        self, apart: Apart, i: int, lies: str, colluding: Collection[int] = (), away: Collection[int] = ()
    ) -> None:
        self.apart, self.i, self.name, self.lies = apart, i, f"relay {i}", lies.split()
        self.own, self.colluding = [MaskingUser(k) for k in range(K)], colluding
        G, there = apart.server.topology.G, [j for j in range(apart.server.topology.H) if j not in away]
        self.near, self.hidden = np.flatnonzero(G[i]), list[int]()
        self.alone = [k for k in self.near.tolist() if G[there, k].sum() == 1]
        self.heard: dict[str, dict[int, np.ndarray]] = {KEYS: {}, SHARES: {}, IVS: {}, UNMASK: {}}
        self.told: dict[str, dict[int, np.ndarray]] = {KEYS: {}, SHARED: {}, UNMASK: {}}
        self.users: dict[int, MaskingUser] = {}

    def change(self, node: str, message: Message) -> Message:
        self.users |= {k: user for host in self.apart.hosts for k, user in host._secrets.items()}
        if node == self.name and message.sender.startswith("host") and message.kind in self.heard:
            part = message.payload if message.kind == IVS else message.overhead
            rows = zip(message.users.tolist(), part[message.rows()].numpy(), strict=True)
            self.heard[message.kind] |= {k: row for k, row in rows if k in self.near}
        if message.sender != self.name:
            return message
        if node.startswith("host"):
            message = self.to_users(node, message)
            rows = message.overhead[message.rows()].numpy()
            if message.kind in self.told and message.format == BYTES:
                told, mine = zip(message.users.tolist(), rows, strict=True), self.apart.hosts[int(node[-1])].members
                self.told[message.kind] |= {k: row for k, row in told if k in mine}
        elif message.kind == KEYS and {"advertised", "invented"} & {*self.lies}:
            swapped = {k: key for k, key in self.heard[KEYS].items() if "advertised" in self.lies or k in self.alone}
            rows = np.stack([self.replaced(row, swapped) for row in message.overhead[message.rows()].numpy()])
            return self.with_rows(message, message.users, rows)
        elif message.kind == REPORT and self.hidden:
            t, report = self.apart.server.topology, message.overhead[0].numpy()
            true = Report.from_bytes(report, t, self.i)
            false = replace(true, heard=np.setdiff1d(true.heard, self.hidden)).to_bytes(t, self.i)
            return replace(message, overhead=torch.from_numpy(false)[None])
        return message

    def to_users(self, node: str, message: Message) -> Message:
        users, rows = message.users, message.overhead[message.rows()].numpy().copy()
        if message.kind == KEYS and "keys" in self.lies and message.format == BYTES:
            rows = np.stack([self.replaced(row, self.true) for row in rows]) if len(rows) else rows
        elif message.kind == KEYS and "pairs" in self.lies:
            (other,) = self.colluding
            users = np.setdiff1d(self.near, [other])
            pair = [np.array([2, other], np.int32).view(np.uint8), self.users[other].advertised]
            rows = np.tile(np.concatenate(pair), (len(users), 1))
        elif message.kind == SHARED and {"keys", "pairs"} & {*self.lies}:
            users, rows = self.near, np.full((len(self.near), 1 if "pairs" in self.lies else rows.shape[1]), 255)
        elif message.kind == SHARED and "shared" in self.lies:
            rows[:] = 0
        elif message.kind == SHARED and "few" in self.lies:
            self.hidden = self.alone[: T + 1]
            for place, k in enumerate(users.tolist()):
                if k in self.alone[T + 1 :]:
                    rows[place] = np.packbits(np.isin(self.users[k].neighbors, self.hidden))
        elif message.kind == UNMASK and "counted" in self.lies:
            rows[:, 4:] = 0
        elif message.kind == UNMASK and {"half", "hosts"} & {*self.lies}:
            for place, k in enumerate(users.tolist()):
                if k in self.alone:
                    odd = int(node[-1]) if "hosts" in self.lies else self.alone.index(k) % 2
                    rows[place, 4:] = 255 * odd
        elif message.kind == UNMASK and "pairs" in self.lies:
            users, rows = self.near, np.tile(np.array([2, 255, 0, 0, 0], np.uint8), (len(self.near), 1))
        else:
            return message
        return self.with_rows(message, users, rows)

    @staticmethod
    def with_rows(message: Message, users: np.ndarray, rows: np.ndarray) -> Message:
        content = torch.from_numpy(rows.astype(np.uint8))
        return replace(message, payload=nothing(len(rows)), overhead=content, users=users, at=None, format=BYTES)

    def replaced(self, row: np.ndarray, keys: dict[int, np.ndarray]) -> np.ndarray:
        """Return a row with keys of its own in place of these keys."""
        content = row.tobytes()
        for k, key in keys.items():
            content = content.replace(key.tobytes(), self.own[k].advertised.tobytes())
        return np.frombuffer(content, np.uint8)

    @property
    def true(self) -> dict[int, np.ndarray]:
        """What all users advertised, which the server broadcasts."""
        return {k: user.advertised for k, user in self.users.items()}

    def seeds(self) -> Seeds:
        """Return the seeds that follow from all shares which it knows; who guesses a seed can verify it."""
        points: dict[tuple[int, int], dict[int, bytes]] = defaultdict(dict)
        place_of = {k: {j: place for place, j in enumerate(user.neighbors.tolist())} for k, user in self.users.items()}

        def note(kind: int, j: int, k: int, share: bytes) -> None:
            """Keep a share of user j, which user k held."""
            if any(share) and k in place_of[j]:
                points[kind, j][place_of[j][k]] = share

        for k, row in self.heard[UNMASK].items():  # revealed
            word = self.told[UNMASK].get(k)
            counted = np.unpackbits(word[4:] if word is not None else np.zeros(9, np.uint8))
            for place, share in enumerate(row.reshape(-1, 16)):
                j = int(self.users[k].neighbors[place])
                note(OWN if counted[place] else COMMON, j, k, share.tobytes())
        for k in self.colluding:  # told
            for place, pair in self.users[k]._shares.items():
                for kind in (OWN, COMMON):
                    note(kind, int(self.users[k].neighbors[place]), k, pair[16 * kind :][:16])
        for j, row in self.heard[SHARES].items():  # sealed for keys of its own, or of who colludes
            for place, (v, sealed) in enumerate(
                zip(self.users[j].neighbors.tolist(), row.reshape(-1, 48), strict=True)
            ):
                for other in (self.own[v], *([self.users[v]] if v in self.colluding else ())):
                    key = agree(other._sealing, self.users[j].advertised[:32].tobytes())
                    if pair := unseal(key, j < v, sealed.tobytes()):
                        points[OWN, j][place], points[COMMON, j][place] = pair[:16], pair[16:]
        true = {(kind, k): (user._own, user._common)[kind] for k, user in self.users.items() for kind in (OWN, COMMON)}
        known = {(kind, k): true[kind, k] for k in self.colluding for kind in (OWN, COMMON)}
        for at, shares in points.items():
            for t in range(1, min(len(shares), T + 1) + 1):
                content = np.array([[list(share) for share in list(shares.values())[:t]]], np.uint8)
                if shamir.join(np.array([list(shares)[:t]]), content)[0].tobytes() == true[at]:
                    known[at] = true[at]
        return known

    def reads(self) -> dict[int, list[int]]:
        """Return the numbers of each term of which it knows all masks, by user."""
        seeds, read = self.seeds(), dict[int, list[int]]()
        for k, row in self.heard[IVS].items():
            user = self.users[k]
            agreed = {j: self.agreed(k, j, seeds) for j in user.neighbors[user._shared].tolist()}
            if k in self.colluding or (OWN, k) not in seeds or None in agreed.values():
                continue
            y = row.view(np.uint64) - expand(seeds[OWN, k], 0, 6, 64)
            for j, secret in agreed.items():
                common = expand(secret, 0, 6, 64)
                y = y - common if k < j else y + common
            read[k] = y.view(np.int64).tolist()
        return read

    def agreed(self, k: int, j: int, seeds: Seeds) -> bytes | None:
        """Return what a user agreed on with a neighbor, or with the relay in its place, if the relay knows it."""
        pairs = [(self.own[j]._masking, self.users[k].advertised)]
        for one, keys in ((k, (self.users[j].advertised, self.own[j].advertised)), (j, (self.users[k].advertised,))):
            if (COMMON, one) in seeds:
                pairs += [(key_from(seeds[COMMON, one]), each) for each in keys]
        true = self.users[k]._keys[self.users[k].neighbors.tolist().index(j)][1]
        return true if true in [agree(key, each[32:].tobytes()) for key, each in pairs] else None


class Register:
    """What hosts have signed."""

    def __init__(self) -> None:
        self.digests: dict[int, bytes] = {}

    def sign(self, round: int, digests: Mapping[int, bytes]) -> bool:
        self.digests |= digests
        return True

    def signed(self, round: int) -> Mapping[int, bytes]:
        return self.digests


def uneven(*lone: int, seed: int = 0) -> Topology:
    """Return a network of 24 users in random order whose last relay hears nobody: so many users have only relay 0, 1,
    ..., and the others two or three relays."""
    columns = [[i] for i, many in enumerate(lone) for _ in range(many)]
    several = [[0, 1], [0, 2], [1, 2], [0, 1, 2]]
    columns += [several[n % 4] for n in range(K - len(columns))]
    G = np.zeros((4, K), np.uint8)
    for k, column in zip(np.random.default_rng(seed).permutation(K), columns, strict=True):
        G[column, k] = 1
    return Topology(G)


def lied_to(
    t: Topology,
    lies: str,
    i: int = 0,
    away: Collection[int] = (),
    hosts: Sequence[Collection[int]] = (range(K),),
    colluding: Collection[int] = (),
) -> tuple[Liar, torch.Tensor]:
    """Play a round of 24 users in which relay i lies; return it, and the terms."""
    values, register = terms(0, K, reach=50), Register()
    apart = Apart(t, [Terms([values], [set()], mine) for mine in hosts], MASKED)
    for host in apart.hosts:
        host.notary = register if "signed" in lies else None
    liar = Liar(apart, i, lies, colluding, away)
    apart.play(0, away, liar.change)
    return liar, values


def read(liar: Liar, values: torch.Tensor) -> tuple[int, int]:
    """Return how many terms the relay reads, of users whom another relay also hears, and of the others."""
    degrees, numbers = liar.apart.server.topology.degrees, [0, 0]
    for k, y in liar.reads().items():
        numbers[int(degrees[k] == 1)] += y == values[k, :6].tolist()
    return numbers[0], numbers[1]


def by_relays(t: Topology, *relays: int) -> list[int]:
    """Return the users whom just these relays hear."""
    return [k for k in range(K) if t.relays_of(k) == relays]


def halves(t: Topology) -> list[list[int]]:
    """Return the users of two hosts, each with every second one of those whom only relay 0 hears, and of others."""
    first = {*by_relays(t, 0)[::2], *range(0, K, 2)} - {*by_relays(t, 0)[1::2]}
    return [sorted(first), sorted({*range(K)} - first)]


TWO, HOSTS = symmetric(K, 3, 2), uneven(6, 3, seed=2)
PAIRED = by_relays(TWO, 0, 1)  # with relay 1 absent, only relay 0 hears them
ATTACKS: dict[str, tuple[Topology, str, dict[str, Any]]] = {
    "six lone users are told different things": (uneven(6), "half", {}),
    "eight lone users are": (uneven(8, seed=1), "half", {}),
    "their hosts are": (HOSTS, "hosts", {"hosts": halves(HOSTS)}),
    "two lone users are, two others collude": (uneven(2), "half", {"colluding": by_relays(uneven(2), 0, 1)[:2]}),
    "users are whose other relay is absent": (TWO, "half", {"away": [1]}),
    "they get keys of the relay": (TWO, "keys", {"away": [1]}),
    "they mask with users whom it hides": (TWO, "few", {"away": [1]}),
    "they are told that one who colludes is all": (
        TWO,
        "pairs",
        {"away": [1], "colluding": PAIRED[-1:], "hosts": [PAIRED, sorted({*range(K)} - {*PAIRED})]},
    ),
    "users are, and all relays are there": (uneven(5, 2), "pairs", {"colluding": by_relays(uneven(5, 2), 0, 1)[:1]}),
    "lone users' keys are those of the relay": (uneven(6, seed=3), "invented", {}),
    "all users get keys of the relay": (TWO, "keys", {}),
    "they and the server do": (TWO, "keys advertised", {}),
    "the server does": (TWO, "advertised", {}),
    "they do, by the other relay": (TWO, "keys", {"i": 2}),
    "three relays hear each": (symmetric(K, 3, 3), "keys advertised", {}),
}
UNSIGNED = "keys", "advertised", "invented"  # attacks that signatures prevent


CASES = [(attack, "") for attack, (_, lies, _) in ATTACKS.items() if lies.split()[0] in UNSIGNED]
CASES += [(attack, "signed") for attack in ATTACKS if (attack, "") not in CASES]
AGAIN = [(attack, "") for attack, signed in CASES if signed]


@pytest.mark.parametrize(
    ("attack", "signed"), [*CASES, *(pytest.param(*each, marks=pytest.mark.slow) for each in AGAIN)]
)
def test_a_relay_that_lies_reads_no_term_of_users_whom_another_hears(attack: str, signed: str) -> None:
    t, lies, options = ATTACKS[attack]
    liar, values = lied_to(t, f"{lies} {signed}", **options)
    assert liar.heard[KEYS]
    assert read(liar, values)[0] == 0


def test_it_reads_the_terms_of_users_whom_only_it_hears() -> None:
    """By keys of its own, or by masks in common with users whose terms it hides."""
    assert read(*lied_to(symmetric(K, 3, 1), "keys")) == (0, 8)
    assert read(*lied_to(symmetric(K, 3, 1), "keys signed")) == (0, 0)
    assert read(*lied_to(uneven(6), "few signed")) == (0, 3)


def test_the_attacks_read_terms_if_users_with_one_relay_hold_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure, "lone", np.zeros_like)
    for lies in ("half signed", "invented"):
        assert read(*lied_to(uneven(6), lies))[0] == 14


@pytest.mark.parametrize(("lies", "r"), [("shared", 1), ("shared", 2), ("shared", 3), ("counted", 2), ("counted", 3)])
def test_a_relay_that_lies_about_who_shared_or_counted_learns_no_two_seeds(lies: str, r: int) -> None:
    """Without masks in common, or with both seeds of a user, it would read terms."""
    liar, values = lied_to(symmetric(K, 3, r), lies)
    for k, row in liar.heard[IVS].items():
        y = row.view(np.uint64) - expand(liar.users[k]._own, 0, 6, 64)
        assert y.view(np.int64).tolist() != values[k, :6].tolist(), "masks in common are there"
    assert not (lies == "counted" and liar.heard[UNMASK]), "users whom relays tell different things reveal nothing"


@pytest.mark.parametrize("counting", [9, 10])
def test_a_sum_is_over_two_users_beside_those_who_collude_and_those_of_the_lying_relay(counting: int) -> None:
    """Six lone users, whose terms it knows, two who collude, and two others."""
    t, revealed = uneven(6), list[Message]()
    users, (rest, lone) = Terms([terms(0, K)], [set()]), (t.I(2) + t.I(3), t.I(1))
    apart, counts = Apart(t, [users], MASKED), [*lone, *rest[: counting - 6]]

    def change(node: str, message: Message) -> Message:
        if message.kind == IVS and node.startswith("relay"):
            kept = np.flatnonzero(np.isin(message.users, counts))
            return replace(message, users=message.users[kept], at=message.rows()[torch.from_numpy(kept)])
        if message.kind == UNMASK and message.sender.startswith("host"):
            revealed.append(message)
        return message

    apart.play(0, change=change)
    assert apart.total.seen[0][0].tolist() == (sorted(counts) if counting == 10 else [])
    assert bool(revealed) == (counting == 10)


def test_users_know_how_many_neighbors_they_have() -> None:
    """Fewer shares of a seed would be enough if users had fewer neighbors; only relay 0 hears users 0 to 9."""
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


HONEST: dict[str, tuple[Topology, Collection[int], int]] = {
    "lone users at two relays": (uneven(6, 4), (), 24),
    "a lone user": (uneven(1), (), 24),
    "two relays for each": (TWO, (), 24),
    "two relays for each, one is absent": (TWO, (1,), 8),
    "three relays for each, one is absent": (symmetric(K, 5, 3), (1,), 24),
    "three relays for each, two are absent": (symmetric(K, 5, 3), (1, 4), 18),
    "lone users, and a relay is absent": (uneven(4, 4, seed=1), (1,), 12),
    "one relay for each": (symmetric(K, 3, 1), (), 24),
    "one relay for each, one is absent": (symmetric(K, 3, 1), (1,), 16),
    "one relay": (symmetric(K, 1, 1), (), 24),
}


@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=() if "at two" in name or "absent" in name else pytest.mark.slow) for name in HONEST],
)
def test_honest_relays_read_nothing_and_users_with_two_relays_or_only_one_count(network: str) -> None:
    t, away, counted = HONEST[network]
    liar, values = lied_to(t, "", away=away, hosts=[range(0, K, 2), range(1, K, 2)])
    assert not liar.reads()
    ((users, _),) = liar.apart.total.seen
    there = [i for i in range(t.H) if i not in away]
    assert users.tolist() == [k for k in range(K) if t.G[there, k].sum() >= min(2, t.degrees[k])]
    assert len(users) == counted
    assert liar.apart.total.state["last"].tolist() == values[users].sum(0, keepdim=True).tolist()


@pytest.mark.parametrize("t", [symmetric(20, 4, 2), Topology(np.kron(np.eye(4), np.ones(5)).astype(np.uint8))])
def test_a_relay_cannot_invent_users_whom_other_relays_hear(t: Topology) -> None:
    """They would be neighbors that hold shares. Where only this relay hears a user, nobody can tell."""
    absent, invented = {5, 6, 7}, MaskingUser(0).advertised
    users = Terms([terms(0, 20)], [absent])
    apart, told = Apart(t, [users], MASKED), list[bytes]()

    def change(node: str, message: Message) -> Message:
        if message.kind == KEYS and (node, message.sender) == (SERVER, "relay 0"):
            more = np.array(sorted(absent), np.int64)
            rows = torch.from_numpy(np.tile(invented, (len(more), 1)))
            overhead, ids = torch.cat([message.overhead[message.rows()], rows]), np.append(message.users, more)
            return replace(message, payload=torch.empty(len(ids), 0), overhead=overhead, users=ids, at=None)
        if message.kind == KEYS and node.startswith("host"):
            told.extend(row.tobytes() for row in message.overhead.numpy())
        return message

    apart.play(0, change=change)
    assert told
    assert not any(invented.tobytes() in row for row in told)
    passed = t.G[1:].sum(axis=0) >= np.minimum(t.degrees, 2)  # what relay 0 passed on is as if it had not sent it
    assert apart.total.seen[0][0].tolist() == [k for k in range(20) if passed[k] and k not in absent]
    assert apart.total.state["last"].tolist() == users.ivs[0][apart.total.seen[0][0]].sum(0, keepdim=True).tolist()


Spoil = Callable[[np.ndarray], np.ndarray]


def of_six(row: np.ndarray) -> np.ndarray:
    """Return a row of keys as if six users had begun the round, who have five neighbors each."""
    return np.append(np.frombuffer(np.int32(6).tobytes(), np.uint8), row[4 : 4 + 5 * 68])


@pytest.mark.parametrize("kind", [KEYS, SHARES, SHARED, UNMASK])
@pytest.mark.parametrize(
    "garbage",
    [
        lambda row: row | 128,
        *(
            pytest.param(spoil, marks=pytest.mark.slow)
            for spoil in (of_six, lambda row: row[:2], lambda row: row[:0], lambda row: row[:-3])
        ),
    ],
)
@pytest.mark.parametrize("to", ["host", SERVER])
def test_garbage_that_a_relay_sends_ends_no_run(to: str, garbage: Spoil, kind: str) -> None:
    apart = Apart(symmetric(12, 3, 1), [Terms([terms(n, 12) for n in range(2)], [set()] * 2)], MASKED)

    def change(node: str, message: Message) -> Message:
        if message.round or (message.sender, message.kind) != ("relay 0", kind) or not node.startswith(to):
            return message
        rows = np.array([garbage(row) for row in message.overhead[message.rows()].numpy()], np.uint8)
        rows = rows if len(rows) else rows.reshape(0, 0)
        return replace(message, payload=nothing(len(rows)), overhead=torch.from_numpy(rows), at=None)

    apart.play(0, change=change)
    apart.play(1)
    assert apart.total.seen[-1][0].tolist() == list(range(12))


def test_a_relay_that_invents_a_neighbor_of_two_users_ends_no_run() -> None:
    """Each of the two has one neighbor, and gets a share with the number 7."""
    apart = Apart(symmetric(2, 2, 2), [Terms([terms(n, 2) for n in range(2)], [set()] * 2)], MASKED)

    def change(node: str, message: Message) -> Message:
        if message.round or message.kind != SHARES or message.sender == "host 0":
            return message
        rows = message.overhead.clone()
        rows[:, 0] = 7
        return replace(message, overhead=rows)

    apart.play(0, change=change)
    apart.play(1)
    assert [users.tolist() for users, _ in apart.total.seen] == [[], [0, 1]]


def some(number: int) -> Spoil:
    """Return what leaves the shares of the first neighbors alone, and garbles the others."""
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
