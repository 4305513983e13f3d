"""The contract of a solver that trains the users' networks, and the minibatches that such solvers visit.

K users, m numbers in a model; T steps of all users, one user after the other, on minibatches of at most B rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hmtl.errors import ConfigError
from hmtl.mtl.networks.flat import FlatModel
from hmtl.mtl.problem import Problem
from hmtl.mtl.solvers.base import LocalSolver, SomeIds
from hmtl.rng import generator


@dataclass(frozen=True, eq=False)
class NetworkSubproblem:
    """Where the users' training starts.

    Attributes:
        model: the network.
        W: models [K, m].
        users: numbers of these users in the network [K].
        round: number of the round.
        stream: seed and name of the random numbers that modules draw (dropout).
        data: returns a user's training rows as a torch Dataset, by the user's place among these.
        anchor: λ and v of a term (λ/2)‖w − v‖² in the users' objectives, v [K, m], if any.
        correction: numbers added to the gradient of each step [K, m], if any.
        trained: names of the parameters that steps change; None: all.
        room: memory for the models that a solver returns [K, m]; None: it is allocated.
    """

    model: FlatModel
    W: Tensor
    users: NDArray[np.int64]
    round: int
    stream: tuple[int, *tuple[str | int, ...]]
    data: Callable[[int], Dataset[Any]]
    anchor: tuple[float, Tensor] | None = None
    correction: Tensor | None = None
    trained: frozenset[str] | None = None
    room: Tensor | None = None

    def copied(self) -> Tensor:
        """Return a copy of W, to be trained."""
        return self.W.clone(memory_format=torch.contiguous_format) if self.room is None else self.room.copy_(self.W)


class NetworkSolver(LocalSolver[NetworkSubproblem, Tensor]):
    """A solver that trains the users' networks; calling it returns the new models [K, m]."""

    improves = "networks"

    def plain(self) -> Self:
        """Return the solver with plain gradient steps, if it may choose; see `Learner.plain_steps`."""
        return self

    def rate(self, round: int) -> float:
        """Return the step size μ_t of a round, for algorithms whose other steps are as long as the local ones.

        Raises:
            ConfigError: the solver has no step size.
        """
        raise ConfigError(
            f"{type(self).__name__} has no step size, which this algorithm needs. Define `rate(self, round)` in it, or "
            "choose solver=sgd, or an algorithm such as fedavg."
        )

    def check_network(self, model: FlatModel, problem: Problem) -> None:
        """Raise ConfigError if the solver cannot train this network on this problem."""

    def check_proximal(self, name: str, weight: float) -> None:
        """Raise ConfigError if a proximal term of this weight, which the setting `name` has, cannot be added."""
        if weight:
            raise ConfigError(
                f"{name}={weight:g}, but {type(self).__name__} knows no proximal term. Choose solver=sgd or torch, or "
                "an algorithm without this term, such as fedavg."
            )

    def check_correction(self) -> None:
        """Raise ConfigError if steps are not plain gradient steps, which SCAFFOLD corrects and FedNova counts."""
        raise ConfigError(
            f"This learner corrects or counts plain gradient steps, which {type(self).__name__} does not take. Choose "
            "solver=sgd, or another algorithm, such as fedavg."
        )


class MinibatchSolver(NetworkSolver):
    """A solver that passes over a user's rows in random order, by minibatches; the last one of a pass may be smaller.

    Args:
        epochs: passes per round.
        batch: rows in a minibatch, B.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(self, epochs: int, batch: int) -> None:
        super().__init__()
        if epochs < 1 or batch < 1:
            raise ConfigError(f"epochs={epochs}, batch={batch}: each has to be at least 1.")
        self.epochs = epochs
        self.batch = batch

    def steps(self, counts: Sequence[int]) -> Tensor:
        return torch.tensor([self.epochs * math.ceil(n / self.batch) for n in counts])

    def draw(self, seed: int, round: int, users: SomeIds, counts: Sequence[int]) -> Tensor:
        """Return minibatches [T, B] of row numbers, filled up with −1."""
        steps, last = self.steps(counts).tolist(), 0
        order = np.full((sum(steps), min(self.batch, max(counts))), -1)
        rows = {n: np.broadcast_to(np.arange(n), (self.epochs, n)) for n in {*counts}}
        for T, user, n in zip(steps, map(int, users), counts, strict=True):
            passes, last = order[last : last + T].reshape(self.epochs, -1), last + T
            passes[:, :n] = generator(seed, "minibatches", round, user).permuted(rows[n], axis=1)
        return torch.from_numpy(order)
