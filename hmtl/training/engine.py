"""Where the nodes of a run live: all in this process, or elsewhere, too; see `hmtl.distributed.engine`."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from hmtl.communication import Communicator, InProcess, LinkLedger, Links, Network, Outcome
from hmtl.data import Task, Wanted
from hmtl.mtl import Aggregator, Algorithm, Users
from hmtl.topology import Moving, Topology

Word = dict[str, Any]
"""What processes tell each other, by name."""
Load = Callable[[Wanted | None], tuple[Task, ...]]
"""Gives all tasks, and holds at least the rows that are wanted."""


class Engine:
    """All nodes in this process.

    Attributes:
        leads: whether this process keeps the results.
        whole: whether all users are here.
    """

    leads = True
    whole = True

    def tasks(self, load: Load, K: int | None, H: int) -> tuple[Task, ...]:
        """All users' tasks, with the rows that belong here."""
        return load(None)

    def join(self, contacts: Topology | Moving, network: Network) -> Callable[[LinkLedger], Links]:
        """Take a place in the network; gives the links that lead from there."""
        return InProcess

    def together(self) -> AbstractContextManager[None]:
        """Go on when all processes are through with the block; an error of one of them is raised in all."""
        return nullcontext()

    def side(self, users: Users) -> Users:
        """These users as the network knows them."""
        return users

    def introduce(self, algorithm: Algorithm, communicator: Communicator, before: Callable[[], Word]) -> None:
        """Where results are kept, learn of the users what reports are made with.

        Args:
            before: gives what was last saved, for those who are gone.
        """

    def learn(self, users: Users, aggregator: Aggregator, communicator: Communicator) -> None:
        """Where results are kept, learn what a set-up taught others."""

    def measured(
        self, algorithm: Algorithm, communicator: Communicator, outcome: Outcome, user_seconds: float, evaluate: bool
    ) -> Word | None:
        """`figures` of a round and what was `measured` if it is to be evaluated, else nothing for these; how many
        `users` counted, and `user_seconds` of the slowest; where results are kept.
        """
        measured = algorithm.users.measure() if evaluate else {}
        return {
            "figures": algorithm.figures(measured, algorithm.users.blocks()) if evaluate else {},
            "measured": measured,
            "users": len(outcome.users),
            "user_seconds": user_seconds,
        }

    def agree(self, word: Word) -> Word:
        """The word of the process that leads, for all."""
        return word

    def state(self, algorithm: Algorithm, communicator: Communicator) -> Word | None:
        """State of algorithm and communicator with that of all processes; None where no results are kept."""
        return {"algorithm": algorithm.state_dict(), "communicator": communicator.state_dict()}

    def mine(self, state: Word, algorithm: Algorithm, communicator: Communicator) -> Word:
        """What this process needs of that, the inverse."""
        return state

    def models(self, algorithm: Algorithm, state: Mapping[str, Any] | None) -> Tensor:
        """All users' models [m, K]; `state` is the last one, where results are kept."""
        return algorithm.W

    def close(self) -> None:
        """Leave."""
