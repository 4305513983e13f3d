"""Links on which what arrives at a node may be another message, or none."""

from collections.abc import Callable
from dataclasses import replace

from hmtl.communication.messages import Message
from hmtl.testing.scripted import Counting

Change = Callable[[str, Message], Message | None]


class Changed(Counting):
    """In-process links that apply `change` to each message for a node before the node sees it."""

    reliable = False
    change: Change = staticmethod(lambda node, message: message)

    def collect(self, node, kind, expected):
        arrived, _ = super().collect(node, kind, expected)
        arrived = [changed for message in arrived if (changed := self.change(node, message)) is not None]
        senders = [message.sender for message in arrived]
        return arrived, tuple(name for name in expected if name not in senders)


def flipped(message: Message) -> Message:
    """The message with one bit changed."""
    part = "payload" if message.payload.numel() else "overhead"
    damaged = getattr(message, part).clone()
    damaged[-1, -1] ^= 1
    return replace(message, **{part: damaged})
