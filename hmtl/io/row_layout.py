"""What stands in the rows that users send and receive; each user side in `hmtl.mtl.algorithms` says so of its own.

m numbers in a row, e further ones in an IV, e′ in a model.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RowLayout:
    """What stands in the rows of users; all nodes know it before the first round.

    Attributes:
        origin: the model [m] that every user holds before the first round, in the type of IVs. It also stands for the
            IV before the first one, unless IVs are changes.
        further: e, how many further numbers an IV has. They are overhead, and always travel as float64.
        answers: how many further numbers a model may have, e′.
        changes: whether IVs are changes, which aggregators add up; what rounding leaves over of one is added to the
            next.
        numbers: m; 0: nothing has to travel.
        dtype: the type of the numbers of IVs.
    """

    origin: Tensor
    further: int = 0
    answers: Collection[int] = (0,)
    changes: bool = False
    numbers: int = field(init=False)
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", len(self.origin))
        object.__setattr__(self, "dtype", self.origin.dtype)

    @classmethod
    def zeros(
        cls,
        m: int,
        dtype: torch.dtype = torch.float64,
        further: int = 0,
        answers: Collection[int] = (0,),
        changes: bool = False,
    ) -> Self:
        """Return the layout of rows of m numbers before which users hold zeros; these take no memory."""
        return cls(torch.zeros((), dtype=dtype).expand(m), further, answers, changes)
