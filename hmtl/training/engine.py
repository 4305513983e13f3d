"""Where the nodes of a run are: all of them in this process. `hmtl.distributed` has engines for nodes elsewhere."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmtl.communication import Communicator, InProcess
from hmtl.communication.accounting.ledger import Sent
from hmtl.communication.communicators.base import MakeLinks
from hmtl.data import Task, Wanted
from hmtl.mtl import Aggregator, Algorithm, Users
from hmtl.training.accountant import Accountant

Values = dict[str, Any]
"""Numbers, strings, tensors and dictionaries of these, by name."""
Load = Callable[[Wanted | None], tuple[Task, ...]]
"""Loads the tasks of all users, with at least the rows of the wanted ones (None: of all)."""
Setups = Sequence[tuple[Users, Aggregator]]
"""Both sides of each exchange before the first round."""
Shapes = Mapping[str, torch.Size]
"""The shapes of a user's terms of figures, by name."""


def keep_models(users: Users) -> None:
    """Keep the models that users predict with, the best so far, in the buffer `kept` [K, m]."""
    users.register_buffer("kept", users.predictors(users.state_dict()))


def handed_out(users: Users, state: dict[str, Tensor]) -> Tensor:
    """Return the models [K, m] that a run hands out, given a `state_dict` of users: the kept ones, or the present."""
    return state["kept"] if "kept" in state else users.predictors(state)


@dataclass(frozen=True)
class Training:
    """What is trained, and how its messages travel.

    Attributes:
        algorithm: what is learned; its two sides meet only through the communicator.
        communicator: how messages travel, what they cost and how long they take.
        setups: further set-ups before the algorithm's own.
        accountant: draws who is sampled, reports ε, and ends training before ε exceeds its limit; None: no privacy.
        only_sums: whether nobody but its host knows a figure of a single user.
        secret_samples: whether users are sampled from the operating system's entropy, not by the seed.
        folder: of the run, where hosts may keep what only they know.
    """

    algorithm: Algorithm
    communicator: Communicator
    setups: Setups = ()
    accountant: Accountant | None = None
    only_sums: bool = False
    secret_samples: bool = False
    folder: Path = Path()

    def all_setups(self) -> Setups:
        """Return both sides of all set-ups."""
        setup = self.algorithm.setup()
        return [*self.setups, *([setup] if setup else [])]


Build = Callable[[Sequence[Task], MakeLinks], Training]
"""Builds what is trained on these tasks, some of which may be without rows."""


class Engine:
    """All nodes in this process.

    Attributes:
        nodes, hosts: names of the nodes elsewhere, which may be lost, and of the hosts among them.
    """

    nodes: Sequence[str] = ()
    hosts: Sequence[str] = ()

    def training(self, load: Load, build: Build, H: int, K: int | None = None) -> Training:
        """Return what is trained, on a network of H relays and of K users; None: as many as are loaded."""
        return build(load(None), InProcess)

    def gather(self) -> None:
        """Bring the state of aggregators elsewhere here."""

    def state_dict(self) -> Values:
        """Return what nodes elsewhere have to know beside the state of algorithm and communicator."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Prepare nodes elsewhere for the state that follows."""

    def waiting(self, stop: Callable[[], bool], every_host: bool = False) -> bool:
        """Return whether nodes came back that wait for the present state.

        If too few nodes are left, or a host is missing and `every_host` is true, wait until they come back or `stop()`
        is true.
        """
        return False

    def sent_late(self, stop: Callable[[], bool]) -> list[Sent]:
        """Wait a while for late answers, but not once `stop()` is true, and return what their senders sent."""
        return []

    def missing(self) -> Collection[str]:
        """Return the nodes that are late or lost."""
        return ()

    def figure_shapes(self, algorithm: Algorithm) -> Shapes:
        """Return the shapes of a user's terms of figures, see `Algorithm.terms_of_figures`."""
        return {name: each.shape[1:] for name, each in algorithm.terms_of_figures().items()}

    def keep(self, algorithm: Algorithm) -> None:
        """Keep the users' present models, the best so far."""
        keep_models(algorithm.users)

    def models(self, algorithm: Algorithm, state: Mapping[str, Any]) -> Tensor | None:
        """Return the models [m, K] that a run hands out, given its last state; None: hosts keep them."""
        return handed_out(algorithm.users, state["algorithm"]["users"]).T

    def finish(self) -> None:
        """Tell nodes elsewhere that there are no more rounds."""

    def close(self) -> None:
        """Leave the nodes elsewhere."""
