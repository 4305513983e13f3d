"""What stands in the rows that users send and receive; each user side in `hmtl.mtl.algorithms` says so of its own.

m numbers in a row, e further ones in an IV, e′ in a model.
"""

from collections.abc import Collection
from dataclasses import dataclass
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
    """

    origin: Tensor
    further: int = 0
    answers: Collection[int] = (0,)
    changes: bool = False

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

    @property
    def numbers(self) -> int:
        """m; 0: nothing has to travel."""
        return len(self.origin)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the numbers of IVs."""
        return self.origin.dtype
