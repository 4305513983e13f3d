"""The two sides of a learner that costs nothing: users send what they have, and get it back."""

from collections.abc import Sequence

import numpy as np
import torch

from hmtl.io.arrays import Ids
from hmtl.io.row_layout import RowLayout


class EchoUsers:
    """Always the same IVs [K, m]."""

    def __init__(self, ivs: torch.Tensor) -> None:
        self.ivs, self.everybody = ivs, np.arange(len(ivs))
        self.row_layout = RowLayout.zeros(ivs.shape[1], ivs.dtype)

    def hold_meaning(self) -> None:
        """Say nothing of what rows mean."""

    def local_update(self, round: int, idle: Sequence[int] = ()) -> tuple[Ids, torch.Tensor]:
        return self.everybody, self.ivs

    def commit(self, users: Ids) -> None:
        pass

    def roll_back(self, users: Ids) -> None:
        pass

    def receive(self, users: Ids, models: torch.Tensor) -> None:
        self.models = models


class EchoAggregator:
    """The IVs are the models."""

    def hold_meaning(self) -> None:
        """Need every row."""

    def update(self, users: Ids, ivs: torch.Tensor) -> torch.Tensor:
        return ivs

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        pass
