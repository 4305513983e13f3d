"""What hosts send the server beside the messages of the network, and the terms of figures that they send relays."""

from collections.abc import Callable
from typing import Any

import torch

from hmtl.communication.messages import IVS, SERVER
from hmtl.distributed.control import from_bytes
from hmtl.distributed.frames import CONTROL
from hmtl.distributed.peers import PER_NUMBER, Peers


def listening(sent: dict[str, list[Any]]) -> Callable[[Peers, int], None]:
    """Put the values that each host sends the server into `sent`, by its name, and `rows` of terms of figures."""

    def prepare(peers: Peers, rank: int) -> None:
        send = peers.send

        def send_and_note(to: str, frame: Any, *cast: Any) -> None:
            if peers.name.startswith("host") and to == SERVER and frame.kind == CONTROL:
                sent[peers.name].append(from_bytes(frame.payload.numpy()[0].data))
            if frame.kind == IVS and peers.name.startswith("host") and in_figures(peers, peers.round // PER_NUMBER):
                numbers = [torch.frombuffer(bytearray(row), dtype=torch.int64) for row in frame.payload.numpy()]
                rows = dict(zip(frame.users.tolist(), numbers, strict=True))
                sent[peers.name].append({"rows": rows, "round": peers.round // PER_NUMBER})
            send(to, frame, *cast)

        peers.send = send_and_note  # type: ignore[method-assign]

    return prepare


def in_figures(peers: Peers, round: int) -> bool:
    """Whether a node adds up the figures of a round."""
    return peers.round == PER_NUMBER * round + 1
