"""The schedules of a round, as lists of turns.

Every round begins alike: users send, relays report, the server announces the attendance. Then one of these schedules is
played, and played again if a relay fell silent. Every round ends alike, too: relays heed the verdict and deliver.
"""

from dataclasses import dataclass

from hmtl.communication.messages import BROADCAST, COMBINATIONS, DIGESTS, IVS, MODELS, STATE, VERDICT

RELAYS, SERVER = "relays", "server"


@dataclass(frozen=True)
class Turn:
    """One action of the server, or of each relay that takes part.

    Attributes:
        role: RELAYS or SERVER.
        action: name of the node's method; it returns the messages to post, or None.
        hears: kinds of messages that the method is given.
        says: kinds of messages that the node is done with after this turn.
        task: what the CPU time counts as; "": as the node's coding.
        final: whether the turn is left out if messages can be lost, since then the attempt may have to be repeated.
    """

    role: str
    action: str
    hears: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    task: str = ""
    final: bool = False


@dataclass(frozen=True)
class Schedule:
    """The turns of an attempt.

    Attributes:
        opening: turns before anything is coded.
        segment: turns for each segment of the round's plan, whose methods are given the segment first.
        closing: turns after that.
    """

    opening: tuple[Turn, ...] = ()
    segment: tuple[Turn, ...] = ()
    closing: tuple[Turn, ...] = ()


FORWARDING = Schedule(
    closing=(
        Turn(RELAYS, "forward", says=(IVS,)),
        Turn(RELAYS, "release", final=True),
        Turn(SERVER, "gather", hears=(IVS,)),
        Turn(SERVER, "aggregate", task="global update"),
        Turn(SERVER, "hand_back", says=(VERDICT, MODELS)),
    ),
)
"""Relays forward IVs, or sums of them, and the server aggregates."""

CODING = Schedule(
    opening=(
        Turn(RELAYS, "send_state", says=(STATE,)),
        Turn(SERVER, "pass_state", hears=(STATE,), says=(STATE,)),
        Turn(RELAYS, "adopt_state", hears=(STATE,)),
    ),
    segment=(
        Turn(RELAYS, "encode", says=(COMBINATIONS,)),
        Turn(SERVER, "recode", hears=(COMBINATIONS,), says=(BROADCAST,)),
        Turn(RELAYS, "decode", hears=(BROADCAST,)),
    ),
    closing=(
        Turn(RELAYS, "finish"),
        Turn(RELAYS, "release", final=True),
        Turn(RELAYS, "aggregate", task="global update"),
        Turn(RELAYS, "confirm", says=(DIGESTS, MODELS)),
        Turn(SERVER, "compare", hears=(DIGESTS, MODELS), says=(VERDICT, MODELS)),
    ),
)
"""Relays code and aggregate, all IVs or the part that each of them demands."""
