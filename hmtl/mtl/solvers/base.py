"""The contract of a local solver: the users' share of a round, computed for many users at once.

K users, N rows of all users, one user after the other. All arguments are those of these K users alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hmtl.errors import ConfigError
from hmtl.io.described import Described
from hmtl.mtl.losses import Loss
from hmtl.mtl.overriding import defined_below
from hmtl.mtl.problem import Rows

Kind = Literal["duals", "networks"]
SomeIds = Sequence[int] | NDArray[np.int64]
"""Numbers of users."""
Subproblem = TypeVar("Subproblem")
Solution = TypeVar("Solution")


class LocalSolver(Described, nn.Module, ABC, Generic[Subproblem, Solution]):
    """A solver that improves the users' duals or networks, each on the user's own rows, when it is called.

    A solver states what it works on (`improves`) and what a loss must define for it (`needs`); an algorithm checks
    both with `check`. A user's round is a number of steps (`steps`) over its rows in an order (`draw`).
    """

    improves: ClassVar[Kind]
    """What it improves, which also determines the type of its subproblem."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Methods that a loss must define, besides `forward`."""

    def check(self, kind: Kind, loss: Loss) -> None:
        """Raise ConfigError if an algorithm on duals or networks (`kind`) cannot use this solver with this loss."""
        name, by_gradients = type(self).__name__, "algorithm=fedu, fedavg or one of its relatives"
        if not hasattr(self, "training"):
            raise ConfigError(f"{name}.__init__ leaves its base class out. Call super().__init__() in its first line.")
        if self.improves != kind:
            remedy = f"solver=sdca, or {by_gradients} for gradients" if kind == "duals" else "solver=sgd or torch"
            raise ConfigError(f"{name} improves {self.improves}, but the algorithm works on {kind}. Choose {remedy}.")
        defined = defined_below(Loss, type(loss))
        missing = [need for need in self.needs if need not in defined]
        if missing:
            raise ConfigError(
                f"{name} needs {' and '.join(missing)}, which {type(loss).__name__} does not define. Choose "
                f"loss=squared for numbers, loss=hinge, smooth_hinge or logistic for labels, or {by_gradients}; or "
                "define it in the loss."
            )

    def describe(self) -> dict[str, float]:
        """Return the settings that the summary of a run reports."""
        return {}

    @abstractmethod
    def steps(self, counts: Sequence[int]) -> Tensor:
        """Return the usual number of steps [K] of users with `counts` rows."""

    @abstractmethod
    def draw(self, seed: int, round: int, users: SomeIds, counts: Sequence[int]) -> Tensor:
        """Return the order [S, ...] in which users visit their rows in a round, one user after the other.

        A user's rows are numbered from 0. Its order depends only on the seed, the round and the user's number.
        """

    @abstractmethod
    def forward(self, loss: Loss, rows: Rows, subproblem: Subproblem, order: Tensor, budgets: Tensor) -> Solution:
        """Return the improvement: what the users' steps on their subproblems make of where they start.

        Args:
            loss: loss of a row.
            rows: training rows, in the type of the models.
            subproblem: where the users start, and what couples them to the others.
            order: as `draw` returns it.
            budgets: number of steps of each user [K], 0 if it is absent.
        """
