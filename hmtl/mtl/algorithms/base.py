"""What every learning algorithm offers to the loop that runs it: two sides that share nothing but messages.

K users, m numbers per IV and model, e further numbers beside them, d features. `Users` is the users' side, many of them
as one batch; `Aggregator` is the side of whoever turns IVs into models, a relay or the server.
"""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.clock import cpu_seconds
from hmtl.errors import ConfigError, RangeError
from hmtl.mtl.losses import snake_case
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem

Ids = NDArray[np.int64]
"""Numbers of users, ascending."""
NOBODY: Ids = np.empty(0, dtype=np.int64)


class Users(ABC):
    """User side. A round is `local_update`, then `commit` or `roll_back`, and `receive`, each for whom it concerns."""

    numbers: int
    """m. What a row has beyond m numbers is overhead: it travels as float64, whatever the wire.

    0: nothing has to travel, neither IVs nor models; a round is a `local_update` and a `commit`.
    """

    sums: bool = False
    """Whether rows are terms of sums, int64, which anybody may add on their way, and one row goes back to all users."""

    @property
    def row_bits(self) -> tuple[int, int, int]:
        """Of the same learner where IVs and models travel, bits of the m numbers, and beside those of IV and model."""
        raise NotImplementedError

    @abstractmethod
    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        """Who takes part in a round, and their IVs [n, m + e]; what they did stays pending until it is settled.

        Args:
            round: names what is drawn.
            idle: users who take no part in this round, whatever else was drawn for them.
        """

    def commit(self, users: Ids) -> None:  # noqa: B027, a local update need not leave anything to settle
        """The pending updates of these users counted: their IVs reached whoever aggregates."""

    def roll_back(self, users: Ids) -> None:  # noqa: B027, nor to take back
        """The pending updates of these users did not count: it is as if they had never been made."""

    @abstractmethod
    def receive(self, users: Ids, models: Tensor) -> None:
        """Take the models [n, m + e] of these users; the others got none and keep what they have."""

    @abstractmethod
    def measure(self) -> dict[str, Tensor]:
        """Figures of each user or row, a row for each user, for `Algorithm.figures`; no learner uses them."""

    def blocks(self) -> Iterator[Tensor]:
        """Models [K, m], some columns at a time, where `Algorithm.figures` needs them beside what is measured."""
        yield from ()

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        """Of a state, with what each user predicts, [K, m]."""
        return state["W"]

    @abstractmethod
    def local_work(self, round: int, user: int) -> None:
        """One user's `local_update`, alone and without a trace in the state: for timing."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all that changes from round to round, pending updates included."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`, to the same bits."""


class Aggregator(ABC):
    """Aggregator side. All aggregators are handed the same bytes and come to the same models."""

    @abstractmethod
    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        """IVs [n, m + e] of the users who were heard to models [K, m + e′] of all; knows what to take for others."""

    def needs(self) -> NDArray[np.bool_] | None:
        """[K, K], row k: whose IVs user k's model is computed from, in any round; None: those of all.

        Where it says so, `part` computes some users' models from these IVs alone.

        Raises:
            ConfigError: it would be some, but settings such as that of participation stand against it.
        """
        return None

    def part(self, of: Ids, users: Ids, ivs: Tensor, rounds: int) -> Tensor:
        """The models [len(of), m + e′] of some users, to the same bits as `update` after so many rounds; keeps nothing.

        Args:
            of: whose models.
            users: whose IVs are known, all that the models need among them.
            ivs: theirs, [n, m + e].
            rounds: how many updates there were before.
        """
        raise NotImplementedError(f"{type(self).__name__} needs all IVs, so that no models are computed from some.")

    def tell(self) -> dict[str, Tensor]:
        """What `Algorithm.figures` needs to know of this side."""
        return {}

    def know(self, told: dict[str, Tensor]) -> None:
        """Take what another aggregator told."""
        for name, value in told.items():
            setattr(self, name, value.to(getattr(self, name)))

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all that changes from round to round."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`, to the same bits."""


