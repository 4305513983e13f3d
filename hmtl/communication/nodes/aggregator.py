"""The aggregator's seat: IVs are gathered here, models come from here. K users, m numbers per IV or model.

Aggregators of one process that hold equal bytes compute equal models. So they share one seat: the first of a round
keeps the IVs and computes, the others only make sure, by their digests, that they would have done the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.attendance import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.digest import Digest
from hmtl.communication.encoding import pack, taken, unpack
from hmtl.communication.messages import Message, Users
from hmtl.errors import CodingError

NEVER = -2  # the round in which a user's IV counted last, before any did


class AggregatorSide(Protocol):
    """The learning that needs all IVs; see `hmtl.mtl.Aggregator`."""

    def update(self, users: Users, ivs: Tensor) -> Tensor:
        """IVs [n, m + e] of those who were heard to models [K, m + e′] of all."""

    def needs(self) -> NDArray[np.bool_] | None:
        """Whose IVs each model is computed from [K, K]; None: those of all."""

    def part(self, of: Users, users: Users, ivs: Tensor, rounds: int) -> Tensor:
        """Models of some users, of the IVs of some, after so many rounds; only where there are such needs."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True, eq=False)
class Models:
    """What goes to the users, a row for each.

    Attributes:
        payload: models, uint8 [K, bytes].
        overhead: further numbers, and the round in which the user's IV counted last (4 bytes), uint8 [K, bytes].
    """

    payload: Tensor
    overhead: Tensor

    @cached_property
    def digest(self) -> bytes:
        found = Digest()
        found.add_rows(self.payload)
        found.add_rows(self.overhead)
        return found.value()


class Aggregation:
    """One process's aggregator with what it keeps from round to round.

    Args:
        K: number of users.
        aggregator: what computes the models.
        numbers: m.
        wire: how numbers travel; None: as they are.
        revocable: whether an update may have to be taken back, as messages can be lost.
    """

    def __init__(
        self, K: int, aggregator: AggregatorSide, numbers: int, wire: torch.dtype | None, revocable: bool = False
    ) -> None:
        self.aggregator, self.numbers, self.wire, self.revocable = aggregator, numbers, wire, revocable
        self._before: tuple[dict[str, Tensor], NDArray[np.int64]] | None = None
        self.counted: NDArray[np.int64] = np.full(K, NEVER)
        self.ivs: dict[str, Tensor] = {}  # of those present, payload and overhead [n, bytes]
        self._round: int | None = None
        self._models: Models | None = None
        self._digest = b""

    def open(self, round: int, node: str, users: Users, payload: int, overhead: int) -> bool:
        """Make room for the round's IVs, of so many bytes; whether it is `node` that keeps them for all."""
        if self._round != round:
            self._round, self._keeper, self._users = round, node, users
            rows = self._rows(len(users))
            sizes = {"payload": payload, "overhead": overhead}
            self.ivs = {part: torch.empty(rows, nbytes, dtype=torch.uint8) for part, nbytes in sizes.items()}
        return self._keeper == node

    def place(self, users: Users) -> Tensor:
        """The rows of these users among the IVs."""
        return torch.from_numpy(np.searchsorted(self._users, users))

    def gather(self, messages: Sequence[Message]) -> None:
        """Put the rows of these messages, together those of all users, in their place."""
        at = torch.cat([self.place(message.of_users()) for message in messages])
        rows = torch.cat([message.rows() for message in messages])
        for part in self.ivs:
            sources = [getattr(message, part) for message in messages]
            if all(source is sources[0] for source in sources) and len(at) == len(sources[0]) and at.equal(rows):
                self.ivs[part] = sources[0]  # it is all of one tensor, as it stands
                continue
            for message, source in zip(messages, sources, strict=True):
                self.ivs[part].index_copy_(0, self.place(message.of_users()), taken(source, message.rows()))

    def update(self, digest: bytes, dtype: torch.dtype) -> None:
        """Compute the models of the IVs that are kept, of which this is the digest."""
        ivs = unpack(self.ivs["payload"], self.ivs["overhead"], self.wire or dtype, dtype)
        self.ivs = {}
        self._before = (self.aggregator.state_dict(), self.counted.copy()) if self.revocable else None
        models = self.aggregator.update(self._users, ivs)
        del ivs  # which may be as large as all models
        if len(models) != self._rows(len(self.counted)):
            raise CodingError(
                f"The aggregator gave models of shape {tuple(models.shape)} for {len(self.counted)} users: its update "
                f"has to return {self._rows(len(self.counted))} rows of numbers here."
            )
        assert self._round is not None
        self.counted[self._users] = self._round
        payload, extras = pack(models, self.numbers, self.wire or dtype)
        self._digest, self._models = digest, Models(payload, torch.cat([extras, self._receipts()], dim=1))

    def _rows(self, users: int) -> int:
        """How many rows there are for so many users."""
        return users

    def _receipts(self) -> Tensor:
        """For each row of models, when IVs counted last."""
        return torch.from_numpy(numbers_to_bytes(self.counted).reshape(-1, 4))

    def models(self, digest: bytes) -> Models | None:
        """The models for a node with this digest; None where it holds other IVs than were kept."""
        return self._models if digest == self._digest else None

    def take_back(self) -> None:
        """It is as if the round's IVs had never come here, whether models were computed of them or not."""
        if self._before:
            state, self.counted = self._before
            self.aggregator.load_state_dict(state)
        self._round = None
        self.close()

    def close(self) -> None:
        """Let go of the round's IVs and models, which may be large."""
        self.ivs, self._models, self._before = {}, None, None

    def state_bytes(self) -> NDArray[np.uint8]:
        """All that a node needs to aggregate the next round."""
        state = self.aggregator.state_dict()
        parts = [state[name].contiguous().cpu().view(-1).view(torch.uint8).numpy() for name in sorted(state)]
        return np.concatenate([*parts, numbers_to_bytes(self.counted)])

    def adopt(self, content: NDArray[np.uint8]) -> None:
        """The inverse of `state_bytes`."""
        state, rest = self.aggregator.state_dict(), torch.from_numpy(content.copy())
        for name in sorted(state):
            old = state[name]
            state[name], rest = (
                rest[: old.nbytes].clone().view(old.dtype).view(old.shape).to(old.device),
                rest[old.nbytes :],
            )
        self.aggregator.load_state_dict(state)
        self.counted = bytes_to_numbers(rest.numpy())

    def state_dict(self) -> dict[str, Any]:
        return {"counted": torch.from_numpy(self.counted.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counted = state["counted"].numpy().copy()
