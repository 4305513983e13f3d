"""The table of a relay's phases."""

import pytest

from hmtl.communication.nodes.phases import TRANSITIONS, Event, Phase, following


def test_every_phase_is_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(Phase)
    reached = {phase for transitions in TRANSITIONS.values() for phase in transitions.values()}
    assert reached == set(Phase)
    assert all(following(phase, Event.CLOSE) is Phase.ABSENT for phase in Phase)


@pytest.mark.parametrize(("phase", "event"), [(Phase.ABSENT, Event.AGREE), (Phase.STUCK, Event.AGREE)], ids=str)
def test_an_impossible_transition_raises(phase: Phase, event: Event) -> None:
    with pytest.raises(RuntimeError, match=phase.value):
        following(phase, event)
