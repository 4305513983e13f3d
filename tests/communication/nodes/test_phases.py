"""The table of a relay's phases."""

import pytest

from hmtl.communication.nodes.adding import AddingRelay, AddingServer
from hmtl.communication.nodes.coding import CodingRelay, CodingServer
from hmtl.communication.nodes.forwarding import ForwardingRelay, ForwardingServer
from hmtl.communication.nodes.partial import PartialRelay, PartialServer
from hmtl.communication.nodes.phases import TRANSITIONS, Event, Phase, following
from hmtl.communication.schedules import CODING, FORWARDING, RELAYS


def test_every_phase_is_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(Phase)
    reached = {phase for transitions in TRANSITIONS.values() for phase in transitions.values()}
    assert reached == set(Phase)
    assert all(following(phase, Event.CLOSE) is Phase.ABSENT for phase in Phase)


@pytest.mark.parametrize(("phase", "event"), [(Phase.ABSENT, Event.AGREE), (Phase.STUCK, Event.AGREE)], ids=str)
def test_an_impossible_transition_raises(phase: Phase, event: Event) -> None:
    with pytest.raises(RuntimeError, match=phase.value):
        following(phase, event)


@pytest.mark.parametrize(
    ("schedule", "relay", "server"),
    [
        (FORWARDING, ForwardingRelay, ForwardingServer),
        (FORWARDING, AddingRelay, AddingServer),
        (CODING, CodingRelay, CodingServer),
        (CODING, PartialRelay, PartialServer),
    ],
    ids=["forwarding", "adding", "coding", "partial"],
)
def test_nodes_have_the_actions_of_their_schedule(schedule, relay, server) -> None:
    for turn in (*schedule.opening, *schedule.segment, *schedule.closing):
        assert callable(getattr(relay if turn.role == RELAYS else server, turn.action))
