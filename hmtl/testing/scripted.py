"""A learner that learns nothing, for tests. K users, m + e numbers in a row."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hmtl.communication import InProcess, LinkLedger
from hmtl.communication.messages import Message
from hmtl.io.arrays import NOBODY, Ids
from hmtl.io.row_layout import RowLayout
from hmtl.mtl.algorithms.base import Users


def random_numbers(seed: int, rows: int, columns: int, wire: str | None) -> Tensor:
    """Return any bit patterns, NaNs included, if nothing converts them; else numbers."""
    rng = np.random.default_rng(seed)
    if wire is None:
        return torch.from_numpy(rng.integers(0, 256, (rows, 8 * columns), np.uint8)).view(torch.float64)
    return torch.from_numpy(rng.normal(size=(rows, columns)))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same bytes."""
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


class ScriptedUsers(Users):
    """A user side that sends given IVs, and records what happens to each user.

    Args:
        ivs: IVs of each round [K, m + e].
        absent: absent users of each round.
        extras: e.
        mine: the users of this side; None: all.
    """

    def __init__(
        self, ivs: Sequence[Tensor], absent: Sequence[set[int]], extras: int, mine: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.ivs, self.absent = ivs, absent
        self.row_layout = RowLayout.zeros(ivs[0].shape[1] - extras, ivs[0].dtype, extras, (extras + 1,))
        self.mine = set(range(len(ivs[0]))) if mine is None else set(mine)
        self.sent: dict[int, int] = {}  # user: round of the pending update
        self.committed: list[tuple[int, int]] = []
        self.dropped: list[tuple[int, int]] = []
        self.models: dict[int, Tensor] = {}

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        assert set(self.sent) <= set(idle.tolist()), "users whose last update is pending are idle"
        users = np.array(sorted(self.mine - self.absent[round] - set(idle.tolist())), dtype=np.int64)
        self.idle = set(idle.tolist())
        self.sent |= dict.fromkeys(users.tolist(), round)
        self.models = {}
        return users, self.ivs[round][torch.from_numpy(users)]

    def commit(self, users: Ids) -> None:
        self.committed += [(self.sent.pop(k), k) for k in users.tolist()]

    def roll_back(self, users: Ids) -> None:
        self.dropped += [(self.sent.pop(k), k) for k in users.tolist()]

    def receive(self, users: Ids, models: Tensor) -> None:
        assert users.tolist() == sorted(set(users.tolist()))
        assert not self.models
        self.models = dict(zip(users.tolist(), models.clone(), strict=True))
        models.zero_()  # the models are this side's own memory


class ScriptedAggregator:
    """An aggregator side whose models are the last IVs of all users, in reverse order.

    A further number of each model is the number of updates.
    """

    def __init__(self, K: int, width: int) -> None:
        self.state = {"last": torch.zeros(K, width, dtype=torch.float64), "updates": torch.tensor(0)}
        self.seen: list[tuple[Ids, Tensor]] = []

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        self.seen.append((users, ivs.clone()))
        self.state["last"][torch.from_numpy(users)] = ivs
        self.state["updates"] += 1
        return self.models()

    def hold_meaning(self) -> None:
        """Need every row."""

    def models(self) -> Tensor:
        last = self.state["last"].flip(0)
        return torch.cat([last, torch.full_like(last[:, :1], float(self.state["updates"]))], dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.state = {name: value.clone() for name, value in state.items()}


class Counting(InProcess):
    """In-process links that also count posted bits independently of the ledger."""

    def __init__(self, ledger: LinkLedger) -> None:
        super().__init__(ledger)
        self.bits = Counter[tuple[str, str]]()  # by tier and kind of message

    def send(self, message: Message) -> None:
        rows = message.rows()
        parts = (message.payload[rows], message.overhead[rows])
        self.bits[message.tier, message.kind] += 8 * sum(part.numel() for part in parts)
        super().send(message)


def rounded(x: Tensor, m: int, wire: str | None) -> Tensor:
    """Return rows as the wire rounds them: only the first m numbers of each."""
    return x if wire is None else torch.cat([x[:, :m].to(getattr(torch, wire)).to(x), x[:, m:]], dim=1)
