"""Messages that are garbled on their way, and what users and aggregators had, by which sums are checked."""

import os
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adding import left_over
from torch import Tensor

from hmtl.communication.codecs.few_bit_words import FewBitTermCoder
from hmtl.communication.codecs.formats import FORMATS
from hmtl.communication.messages import (
    ATTENDANCE,
    BROADCAST,
    COMBINATIONS,
    DIGESTS,
    IVS,
    KEYS,
    MODELS,
    RECEIPTS,
    REPORT,
    SHARED,
    SHARES,
    STATE,
    UNMASK,
    VERDICT,
    Message,
)
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.host import Host
from hmtl.distributed.frames import DTYPES, KINDS, MAY_SEND, Frame, role
from hmtl.distributed.post import Post

UNEVEN = ("1111111000", "0001111110", "0000000011", "0000000000")
"""Users 0 to 2 and 9 are heard by one relay only, and a relay hears nobody."""
MANTISSA = torch.tensor([255] * 6 + [0] * 2, dtype=torch.uint8)
"""Bits of a number of 64 bits that change it by less than its size."""

RUNS = {
    "FedAvg by sums": ("algorithm=fedavg", "communicator=sums", "aggregators=server"),
    "MOCHA, coded": ("algorithm=mocha", "communicator=coded", "aggregators=all"),
    "CoCoA, secure": ("algorithm=cocoa", "communicator=sums", "aggregators=server", "secure=true"),
    "MOCHA, server beside relays": ("algorithm=mocha", "communicator=coded", "aggregators=[server,0]"),
    "MOCHA, uncoded": ("algorithm=mocha", "communicator=uncoded", "algorithm.omega_every=2"),
}

OFTEN = {
    **{KEYS: 0.04, SHARES: 0.05, SHARED: 0.05, UNMASK: 0.08, VERDICT: 0.1, STATE: 0.4, COMBINATIONS: 0.15},
    **{BROADCAST: 0.15, DIGESTS: 0.12, IVS: 0.02, REPORT: 0.03, ATTENDANCE: 0.05, MODELS: 0.02, RECEIPTS: 0.1},
}
"""How often messages of these kinds are garbled at a site, so that each kind is, and rounds count."""


def write_uneven(folder: Path, relays: int = 4) -> list[str]:
    """Write the uneven network, or its first relays, and return the words that choose it."""
    (folder / "uneven.csv").write_text("\n".join(",".join(line) for line in UNEVEN[:relays]))
    return ["topology=file", f"topology.path={folder}/uneven.csv"]


CONTENTS = frozenset(KINDS[5:]) - {MODELS, STATE, ATTENDANCE}
"""Kinds of messages that may have another content of the right length, so that no sum of the other users is wrong.

Relays may send false models and states, and the server may announce what it likes, see SECURITY.md.
"""


def write_moving(folder: Path) -> list[str]:
    """Write contacts that change in round 3, when relays hear each other's users, and return the words for them."""
    lines = [
        f"{round},{relay},{user}"
        for round, order in ((0, (0, 1, 2, 3)), (3, (1, 3, 0, 2)))
        for relay, i in enumerate(order)
        for user, near in enumerate(UNEVEN[i])
        if near == "1"
    ]
    (folder / "contacts.csv").write_text("\n".join(["round,relay,user", *lines]))
    return ["topology=moving", f"topology.path={folder}/contacts.csv", "K=10", "H=4"]


