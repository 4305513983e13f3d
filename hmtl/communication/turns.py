"""Turns, in which nodes act: methods that take the messages that a node received, and return those that it sends."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hmtl.communication.messages import Message

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

    @property
    def clock(self) -> str:
        """The name under which CPU time is recorded."""
        return f"{self.task} of {self.node}" if self.task else self.node
