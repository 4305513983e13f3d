"""Where the nodes of a run live, and what their processes exchange beside the messages of the network.

The classes here are those of a single process, which plays all nodes and has nothing to exchange: a null object for
"not distributed". `hmtl.distributed.engine` has their counterparts for one process per node.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hmtl.communication import Communicator, InProcess, LinkLedger, Links, Network, Outcome
from hmtl.communication.nodes.host import UserSide
from hmtl.data import Task, Wanted
from hmtl.mtl import Aggregator, Algorithm, Users
from hmtl.mtl.algorithms.base import Ids
from hmtl.topology import Moving, Topology

Values = dict[str, Any]
"""Numbers, strings, tensors and dictionaries of these, by name: what processes send each other."""
Load = Callable[[Wanted | None], tuple[Task, ...]]
"""Loads the tasks of all users, with at least the rows of the wanted ones."""


@dataclass(frozen=True)
class RoundResult:
    """What the leading process knows of a round.

    Attributes:
        users: number of users whose update counted.
        user_seconds: CPU time of the slowest user's local update [s].
        figures: see `Algorithm.figures`; empty if the round is not evaluated.
        user_figures: see `Users.measure`, a row for each user; empty if the round is not evaluated.
    """

    users: int
    user_seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    user_figures: dict[str, Tensor] = field(default_factory=dict)


class Exchange:
    """What the processes of a run exchange for reports and checkpoints; nothing, as there is only one process.

    The first process leads: it measures, saves checkpoints and decides when to stop.
    """

    leads = True
    whole = True  # all users live in this process
    nodes: Sequence[str] = ()  # those of other processes

    def links(self, ledger: LinkLedger) -> Links:
        """Return the links from the nodes of this process to all others."""
        return InProcess(ledger)

    def wrap_users(self, users: Users) -> UserSide:
        """Return the user side as the network addresses it: by the users' numbers in the whole network."""
        return users

    def start(
        self,
        algorithm: Algorithm,
        communicator: Communicator,
        resumes: bool,
        load_checkpoint: Callable[[], Mapping[str, Any]],
    ) -> bool:
        """Collect what the report needs of each user's data, and return whether the run continues from a state.

        Args:
            algorithm, communicator: of the run.
            resumes: whether the leading process has a checkpoint to continue from.
            load_checkpoint: loads the last checkpoint, which replaces the state of processes that die.
        """
        return resumes

    def gather_setup(self, users: Users, aggregator: Aggregator, communicator: Communicator) -> None:
        """Bring the leading process's aggregator to the state after a set-up, whichever node aggregated."""

    def gather_round(
        self, algorithm: Algorithm, communicator: Communicator, outcome: Outcome, user_seconds: float, evaluate: bool
    ) -> RoundResult | None:
        """Return what was measured and sent in a round; None in all processes but the leading one."""
        if not evaluate:
            return RoundResult(len(outcome.users), user_seconds)
        return RoundResult(len(outcome.users), user_seconds, *self._measured(algorithm))

    def _measured(self, algorithm: Algorithm) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return the figures, and the measures of each user."""
        measured = algorithm.users.measure()
        return algorithm.figures(measured, algorithm.users.blocks()), measured

    def broadcast(self, values: Values) -> Values:
        """Return the values of the leading process in all processes."""
        return values

    def share_out(self, draw: Callable[[], Ids]) -> Ids:
        """Let the leading process, which plays the server, draw users; return those of them in this process."""
        return draw()

    def gather_state(self, algorithm: Algorithm, communicator: Communicator) -> Values | None:
        """Return the state of algorithm and communicator; None in all processes but the leading one."""
        return {"algorithm": algorithm.state_dict(), "communicator": communicator.state_dict()}

    def waiting(self, stop: Callable[[], bool]) -> bool:
        """Return whether processes came back and wait to take part.

        If too few processes are left, wait until some come back or `stop()` is true.
        """
        return False

    def resumable(self, algorithm: Algorithm) -> bool:
        """Return whether a run can continue from a state that was gathered before."""
        return True

    def keep(self, algorithm: Algorithm) -> None:
        """Keep the present models, the best so far."""
        algorithm.users.keep()

    def reconciled(self, state: Values, algorithm: Algorithm) -> Values:
        """Return a state whose parts agree, for one whose parts are of different rounds; see `Algorithm.reconciled`."""
        return state

    def scatter_state(
        self, state: Mapping[str, Any] | None, algorithm: Algorithm, communicator: Communicator
    ) -> Mapping[str, Any]:
        """Return this process's part of the `state` of a checkpoint, which only the leading process has."""
        assert state is not None
        return state

    def models(self, algorithm: Algorithm, state: Mapping[str, Any] | None) -> Tensor | None:
        """Return all users' models [m, K], `state` being the last one that was gathered; None: hosts keep them."""
        assert state is not None, "only the leading process holds the state of all users"
        return algorithm.users.handed_out(state["algorithm"]["users"]).T

    def finish(self) -> None:
        """Tell processes that are coming back that there are no more rounds."""

    def own_models(self, algorithm: Algorithm) -> tuple[str, Tensor] | None:
        """Return this node's name and the models [m, K] of its users if no other process gets them."""
        return None

    def missing(self) -> Collection[str]:
        """Return the nodes whose processes are late or lost."""
        return ()

    def close(self) -> None:
        """Leave the other processes."""


class SumsOnly(Exchange):
    """The exchange of a single process that measures no user by itself, only sums over all."""

    def _measured(self, algorithm: Algorithm) -> tuple[dict[str, float], dict[str, Tensor]]:
        sums = {name: terms.sum(0) for name, terms in algorithm.terms_of_figures().items()}
        return algorithm.figures_of_sums(sums), {}


class Engine:
    """All nodes in this process.

    Attributes:
        leads: whether this process leads, which reads and writes the results.
    """

    leads = True

    def load_tasks(self, load: Load, K: int | None, H: int) -> tuple[Task, ...]:
        """Return the tasks of K users (None: all in the data), with the rows of those who live in this process."""
        return load(None)

    def barrier(self) -> AbstractContextManager[None]:
        """Continue once all processes have left the block; an error in one of them is raised in all."""
        return nullcontext()

    def connect(self, contacts: Topology | Moving, network: Network, only_sums: bool = False) -> Exchange:
        """Connect this process to the others, after `load_tasks`; `only_sums`: no user is measured by itself."""
        return SumsOnly() if only_sums else Exchange()
