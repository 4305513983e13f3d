"""A host: the node that holds the users of a process. K users, m numbers per IV or model, e further numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.accounting.ledger import USERS_TO_RELAYS
from hmtl.communication.coders import UserCoder
from hmtl.communication.messages import IVS, Message, Users, host_name, nothing
from hmtl.communication.planning.flow import Recipe
from hmtl.communication.planning.planner import Planner
from hmtl.errors import CodingError


class UserSide(Protocol):
    """The part of an algorithm that runs at the users, as one batch. `hmtl.mtl.Users` documents its members."""

    @property
    def numbers(self) -> int: ...

    @property
    def row_bits(self) -> tuple[int, int, int]: ...

    @property
    def deltas(self) -> bool: ...

    @property
    def origin(self) -> Tensor: ...

    def local_update(self, round: int, idle: Users = ...) -> tuple[Users, Tensor]: ...

    def take_sent(self, users: Users, sent: Tensor, further: Tensor) -> Tensor: ...

    def take_leftover(self, users: Users, leftover: Tensor) -> None: ...

    def commit(self, users: Users) -> None: ...

    def roll_back(self, users: Users) -> None: ...

    def receive(self, users: Users, models: Tensor) -> None: ...


class Host:
    """The users of one process.

    Each user knows its own IV, the model that it receives, and whether its IV counted.

    A user who received no model stays idle until one arrives. Until then its update may have counted, so it must be
    neither repeated nor discarded, and its model is out of date.

    Args:
        planner: plans of the network.
        recipe: how rows travel.
        users: the users of this process.
        coder: turns IVs into bytes, and bytes into models.
        number: number of the process.
        members: the numbers of these users in the network.

    Attributes:
        waiting: whether each user waits for a model, or belongs to another process [K].
        pending: whether each user's update is pending [K].
        sent: the round of each user's last IV [K].
        dtype, device: of the IVs.
        nbytes: bytes of an IV.
    """

    STATE = ("waiting", "pending", "sent")

    def __init__(
        self, planner: Planner, recipe: Recipe, users: UserSide, coder: UserCoder, number: int, members: Users
    ) -> None:
        self.name, self.users, self.coder, self.members = host_name(number), users, coder, members
        self.planner, self.recipe, K = planner, recipe, planner.topology.K
        self.waiting: NDArray[np.bool_] = ~np.isin(np.arange(K), members)
        self.pending: NDArray[np.bool_] = np.zeros(K, dtype=bool)
        self.sent: NDArray[np.int64] = np.zeros(K, dtype=np.int64)
        self.dtype, self.device = torch.float64, torch.device("cpu")
        self.nbytes = 0
        self._idle = self.waiting.copy()

    def send(self, round: int, relays: Sequence[str]) -> list[Message]:
        """Return the IVs of the users who take part, and requests of others who lack a row, for relays within range."""
        self._idle = self.waiting.copy()
        users, ivs = self.users.local_update(round, np.flatnonzero(self._idle))
        K = len(self.waiting)
        if len(ivs.shape) != 2 or len(ivs) != len(users) or (len(users) and users[-1] >= K):
            raise CodingError(
                f"The IVs have shape {tuple(ivs.shape)} for {len(users)} users who take part, out of the network's "
                f"{K}. Let `local_update` return one row of numbers per user who takes part."
            )
        self.waiting[self.members] = True
        self.pending[users] = True
        self.sent[users] = round
        self.dtype, self.device = ivs.dtype, ivs.device
        payload, overhead = self.coder.encode(users, ivs)
        self.nbytes = payload.shape[1]
        to, dtype = tuple(relays), ivs.dtype
        messages = [Message(round, USERS_TO_RELAYS, IVS, self.name, to, users, payload, overhead, users, dtype=dtype)]
        if len(lacking := self.coder.requesting(self.members[self._idle[self.members]])):
            flags = torch.ones(len(lacking), 1, dtype=torch.uint8)
            messages.append(
                replace(messages[0], links=lacking, payload=nothing(len(lacking)), overhead=flags, users=lacking)
            )
        return messages

    def follow(self, planner: Planner) -> None:
        """Continue with the topology of another planner."""
        self.planner = planner

    def read_receipts(self, receipts: Sequence[Message]) -> None:
        """Roll back the updates that were sent in a round in which nobody aggregated."""
        for message in receipts:
            users = message.of_users()
            sent_now = self.pending[users] & (self.sent[users] == message.round)
            self.users.roll_back(users[sent_now])
            self.pending[users[sent_now]] = False
            self.waiting[users] = self._idle[users]

    def receive(self, models: Sequence[Message]) -> None:
        """Take models; each comes with the round in which the user's IV counted last.

        A user whose model did not arrive, or for whom it does not follow from what arrived, stays idle.
        """
        if (arrived := self.recipe.arrived(self.planner, self.members, models)) is None:
            return
        users, payload, overhead = arrived
        read = self.coder.read(users, overhead, models[0].round)
        if not len(read.users):
            return
        self._settle(read.users, read.last)
        numbers = self.coder.decode(read.users, payload, read.extras, self.dtype)
        self.users.receive(read.users, numbers.to(self.device))

    def state_dict(self) -> dict[str, Any]:
        own = {name: torch.from_numpy(getattr(self, name).copy()) for name in self.STATE}
        return own | {"coder": self.coder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.STATE:
            setattr(self, name, state[name].numpy().copy())
        self.coder.load_state_dict(state["coder"])

    def _settle(self, users: Users, last: NDArray[np.int64]) -> None:
        """Commit or roll back pending updates; `last` is the round in which an IV counted last."""
        counted = last == self.sent[users]
        committed = users[self.pending[users] & counted]
        self.users.commit(committed)
        self.coder.commit(committed)
        self.users.roll_back(users[self.pending[users] & ~counted])
        self.waiting[users] = self.pending[users] = False
