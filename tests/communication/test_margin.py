"""Rows of a broadcast that are lost on the way."""

import numpy as np
import torch

from hmtl.communication.ledger import SERVER_TO_RELAYS
from hmtl.communication.messages import BROADCAST, SERVER, Message, nothing


def test_what_is_left_of_a_message() -> None:
    rows = torch.arange(20, dtype=torch.uint8).view(5, 4)
    sent = Message(0, SERVER_TO_RELAYS, BROADCAST, SERVER, ("relay 0",), 0, rows, nothing(5), spare=2)
    arrived = np.array([True, False, True, True, False])
    left = sent.left(arrived)
    assert torch.equal(left.payload, rows[[0, 2, 3]])
    assert left.overhead.shape == (3, 0)
    assert len(left) == 3
    assert (left.spare, left.kind, left.receivers) == (2, BROADCAST, ("relay 0",))
    assert left.arrived is arrived
    assert sent.arrived is None
