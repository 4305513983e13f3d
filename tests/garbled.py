"""Messages that are garbled on their way, and what users and aggregators had, by which sums are checked."""

import os
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.messages import ATTENDANCE, BROADCAST, KEYS, RECEIPTS, SHARED, SHARES, STATE, VERDICT
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.nodes.host import Host
from hmtl.communication.wires import FORMATS
from hmtl.distributed import frames
from hmtl.distributed.frames import DTYPES, KINDS, Frame
from hmtl.distributed.post import Post

UNEVEN = ("1111111000", "0001111110", "0000000011", "0000000000")
"""Users 0 to 2 and 9 are heard by one relay only, and a relay hears nobody."""
CONTROL = (KEYS, SHARES, SHARED, VERDICT, RECEIPTS)
"""Kinds of messages in which even random content of the right length does not change a sum."""

RUNS = {
    "FedAvg by sums": ("algorithm=fedavg", "communicator=sums", "aggregators=server"),
    "MOCHA, coded": ("algorithm=mocha", "communicator=coded", "aggregators=all"),
    "CoCoA, secure": ("algorithm=cocoa", "communicator=sums", "aggregators=server", "secure=true"),
    "FedAvg by sums at relays": ("algorithm=fedavg", "communicator=sums", "aggregators=[0,1,2]"),
    "MOCHA, server beside relays": ("algorithm=mocha", "communicator=coded", "aggregators=[server,0]"),
    "MOCHA, uncoded": ("algorithm=mocha", "communicator=uncoded", "algorithm.omega_every=2"),
}

OFTEN = {
    **dict.fromkeys((KEYS, SHARES, SHARED, "unmask"), 0.02),
    **{frames.CONTROL: 0, frames.BYE: 0, VERDICT: 0, ATTENDANCE: 0.3, BROADCAST: 0.3, STATE: 0.3, RECEIPTS: 0.3},
}
"""How often messages of these kinds are garbled at a site; of other kinds, every tenth is."""


def write_uneven(folder: Path, relays: int = 4) -> list[str]:
    """Write the uneven network, or its first relays, and return the words that choose it."""
    (folder / "uneven.csv").write_text("\n".join(",".join(line) for line in UNEVEN[:relays]))
    return ["topology=file", f"topology.path={folder}/uneven.csv"]


def garbled(frame: Frame, rng: np.random.Generator, kinds: Sequence[str] = KINDS[5:], K: int = 10) -> Frame:
    """Return a frame that is wrong in one way of many; `kinds` are those as which it may come."""
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
    if frame.kind in ("IVs", "combinations"):
        ways.append(lambda: replace(frame, dtype=DTYPES[(DTYPES.index(frame.dtype) + 1) % len(DTYPES)]))
    if users is not None and len(users):
        ways += [
            lambda: other_users(many),
            lambda: other_users(np.r_[users[1:], users[:1] + K]),
            lambda: other_users(np.full_like(users, users[0]) if len(users) > 1 else many),
            lambda: rows(some, users[some]) if len({*some.tolist()}) < n and len(users) == n else other_users(many),
            lambda: rows(np.r_[np.arange(n), 0], np.r_[users, users[:1]]),
        ]
    if frame.kind in CONTROL:
        ways += 4 * [
            lambda: replace(frame, overhead=torch.from_numpy(rng.integers(0, 256, frame.overhead.shape, np.uint8)))
        ]
    if frame.kind == "report":
        ways += 2 * [lambda: replace(frame, overhead=torch.full_like(frame.overhead, 255))]
    return ways[int(rng.integers(len(ways)))]()


@dataclass
class Truth:
    """What users sent and what aggregators got, of each round.

    Attributes:
        sent: each user's row before it was encoded, by round and user.
        learned: of an aggregator: the round, the users who counted, and their rows, or the sum of these.
    """

    sent: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    learned: list[tuple[int, np.ndarray, Tensor]] = field(default_factory=list)

    def watch(self, patch: Callable[[Any, str, Any], object]) -> None:
        """Note what hosts and aggregators have from now on; `patch` sets an attribute."""
        update, aggregate = Host.update, Aggregation.update

        @wraps(update)
        def sends(host: Host, round: int, relays: Any) -> None:
            update(host, round, relays)
            rows = host._ivs[:, :]
            for k, row in zip(host._users.tolist(), rows, strict=True):
                self.sent[round, rows.shape[1], k] = row.clone().cpu()

        @wraps(aggregate)
        def learns(own: Aggregation, *arguments: Any) -> None:
            inner = own.aggregator.update

            def noting(users: np.ndarray, ivs: Tensor) -> Tensor:
                assert own._round is not None
                self.learned.append((own._round, users.copy(), ivs.clone().cpu()))
                return inner(users, ivs)

            object.__setattr__(own.aggregator, "update", noting)
            try:
                aggregate(own, *arguments)
            finally:
                object.__delattr__(own.aggregator, "update")

        patch(Host, "update", sends)
        patch(Aggregation, "update", learns)

    def check(self) -> int:
        """Compare what aggregators got with what users sent; return the number of users that counted."""
        counted = 0
        for round, users, rows in self.learned:
            own = [self.sent[round, rows.shape[1], k] for k in users.tolist()]
            if len(rows) == len(users) and rows.dtype.is_floating_point:
                assert all(torch.equal(row, each) for row, each in zip(rows, own, strict=True)), round
            else:
                total = torch.stack(own).sum(0) if own else torch.zeros_like(rows[0])
                assert torch.equal(rows.sum(0), total), round
            counted += len(users)
        return counted


def garble_post(folder: Path) -> None:
    """Garble what this process sends from round 1 on, some of each kind, and note this and what is true in a folder."""
    file, rng, truth = (folder / f"{os.getpid()}.noted").open("ab", buffering=0), np.random.default_rng(), Truth()
    truth.watch(setattr)
    hand = Post.hand

    @wraps(hand)
    def garbling(post: Post, receivers: Sequence[str], frame: Frame) -> int:
        spoil = frame.round > 0 and rng.random() < OFTEN.get(frame.kind, 0.1)
        pickle.dump((frame.kind if spoil else "", truth.sent, truth.learned), file)
        truth.sent.clear()
        truth.learned.clear()
        return hand(post, receivers, garbled(frame, rng, ()) if spoil else frame)

    Post.hand = garbling


def noted(folder: Path) -> tuple[Counter[str], Truth]:
    """Return how many messages of each kind were garbled, and what is true, as `garble_post` noted it."""
    spoiled, truth = Counter[str](), Truth()
    for path in folder.glob("*.noted"):
        with path.open("rb") as file, suppress(EOFError):
            while True:
                kind, sent, learned = pickle.load(file)
                spoiled[kind] += 1
                truth.sent |= sent
                truth.learned += learned
    return spoiled, truth
