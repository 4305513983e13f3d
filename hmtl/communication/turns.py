"""Turns, in which nodes act, and their order: the phases of a relay within a round, and the turns of a host, as tables.

A turn is a method that takes the messages that a node received, and returns those that it sends.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hmtl.communication.messages import Message
from hmtl.errors import CodingError

Answers = Iterable[Message] | None
"""What a node sends after a turn."""


@dataclass(frozen=True)
class Turn:
    """What a node does next.

    Attributes:
        node: its name.
        action: the method of the node that it calls.
        round: the number of the round.
        numbers: arguments of the method, such as the number of a step.
        kinds: the kinds of messages that it hears.
        heard: further arguments, a list of messages of each kind.
        tells: whether its answer is needed before the next turns.
        task: what its CPU time is recorded as; "": as the node's coding.
    """

    node: str
    action: str
    round: int
    numbers: tuple[Any, ...]
    kinds: Sequence[str]
    heard: Sequence[list[Message]]
    tells: bool = True
    task: str = ""


class Phase(Enum):
    """Where a relay is in a round."""

    ABSENT = "absent"  # takes no part, or waits for the next round
    REPORTED = "reported"  # reported to the server whom it heard, waits for the attendance
    ATTENDING = "attending"  # knows who takes part, and plays the steps of the flow
    STUCK = "stuck"  # lacks a message that it needs, waits for the verdict
    AGGREGATED = "aggregated"  # computed the models, waits for the verdict
    AGREED = "agreed"  # all aggregators hold the same: the models may go to the users
    UNCONFIRMED = "unconfirmed"  # no verdict arrived: the next attendance says whether the models count
    IN_VAIN = "in vain"  # a relay fell silent in this attempt, waits for the next attendance


class Event(Enum):
    """What changes the phase of a relay."""

    REPORT = "report"  # heard the users' hosts, so it can report
    ATTEND = "attend"  # received the attendance
    MISS = "miss"  # a message that it needs did not arrive
    AGGREGATE = "aggregate"  # computed the models
    AGREE = "agree"  # the verdict: all aggregators hold the same
    RETRY = "retry"  # the verdict: the attempt was in vain
    CLOSE = "close"  # the round is over


TRANSITIONS: Mapping[Phase, Mapping[Event, Phase]] = {
    Phase.ABSENT: {Event.REPORT: Phase.REPORTED},
    Phase.REPORTED: {Event.ATTEND: Phase.ATTENDING, Event.MISS: Phase.ABSENT},
    Phase.ATTENDING: {Event.AGGREGATE: Phase.AGGREGATED, Event.MISS: Phase.STUCK, Event.RETRY: Phase.IN_VAIN},
    Phase.STUCK: {Event.RETRY: Phase.IN_VAIN},
    Phase.AGGREGATED: {
        Event.AGREE: Phase.AGREED,
        Event.RETRY: Phase.IN_VAIN,
        Event.MISS: Phase.UNCONFIRMED,
    },
    Phase.AGREED: {},
    Phase.UNCONFIRMED: {Event.ATTEND: Phase.ATTENDING, Event.MISS: Phase.ABSENT},
    Phase.IN_VAIN: {Event.ATTEND: Phase.ATTENDING, Event.MISS: Phase.ABSENT},
}
"""The next phase, by phase and event. `CLOSE` leads from any phase to `ABSENT`."""


def following(phase: Phase, event: Event) -> Phase:
    """Return the phase that follows `phase` after `event`; raise RuntimeError if the event is not possible then."""
    if event is Event.CLOSE:
        return Phase.ABSENT
    if event not in TRANSITIONS[phase]:
        raise RuntimeError(f"a relay that is {phase.value} cannot {event.value}")
    return TRANSITIONS[phase][event]


HOST_TURNS: Mapping[str, frozenset[str]] = {
    "update": frozenset({"", "conclude"}),
    "announce": frozenset({"update", "prepare"}),
    "block": frozenset({"announce", "block"}),
    "advertise": frozenset({"update"}),
    "share": frozenset({"advertise"}),
    "read": frozenset({"share"}),
    "prepare": frozenset({"read"}),
    "rows": frozenset({"update", "prepare"}),
    "answer": frozenset({"announce", "block", "rows"}),
    "conclude": frozenset({"announce", "block", "rows", "answer"}),
}
"""The turns after which a host takes a turn, by turn. No matter who asks, it masks, shares and reveals once a round."""


OTHER_TURNS = frozenset(
    {
        *("report", "attend", "begin", "take", "up", "learn", "release", "aggregate", "confirm", "conclude", "deliver"),
        *(
            "send_state",
            "adopt_state",
            "pass_state",
            "attend_again",
            "down",
            "compare",
            "retry",
            "unmask",
            "choose_sharers",
        ),
        *("advertise", "introduce", "collect", "pass_on", "confirm_shares", "announce", "ask", "hear", "combine"),
    }
)
"""The turns of relays and of the server, whose phases say what they do in them."""


def check_turn(last: str | None, turn: str) -> None:
    """Raise CodingError if a node does not take a turn.

    Args:
        last: the last turn of a host in this round ("": before the first); None: it is a relay or the server.
        turn: the turn.
    """
    if last is None:
        if turn not in OTHER_TURNS:
            raise CodingError(f"a node was asked to {turn[:20]}, which it does not do.")
        return
    if last not in HOST_TURNS.get(turn, ()):
        raise CodingError(
            f"a host was asked to {turn} after {last or 'nothing'}, which it refuses: turns have an order."
        )
