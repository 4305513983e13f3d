"""A round between nodes of many processes: who waits for which messages, and what nodes keep after a round."""

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from weakref import ref

import numpy as np
import pytest
from adding import Terms, Total, terms
from changed import Changed
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication import CodedHierarchical, Communicator, InProcess, LinkLedger, Network, Sums, Uncoded
from hmtl.communication.messages import BROADCAST, COMBINATIONS, DIGESTS, IVS, SERVER, STATE, Message
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, symmetric

ROUNDS = 4
COMMUNICATORS: dict[str, Callable[..., Communicator]] = {
    "uncoded": Uncoded,
    "coded": partial(CodedHierarchical, aggregators="all"),
    "few": partial(CodedHierarchical, aggregators=[0]),
    "beside": partial(CodedHierarchical, aggregators=[SERVER, 0]),
    "sums": partial(Sums, aggregators="server"),
    "few bits": partial(Sums, aggregators="server", wire="int4"),
    "at relays": partial(Sums, aggregators="all"),
}


class Batches(Changed):
    """Links that count batches as links between processes do, where a node waits until a peer has ended its batch."""

    def __init__(self, ledger: LinkLedger) -> None:
        super().__init__(ledger)
        self.node = ""
        self.waits: Counter[tuple[str, str, str]] = Counter()  # batches ended minus awaited: sender, receiver, kind
        self.posted: dict[tuple[str, str], set[str]] = defaultdict(set)  # receivers of a batch that has not ended

    def turn(self, node: str) -> None:
        self.node = node

    def send(self, message: Message) -> None:
        super().send(message)
        self.posted[message.sender, message.kind] |= set(message.receivers)

    def end(self, kind: str, receivers: list[str]) -> None:
        self.posted[self.node, kind] -= set(receivers)
        self.waits.update((self.node, receiver, kind) for receiver in receivers)

    def collect(self, node: str, kind: str, expected: list[str]) -> list[Message]:
        self.waits.subtract((sender, node, kind) for sender in expected)
        assert min(self.waits.values(), default=0) >= 0, "a node waits for what nobody sends"
        return super().collect(node, kind, expected)


@given(
    name=st.sampled_from(sorted(COMMUNICATORS)),
    t=topologies(max_K=8, max_H=4),
    medium=st.sampled_from(("broadcast", "unicast")),
    gone=st.sampled_from((0.0, 0.4)),
    silent=st.sampled_from((None, IVS, STATE, COMBINATIONS, BROADCAST, DIGESTS)),
    seed=st.integers(0, 1000),
)
def test_nodes_wait_for_what_others_send_and_for_nothing_else(
    name: str, t: Topology, medium: str, gone: float, silent: str | None, seed: int
) -> None:
    """Relays are away or silent: between processes, a batch that does not come costs a timeout, and its sender."""
    rng, links = np.random.default_rng(seed), list[Batches]()

    def make(ledger: LinkLedger) -> Batches:
        links.append(Batches(ledger))
        return links[-1]

    made = COMMUNICATORS[name](t, Network(medium=medium), links=make)
    absent = [set(np.flatnonzero(rng.random(t.K) < gone).tolist()) for _ in range(ROUNDS)]
    if isinstance(made, Sums):
        users, aggregator = Terms([terms(seed + n, t.K) for n in range(ROUNDS)], absent), Total(7)
    else:
        users = ScriptedUsers([random_numbers(seed + n, t.K, 7, None) for n in range(ROUNDS)], absent, 1)
        aggregator = ScriptedAggregator(t.K, 7)
    for n in range(ROUNDS):
        away, quiet = (set(np.flatnonzero(rng.random(t.H) < chance).tolist()) for chance in (gone, 0.3))
        names = {f"relay {i}" for i in quiet}

        def change(node: str, message: Message, names=names) -> Message | None:
            between = SERVER in (node, message.sender) and message.kind == silent
            return None if between and {node, message.sender} & names else message

        links[-1].change = change
        made.round(n, users, aggregator, away)
        assert not any(links[-1].waits.values()), "nobody hears what a node sends"
        assert not any(links[-1].posted.values()), "nobody knows that a batch is complete"


@pytest.mark.parametrize("name", ["uncoded", "beside", "coded"])
def test_no_node_keeps_rows_after_a_round(name: str) -> None:
    """Memory for them would be missing when users train."""
    t, kept = symmetric(K=20, H=5, r=3), list[ref]()

    class Watched(Changed):
        reliable = True

        def send(self, message: Message) -> None:
            super().send(message)
            if message.kind in (IVS, COMBINATIONS, BROADCAST):
                kept.append(ref(message.payload))

    users = ScriptedUsers([random_numbers(0, 20, 6, None)], [set()], 0)
    aggregator = ScriptedAggregator(20, 6)
    made = COMMUNICATORS[name](t, Network(), links=Watched)
    made.round(0, users, aggregator)
    assert set(users.models) == set(range(20))
    assert len(kept) > 5
    assert not [payload for payload in kept if payload() is not None]


@pytest.mark.parametrize("wire", [None, "int4"])
def test_terms_follow_in_blocks(wire: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of columns, or of users if rows are rounded as a whole; all of them at once would not fit the memory."""
    K = m = 150
    blocks = list[tuple[int, int]]()  # rows and columns

    class Watched(InProcess):
        def send(self, message: Message) -> None:
            super().send(message)
            if message.kind == IVS and message.sender.startswith("host") and not message.announces:
                blocks.append((len(message), m if wire else message.payload.shape[1] // 8))

    monkeypatch.setattr("hmtl.communication.nodes.host.BLOCK", 8 * 100 * m)
    users = Terms([terms(0, K, m + 1)], [set()])
    Sums(symmetric(K=K, H=5, r=3), wire=wire, links=Watched).round(0, users, Total(m + 1))
    assert blocks == ([(100, m), (50, m)] if wire else [(K, 100), (K, 50)])
    assert set(users.models) == set(range(K))
