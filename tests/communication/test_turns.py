"""The tables of a relay's phases and of turns."""

import pytest

from hmtl.communication.turns import TRANSITIONS, Event, Phase, check_turn, following
from hmtl.errors import CodingError


def test_every_phase_is_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(Phase)
    reached = {phase for transitions in TRANSITIONS.values() for phase in transitions.values()}
    assert reached == set(Phase)
    assert all(following(phase, Event.CLOSE) is Phase.ABSENT for phase in Phase)


@pytest.mark.parametrize(("phase", "event"), [(Phase.ABSENT, Event.AGREE), (Phase.STUCK, Event.AGREE)], ids=str)
def test_an_impossible_transition_raises(phase: Phase, event: Event) -> None:
    with pytest.raises(RuntimeError, match=phase.value):
        following(phase, event)


def test_turns_in_order_are_taken() -> None:
    check_turn("rows", "answer")
    check_turn(None, "report")


@pytest.mark.parametrize(
    ("last", "turn", "why"),
    [
        (None, "drop" * 9, f"a node was asked to {'drop' * 5}, which"),
        ("", "answer", "a host was asked to answer after nothing, which"),
        ("rows", "rows", "a host was asked to rows after rows, which"),
    ],
)
def test_a_turn_out_of_order_is_refused(last: str | None, turn: str, why: str) -> None:
    with pytest.raises(CodingError, match=why):
        check_turn(last, turn)