def garbled(
    frame: Frame,
    rng: np.random.Generator,
    kinds: Sequence[str] = KINDS[5:],
    contents: Collection[str] = CONTENTS,
    K: int = 10,
) -> Frame:
    """Return a frame that is wrong in one way of many.

    Args:
        frame: as it was sent.
        rng: chooses the way.
        kinds: those as which it may come.
        contents: kinds of messages that may have another content.
        K: number of users.
    """
    users, n = frame.users, len(frame.payload)
    some = np.sort(rng.integers(0, max(n, 1), max(n, 1)))

    def rows(at: np.ndarray, users: Any = users) -> Frame:
        return replace(frame, payload=frame.payload[at], overhead=frame.overhead[at], users=users)

    def resized(part: str, by: int) -> Frame:
        old = getattr(frame, part)
        new = torch.zeros(n, max(0, old.shape[1] + by), dtype=torch.uint8)
        new[:, : old.shape[1]] = old[:, : new.shape[1]]
        return replace(frame, **{part: new})

    def other_users(new: np.ndarray | None) -> Frame:
        return replace(frame, users=new)

    part = "overhead" if not frame.payload.shape[1] or rng.random() < 0.3 else "payload"
    none, many = np.empty(0, np.int64), np.full(len(users) if users is not None else 1, K + int(rng.integers(2**31)))
    ways: list[Callable[[], Frame]] = [
        lambda: resized(part, -1),
        lambda: resized(part, 1),
        lambda: resized(part, -8),
        lambda: resized(part, int(rng.integers(1, 200))),
        lambda: resized(part, -(2**20)),
        lambda: rows(np.arange(n - 1) if n else none),
        lambda: rows(np.r_[np.arange(n), np.arange(min(n, 1))]),
        lambda: rows(none, None if users is None else none),
        lambda: rows(none),
        lambda: replace(frame, format=str(rng.choice(sorted({*FORMATS} - {frame.format})))),
        lambda: replace(frame, round=frame.round + int(rng.choice([-1, 1, 2**30]))),
        lambda: other_users(many if users is None or rng.random() < 0.5 else None),
    ]
    if others := sorted({*kinds} - {frame.kind}):
        ways.append(lambda: replace(frame, kind=str(rng.choice(others))))
    if frame.kind in (IVS, COMBINATIONS):
        ways.append(lambda: replace(frame, dtype=DTYPES[(DTYPES.index(frame.dtype) + 1) % len(DTYPES)]))
    if users is not None and len(users):
        ways += [
            lambda: other_users(many),
            lambda: other_users(np.r_[users[1:], users[:1] + K]),
            lambda: other_users(np.full_like(users, users[0]) if len(users) > 1 else many),
            lambda: rows(some, users[some]) if len({*some.tolist()}) < n and len(users) == n else other_users(many),
            lambda: rows(np.r_[np.arange(n), 0], np.r_[users, users[:1]]),
        ]
    if frame.kind in contents:
        ways += len(ways) // 2 * [lambda: with_other_content(frame, rng)]
    return ways[int(rng.integers(len(ways)))]()


