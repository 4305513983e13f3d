"""What preprocessing over all users' rows has to exchange before the first round."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hmtl.data import Task
from hmtl.data.preprocessing import common
from hmtl.mtl.algorithms.base import Aggregator, Ids, Users
from hmtl.mtl.algorithms.setup import SetupAggregator, SetupUsers


def fitting(tasks: Sequence[Task]) -> tuple[Users, Aggregator] | None:
    """Moments of each user's rows up, those of all rows down, see `Preprocessing`; None where nothing has to travel.

    The tasks have been fitted already: to play this leaves them as they are, and counts the bits.
    """
    here = [task for task in tasks if task.here]
    told = tasks[0].preprocessing.told(here or tasks[:1])
    if not told:
        return None
    widths = [part.shape[1] for part in told]
    if not here:
        told = [torch.empty(0, width) for width in widths]

    def learn(facts: Tensor) -> Tensor:
        return torch.cat([common(part) for part in torch.split(facts, widths, dim=1)], dim=1)

    return SetupUsers(torch.cat(told, dim=1), _known), SetupAggregator(learn, len(tasks))


def _known(users: Ids, extras: Tensor) -> None:
    """Users have been fitted to it already."""