class Algorithm(ABC):
    """Local update → IVs → global update → models, once per round.

    Attributes:
        regularized: by the problem's regularizer; False where it has its own, or none.
    """

    regularized: ClassVar[bool] = True
    problem: Problem
    seed: int
    participation: Participation
    users: Users
    aggregator: Aggregator

    def step(self, round: int) -> None:
        """A round in which nothing is lost; who takes no part gets a model as the others do."""
        users, ivs = self.users.local_update(round)
        if not self.users.numbers:  # nothing has to travel
            self.users.commit(users)
            return
        models = self.aggregator.update(users, ivs)
        self.users.commit(users)
        self.users.receive(np.arange(self.problem.K), models.expand(self.problem.K, -1))

    @property
    def q(self) -> int:
        """How many sums of each coordinate are all that users need of each other; 0 is nothing, or all IVs."""
        return 0

    def in_sums(self) -> None:
        """Change both sides, before the first round, to such that need no more of others than sums: to `Users.sums`.

        Models stay the same, bit for bit.

        Raises:
            ConfigError: this learner needs all IVs.
        """
        raise no_sums(type(self).__name__)

    def setup(self) -> tuple[Users, Aggregator] | None:
        """What has to be exchanged before the first round, in the shape of a round of no numbers, only overhead.

        Whoever makes an algorithm gets it ready to use: its constructor hands over in memory what would be exchanged.
        To play these two once, before the first round, leaves the same state, and counts the bits.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """What plays a part in this algorithm, by name."""
        loss, regularizer = self.problem.loss, self.problem.regularizer
        return {
            "algorithm": type(self).__name__.lower(),
            "loss": loss.name,
            "error_measure": loss.measure,
            "regularizer": snake_case(regularizer),
            "lam": regularizer.lam,
        }

    @property
    @abstractmethod
    def W(self) -> Tensor:
        """The users' models, [d, K]."""

    @property
    def Omega(self) -> Tensor | None:
        """Ω [K, K], where the algorithm learns one."""
        return None

    def settled(self, tolerance: float) -> bool:
        """Whether what the gap takes for given has come to rest, up to so much of the primal."""
        return True

    def metrics(self) -> dict[str, float]:
        """Figures of the state between two rounds, see `figures`."""
        return self.figures(self.users.measure(), self.users.blocks())

    def figures(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        """Of what all users measured, and `blocks` of their models: train and test error and R², see `Problem.figures`.

        An algorithm that has them puts primal, dual and gap before these.

        Raises:
            RangeError: some model has no finite numbers any more.
        """
        # (an error of no rows is no number either)
        if not all(each.isfinite().all() for name, each in measured.items() if not name.endswith("_error")):
            raise RangeError(
                "the models are no finite numbers any more: the learner diverges. Lower solver.step or solver.passes, "
                "raise lam, or scale the data."
            )
        figures = self._objective(measured, blocks)
        for split in ("train", "test"):
            figures |= self.problem.figures(split, measured[f"{split}_error"])
        return figures

    @abstractmethod
    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        """Primal, and dual and gap where there are such."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes from round to round, as tensors in plain dictionaries (torch.save, weights_only)."""
        return {"users": self.users.state_dict(), "aggregator": self.aggregator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, to the same bits."""
        self.users.load_state_dict(state["users"])
        if "aggregator" in state:  # which not every process needs
            self.aggregator.load_state_dict(state["aggregator"])

    def user_seconds(self, round: int, users: int = 3, repeats: int = 3) -> float:
        """Measured CPU time [s] of the slowest user's local update.

        The `users` users with most rows are timed, each alone, median of `repeats`: users work side by side, so a
        round waits for the slowest of them, not for their sum. Stragglers do less so as to be done by then.
        """
        counts = self.problem.here
        if not counts:
            return 0.0
        busiest = sorted(range(len(counts)), key=lambda k: -counts[k])[:users]
        self.users.local_work(round, busiest[0])  # whatever compiles or loads on first use is no part of a round
        return max(statistics.median(self._seconds(round, user) for _ in range(repeats)) for user in busiest)

    def _seconds(self, round: int, user: int) -> float:
        start = cpu_seconds()
        self.users.local_work(round, user)
        if self.problem.s.is_cuda:
            torch.cuda.synchronize()
        return cpu_seconds() - start


def no_sums(who: str) -> ConfigError:
    """What to say of a learner that needs more than sums."""
    return ConfigError(
        f"{who} needs all IVs, not only sums of them. communicator=sums is for algorithm=cocoa, fedavg, fedprox, ditto "
        "and pfedme, and for mocha and fedu with regularizer=mean; for others choose communicator=coded."
    )


def with_rows(old: Tensor, users: Ids, rows: Tensor) -> Tensor:
    """`old` with the rows of these users replaced: a copy, but `rows` themselves where they are those of all users."""
    return rows if len(users) == len(old) else old.index_copy(0, torch.from_numpy(users).to(old.device), rows)


def of_rows(rows: Tensor, users: Ids) -> Tensor:
    """The rows of these users: `rows` themselves where that is all of them."""
    return rows if len(users) == len(rows) else rows[torch.from_numpy(users).to(rows.device)]
