"""The users' weights in averages: `Learner.weights` gives them, and the set-up tells their sum. K users."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.learners.base import Learner


@dataclass(eq=False)
class Weights:
    """Weights of users in averages, which are known for good after the set-up.

    Attributes:
        own: the weights of the users of a side [n, 1].
        total: the sum of all users' weights.
    """

    own: Tensor
    total: float


def weights_of(learner: Learner, counts: Tensor) -> Tensor:
    """Return the weights [K, 1] that a learner gives users with these numbers of rows [K].

    Raises:
        ConfigError: they are not K finite numbers from 0 with a positive sum.
    """
    weights = learner.weights(counts)
    if weights.shape != counts.shape or not (weights >= 0).all() or not 0 < float(weights.sum()) < torch.inf:
        raise ConfigError(
            f"{type(learner).__name__}.weights does not return K={len(counts)} finite weights from 0, at least one "
            "above 0. Return one for each of the numbers of rows that it gets."
        )
    return weights[:, None]


def are_alike(learner: Learner, K: int) -> bool:
    """Return whether a learner gives all K users the same weight, whatever their numbers of rows."""
    few, more = (learner.weights(torch.arange(n, n + K)) for n in (1.0, 2.0))
    return bool((few == few[0]).all() and (few == more).all())
