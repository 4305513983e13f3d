"""What hosts send the server beside the messages of the network."""

from collections.abc import Callable
from typing import Any

from hmtl.communication.messages import SERVER
from hmtl.distributed.control import from_bytes
from hmtl.distributed.frames import CONTROL
from hmtl.distributed.peers import Peers


def listening(sent: dict[str, list[Any]]) -> Callable[[Peers, int], None]:
    """Put the values that each host sends the server into `sent`, by its name."""

    def prepare(peers: Peers, rank: int) -> None:
        send = peers.send

        def send_and_note(to: str, frame: Any, *cast: Any) -> None:
            if peers.name.startswith("host") and to == SERVER and frame.kind == CONTROL:
                sent[peers.name].append(from_bytes(frame.payload.numpy()[0].data))
            send(to, frame, *cast)

        peers.send = send_and_note  # type: ignore[method-assign]

    return prepare
