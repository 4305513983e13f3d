"""Users as a node of the network. K users, m numbers per IV or model, e further ones with each."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.accounting.ledger import USERS_TO_RELAYS
from hmtl.communication.attendance import bytes_to_numbers
from hmtl.communication.encoding import pack, put, taken, unpack
from hmtl.communication.messages import IVS, Message, Users, host_name
from hmtl.errors import CodingError


class UserSide(Protocol):
    """The learning of many users, as one batch; see `hmtl.mtl.Users`."""

    @property
    def numbers(self) -> int:
        """m; what rows have beyond is overhead."""

    def local_update(self, round: int, idle: Users = ...) -> tuple[Users, Tensor]:
        """Who takes part, none of them `idle`, and their IVs [n, m + e]; the update stays pending."""

    def commit(self, users: Users) -> None:
        """Their pending update counted."""

    def roll_back(self, users: Users) -> None:
        """It did not."""

    def receive(self, users: Users, models: Tensor) -> None:
        """Their models [n, m + e]; the others got none."""


class UserHost:
    """The users of one process. Each knows its own IV, the model that comes back, and whether the IV counted.

    A user to whom no model came takes no part until one does: its update may have counted, so that it must neither be
    made again nor be dropped; and its model is old.

    Args:
        K: number of users in the network.
        users: those of this process.
        wire: how numbers travel; None: as they are.
        number: of the process.
        mine: who these users are; None: all.
    """

    state = ("waiting", "pending", "sent")

    def __init__(
        self, K: int, users: UserSide, wire: torch.dtype | None, number: int = 0, mine: Users | None = None
    ) -> None:
        self.name, self.users, self.wire = host_name(number), users, wire
        self.mine = np.arange(K) if mine is None else mine
        self.waiting = np.zeros(K, dtype=bool)  # for a model, and word of the update that is pending
        self._elsewhere = np.ones(K, dtype=bool)
        self._elsewhere[self.mine] = False
        self.pending = np.zeros(K, dtype=bool)
        self.sent = np.zeros(K, dtype=np.int64)  # the round of the last IV

    def send(self, round: int, relays: Sequence[str]) -> Message:
        """The IVs of the users who take part, for whichever relay hears them."""
        self._idle = self.waiting | self._elsewhere
        users, ivs = self._update(round, np.flatnonzero(self._idle))
        K = len(self.waiting)
        if len(ivs.shape) != 2 or len(ivs) != len(users) or (len(users) and users[-1] >= K):
            raise CodingError(
                f"The IVs have shape {tuple(ivs.shape)} for {len(users)} users who take part, of the network's {K}: "
                "hand over a row of numbers for each of them."
            )
        self.waiting[self.mine], self.pending[users], self.sent[users] = True, True, round
        self.dtype, self._device = ivs.dtype, ivs.device
        payload, overhead = self._packed(ivs)
        self.nbytes = payload.shape[1]  # of an IV
        return Message(
            round, USERS_TO_RELAYS, IVS, self.name, tuple(relays), users, payload, overhead, users, dtype=ivs.dtype
        )

    def _update(self, round: int, idle: Users) -> tuple[Users, Tensor]:
        return self.users.local_update(round, idle)

    def _packed(self, ivs: Tensor) -> tuple[Tensor, Tensor]:
        return pack(ivs, self.users.numbers, self.wire or ivs.dtype)

    def told(self, receipts: Sequence[Message]) -> None:
        """Word that a round was empty: what was sent in it did not count."""
        for message in receipts:
            users = message.of_users()
            sent_now = self.pending[users] & (self.sent[users] == message.round)
            self.users.roll_back(users[sent_now])
            self.pending[users[sent_now]] = False
            self.waiting[users] = self._idle[users]

    def receive(self, models: Sequence[Message]) -> None:
        """Models, and with each of them word of the last round in which the user's IV counted."""
        if not models:
            return
        users, order = torch.from_numpy(np.concatenate([message.of_users() for message in models])).sort()
        if all(message.payload is models[0].payload for message in models):  # one tensor serves all messages
            at = torch.cat([message.rows() for message in models])[order]
            payload, overhead = taken(models[0].payload, at), models[0].overhead[at]
        else:
            payload, overhead = (
                torch.empty(len(users), part.shape[1], dtype=torch.uint8)
                for part in (models[0].payload, models[0].overhead)
            )
            for message in models:
                to, at = torch.searchsorted(users, torch.from_numpy(message.of_users())), message.rows()
                put(payload, to, message.payload, at)
                put(overhead, to, message.overhead, at)
        ids: Users = users.numpy()
        self._settle(ids, bytes_to_numbers(overhead[:, -4:].numpy().ravel()))
        numbers = unpack(payload, overhead[:, :-4], self.wire or self.dtype, self.dtype)
        self.users.receive(ids, numbers.to(self._device))

    def _settle(self, users: Users, last: NDArray[np.int64]) -> None:
        """Word for these users: the rounds in which their IVs counted last."""
        counted = last == self.sent[users]
        self.users.commit(users[self.pending[users] & counted])
        self.users.roll_back(users[self.pending[users] & ~counted])
        self.waiting[users] = self.pending[users] = False

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].numpy().copy())