def with_other_content(frame: Frame, rng: np.random.Generator) -> Frame:
    """Return a frame of the same lengths that says something else.

    Floats keep about their size, as a user may send them, and integers do not, so that no users can have the sum.
    """
    if frame.kind == VERDICT:  # or users would get models that do not count
        return replace(frame, overhead=torch.zeros_like(frame.overhead))
    part = "payload" if frame.payload.shape[1] else "overhead"
    old = getattr(frame, part)
    new = torch.from_numpy(rng.integers(0, 256, old.shape, np.uint8))
    if frame.kind == IVS and frame.dtype.is_floating_point and part == "payload":
        new = old ^ new & MANTISSA.repeat(old.shape[1] // 8)
    elif part == "overhead" and rng.random() < 0.6:  # a few bytes change, or all users of a report
        few = torch.from_numpy(rng.random(old.shape) < 4 / max(4, old.shape[1]))
        few[:, -16:] &= frame.kind != REPORT or rng.random() < 0.5
        new = torch.where(few, new, old)
    return replace(frame, **{part: new})


@dataclass
class Truth:
    """What users sent and what aggregators got, of each round.

    Attributes:
        sent: each user's rows before they were encoded, by round, length and user: several if a round is played again.
        said: other rows of this user that arrived, likewise.
        learned: of an aggregator that keeps it: the round, the users who counted, and their rows, or the sum of these.
    """

    sent: dict[tuple[int, int, int], list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    said: dict[tuple[int, int, int], list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    learned: list[tuple[int, np.ndarray, Tensor]] = field(default_factory=list)

    def watch(self, patch: Callable[[Any, str, Any], object]) -> None:
        """Note what hosts and aggregators have from now on; `patch` sets an attribute."""
        update, rows, aggregate, settle = Host.update, Host.rows, Aggregation.update, Aggregation.settle
        prepared: dict[int, tuple[int, np.ndarray, Tensor]] = {}  # by the aggregation

        @wraps(update)
        def sends(host: Host, round: int, relays: Any) -> None:
            update(host, round, relays)
            made = host._ivs[:, :]
            for k, row in zip(host._users.tolist(), made, strict=True):
                self.sent[round, made.shape[1], k].append(row.clone().cpu())

        @wraps(rows)
        def rounds(host: Host) -> list[Message]:
            messages = rows(host)
            if isinstance(host.coder, FewBitTermCoder):  # what rounding leaves over is sent later
                left = left_over(host.coder) - left_over(host.coder, counts=True)
                for k in host._users.tolist():
                    row = left[np.searchsorted(host.members, k)]
                    self.sent[host._round, host._ivs.shape[1], k][-1][: len(row)] += row
            return messages

        @wraps(aggregate)
        def learns(own: Aggregation, *arguments: Any) -> None:
            inner = own.aggregator.update

            def noting(users: np.ndarray, ivs: Tensor) -> Tensor:
                prepared[id(own)] = own._round, users.copy(), ivs.clone().cpu()
                return inner(users, ivs)

            object.__setattr__(own.aggregator, "update", noting)
            try:
                aggregate(own, *arguments)
            finally:
                object.__delattr__(own.aggregator, "update")

        @wraps(settle)
        def counts(own: Aggregation, agreed: int) -> None:
            if own.prepared and own.prepared == agreed:
                self.learned.append(prepared[id(own)])
            settle(own, agreed)

        patch(Host, "update", sends)
        patch(Host, "rows", rounds)
        patch(Aggregation, "update", learns)
        patch(Aggregation, "settle", counts)

    def hear(self, frame: Frame) -> None:
        """Note the rows in a frame that was garbled, if it has the lengths of rows, for they may count."""
        n, (_, nbytes) = len(frame.payload), frame.payload.shape
        if frame.kind == IVS and frame.dtype == torch.float64 and frame.users is not None and n == len(frame.users):
            rows = torch.cat([frame.payload, frame.overhead], dim=1)
            if nbytes % 8 == rows.shape[1] % 8 == 0:
                for k, row in zip(frame.users.tolist(), rows.clone(), strict=True):
                    self.said[frame.round, len(row) // 8, k].append(row.view(torch.float64))

    def check(self) -> int:
        """Compare what aggregators got with what users sent; return the number of users that counted."""
        counted = 0
        for round, users, rows in self.learned:
            keys = [(round, rows.shape[1], k) for k in users.tolist()]
            own = [self.sent[key] for key in keys]
            if len(rows) == len(users) and rows.dtype.is_floating_point:
                for row, each, key in zip(rows, own, keys, strict=True):
                    assert any(torch.equal(row, one) for one in (*each, *self.said.get(key, ()))), key
            else:
                times = range(max(map(len, own), default=1))
                totals = [sum((each[min(n, len(each) - 1)] for each in own), torch.zeros_like(rows[0])) for n in times]
                assert any(torch.equal(rows.sum(0), total) for total in totals), round
            counted += len(users)
        return counted


def garble_post(folder: Path, often: Mapping[str, float]) -> None:
    """Garble what this process sends from round 1 on, some of each kind, and note this and what is true in a folder."""
    file, rng, truth = (folder / f"{os.getpid()}.noted").open("ab", buffering=0), np.random.default_rng(), Truth()
    truth.watch(setattr)
    hand = Post.hand

    @wraps(hand)
    def garbling(post: Post, receivers: Sequence[str], frame: Frame) -> int:
        kinds = MAY_SEND[role(post.wire.party.name), role(receivers[0])].intersection(KINDS[5:])
        sends = frame
        if frame.round > 0 and frame.kind in KINDS[5:] and rng.random() < often[frame.kind]:
            truth.hear(sends := garbled(frame, rng, sorted(kinds)))
        said = dict(truth.sent), dict(truth.said), truth.learned
        pickle.dump((frame.kind if sends is not frame else "", *said), file)
        for each in (truth.sent, truth.said, truth.learned):
            each.clear()
        return hand(post, receivers, sends)

    Post.hand = garbling


def noted(folder: Path) -> tuple[Counter[str], Truth]:
    """Return how many messages of each kind were garbled, and what is true, as `garble_post` noted it."""
    spoiled, truth = Counter[str](), Truth()
    for path in folder.glob("*.noted"):
        with path.open("rb") as file, suppress(EOFError):
            while True:
                kind, sent, said, learned = pickle.load(file)
                spoiled[kind] += 1
                truth.learned += learned
                for own, noted in ((truth.sent, sent), (truth.said, said)):
                    for key, rows in noted.items():
                        own[key] += rows
    return spoiled, truth
