"""What nodes hold in memory during a round, and keep after it."""

from collections.abc import Callable
from functools import partial
from weakref import ref

import pytest
from adding import Terms, Total, terms
from changed import Changed

from hmtl.communication import CodedHierarchical, Communicator, InProcess, Network, Sums, Uncoded
from hmtl.communication.messages import BROADCAST, COMBINATIONS, IVS, SERVER, Message
from hmtl.communication.round import Stopwatch
from hmtl.io.cpu_time import cpu_seconds
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers
from hmtl.topology import symmetric

COMMUNICATORS: dict[str, Callable[..., Communicator]] = {
    "uncoded": Uncoded,
    "coded": partial(CodedHierarchical, aggregators="all"),
    "beside": partial(CodedHierarchical, aggregators=[SERVER, 0]),
}


@pytest.mark.parametrize("name", COMMUNICATORS)
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

    monkeypatch.setattr("hmtl.communication.nodes.host.SEND_CHUNK_BYTES", 8 * 100 * m)
    users = Terms([terms(0, K, m + 1)], [set()])
    Sums(symmetric(K=K, H=5, r=3), wire=wire, links=Watched).round(0, users, Total(m + 1))
    assert blocks == ([(100, m), (50, m)] if wire else [(K, 100), (K, 50)])
    assert set(users.models) == set(range(K))


def test_cpu_time_is_added_up_by_task() -> None:
    watch, start = Stopwatch(), cpu_seconds()
    for task in ("relay 0", "relay 1", "relay 0"):
        with watch.measure(task):
            begin = cpu_seconds()
            while cpu_seconds() < begin + 0.01:
                pass
    assert set(watch.seconds) == {"relay 0", "relay 1"}
    assert watch.seconds["relay 0"] >= 0.02
    assert sum(watch.seconds.values()) <= cpu_seconds() - start
    assert watch.slowest("relay") == max(watch.seconds.values())
    assert watch.slowest("host") == 0
