"""The exchange of a process if measurements are sums over users, and hosts keep their users' state to themselves.

Terms of figures travel in a round of sums of their own, over the same hosts, relays and server as the learner's, after
each round that is evaluated. Hosts send no figure and no state of a single user in the clear; `docs/guide/privacy.md`
lists what they send. The server learns the sums, so that it always has the aggregator's state.

L numbers in a user's terms of figures.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hmtl.communication import Communicator, Outcome
from hmtl.distributed.control import AGAIN
from hmtl.distributed.exchange import NODE_STATE, ProcessExchange
from hmtl.errors import EngineError, ProcessLost
from hmtl.mtl import Aggregator, Algorithm, Problem, Users
from hmtl.mtl.algorithms.base import NOBODY, Ids
from hmtl.topology import Moving, Topology
from hmtl.training.engine import RoundResult, Values

log = logging.getLogger(__name__)


class FigureUsers(Users):
    """User side of figures. All users measure, and keep nothing.

    Args:
        algorithm: what they measure.
        users: the users of this process, by their numbers in the network.
        contacts: who hears whom; None: every user sends its terms. Otherwise the user of a host that most relays hear
            sends the sum of the terms of all users of this host, so that relays see no terms of one user.
        numbers: L.
    """

    def __init__(self, algorithm: Algorithm, users: Ids, contacts: Topology | Moving | None, numbers: int) -> None:
        super().__init__()
        self.algorithm, self.hosted, self.contacts, self.numbers = algorithm, users, contacts, numbers

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        terms = self.algorithm.terms_of_figures().values()
        rows = torch.cat([each.flatten(1) for each in terms], dim=1)
        if self.contacts is None:
            return self.hosted, rows
        nearest = self.contacts.at(round).degrees[self.hosted].argmax()
        return self.hosted[[nearest]], rows.sum(0, keepdim=True)

    def receive(self, users: Ids, models: Tensor) -> None:
        pass

    def measure(self) -> dict[str, Tensor]:
        return {}

    def local_work(self, round: int, user: int) -> None:
        pass


class FigureAggregator(Aggregator):
    """Aggregator side of figures, which keeps the sum and tells users nothing.

    Attributes:
        users: whose terms are in the sum; nobody if it is unknown.
        total: the sum of terms, int64 [L].
    """

    def __init__(self) -> None:
        super().__init__()
        self.users, self.total = NOBODY, torch.empty(0, dtype=torch.int64)

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        self.users, self.total = users, ivs[0].clone()
        return torch.zeros_like(ivs)


class SumsOnlyExchange(ProcessExchange):
    """As `ProcessExchange`, for `metrics=sums`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._kept: Tensor | None = None  # the best common model [m], at the server
        self._shapes: dict[str, list[int]] = {}  # of a user's terms of figures; {}: not yet known
        self._of_figures: Communicator | None = None  # plays rounds of figures, once there have been any
        self._begins = False  # whether the users of this process begin from the common model

    def start(
        self,
        algorithm: Algorithm,
        communicator: Communicator,
        resumes: bool,
        load_checkpoint: Callable[[], Mapping[str, Any]],
    ) -> bool:
        """As `Exchange.start`.

        Raises:
            EngineError: a host comes back, but its users' state went with the process that died.
        """
        if not self.resumable(algorithm):
            self._remedy = "With metrics=sums, their users' state is lost with them: start the run again."
            if self._comes_back and len(self._placement.users):
                raise EngineError(
                    f"{self._placement.name} cannot come back: with metrics=sums, only the process that ended had the "
                    "state of its users, who stay absent. Start the whole run again to have them back."
                )
        self._begins = super().start(algorithm, communicator, resumes, load_checkpoint)
        return self._begins

    def _gather_tasks(self, problem: Problem, communicator: Communicator) -> None:
        """Collect the scaling of rows if it is the same for all users: models of the server need it."""
        own = problem.tasks[:1]
        scaling = own[0].scaling if own and own[0].preprocessing.is_shared else None
        received = self._gather(communicator, {"scaling": scaling})
        if self.leads and (scaling := self._of_all_hosts(received)[0]["scaling"]):
            problem.everybody = [
                replace(task, prepared=replace(task.prepared, scaling=scaling)) if task.prepared else task
                for task in problem.everybody
            ]

    def gather_setup(self, users: Users, aggregator: Aggregator, communicator: Communicator) -> None:
        self._gather(communicator, {})  # the server has aggregated what the network brought it

    def gather_round(
        self, algorithm: Algorithm, communicator: Communicator, outcome: Outcome, user_seconds: float, evaluate: bool
    ) -> RoundResult | None:
        figures = self._figures_of_sums(algorithm, communicator) if evaluate else {}
        result = super().gather_round(algorithm, communicator, outcome, user_seconds, evaluate=False)
        return result and replace(result, figures=figures)

    def _figures_of_sums(self, algorithm: Algorithm, communicator: Communicator) -> dict[str, float]:
        """Play a round of figures, and return those of the users whose terms reached the server; elsewhere nothing."""
        placement, number, secure = self._placement, communicator.ledger.rounds - 1, communicator.recipe.secure
        self._shapes = self._shapes or self._told_shapes(algorithm)
        lengths = [torch.Size(shape).numel() for shape in self._shapes.values()]
        if self._of_figures is None:
            all_users = secure and replace(secure, sampled=None)
            recipe, links = replace(communicator.recipe, wire=None, secure=all_users), partial(self.links, figures=True)
            self._of_figures = Communicator(self._contacts, communicator.network, recipe, links)
        users = FigureUsers(algorithm, placement.users, None if secure else self._contacts, sum(lengths))
        aggregator = FigureAggregator()
        self._of_figures.round(number, users, aggregator)
        if not self.leads:
            return {}
        counted = len(aggregator.users)
        if number == 0 and counted < (placement.K if secure else len(placement.hosts)):
            raise ProcessLost(
                "too few users answered, so that the first figures cannot be unmasked, or are not of all users.", AGAIN
            )
        if not counted:
            log.warning("figures of this round are unknown: no sum of them arrived, or it cannot be unmasked")
            return {}
        parts = zip(self._shapes.items(), torch.split(aggregator.total, lengths), strict=True)
        return algorithm.figures_of_sums({name: part.view(shape) for (name, shape), part in parts})

    def _told_shapes(self, algorithm: Algorithm) -> dict[str, list[int]]:
        """Return the shapes of a user's terms of figures, which only a host can compute."""
        terms = algorithm.terms_of_figures() if len(self._placement.users) else {}
        values: Values = {"shapes": {name: list(each.shape[1:]) for name, each in terms.items()}}
        received = self._control.gather(values)
        if self.leads:
            values = {"shapes": self._of_all_hosts(received)[0]["shapes"]}
        shapes: dict[str, list[int]] = self.broadcast(values)["shapes"]
        return shapes

    def resumable(self, algorithm: Algorithm) -> bool:
        return not algorithm.users.personal

    def _own_state(self, algorithm: Algorithm, communication: Values) -> Values:
        is_host = len(self._placement.users) > 0
        return {NODE_STATE: {} if is_host else communication[NODE_STATE], "users": {}}

    def _from_checkpoint(self, name: str) -> Values:
        return {NODE_STATE: {}, "users": {}}

    def reconciled(self, state: Values, algorithm: Algorithm) -> Values:
        """Return a state without what nodes know of each other, if a host may begin anew; otherwise the state as it is.

        What lost users have added to sums stays in the aggregator's state.
        """
        if not self.resumable(algorithm):
            return state
        communication = state["communicator"] | {NODE_STATE: {name: {} for name in self._placement.names}}
        return state | {"communicator": communication, "outdated": True}

    def gather_state(self, algorithm: Algorithm, communicator: Communicator) -> Values | None:
        """As in `ProcessExchange`, without users; with the model from which hosts begin that know no other."""
        state = super().gather_state(algorithm, communicator)
        if state is not None:
            state["shapes"] = self._shapes
        if state is not None and self.resumable(algorithm):
            state["common"] = {name: rows[0] for name, rows in algorithm.aggregator.agree({}).items()} | (
                {} if self._kept is None else {"kept": self._kept}
            )
        return state

    def scatter_state(
        self, state: Mapping[str, Any] | None, algorithm: Algorithm, communicator: Communicator
    ) -> Mapping[str, Any]:
        part = super().scatter_state(state, algorithm, communicator)
        self._shapes = part["shapes"]
        users, nodes = algorithm.users.state_dict(), part["communicator"][NODE_STATE]
        if self._begins and "common" in part:
            common = part["common"]
            users |= {name: common.get(name, common["averaged"]).expand_as(rows) for name, rows in users.items()}
            self._kept, nodes = common.get("kept"), {}
        elif len(self._placement.users) and "outdated" not in part:
            nodes = communicator.state_dict()[NODE_STATE]
        self._begins = False
        return {
            **part,
            "algorithm": part["algorithm"] | {"users": users},
            "communicator": part["communicator"] | {NODE_STATE: nodes},
        }

    def keep(self, algorithm: Algorithm) -> None:
        super().keep(algorithm)
        if self.leads:
            self._kept = algorithm.common

    def models(self, algorithm: Algorithm, state: Mapping[str, Any] | None) -> Tensor | None:
        """Return the common model for each user [m, K]; None if models are not the same, or rows are scaled by user."""
        model = algorithm.common if self._kept is None else self._kept
        if model is None or not algorithm.problem.everybody[0].preprocessing.is_shared:
            return None
        return model[:, None].expand(-1, algorithm.problem.K)

    def own_models(self, algorithm: Algorithm) -> tuple[str, Tensor] | None:
        tasks = algorithm.problem.tasks
        if not tasks or (algorithm.common is not None and tasks[0].preprocessing.is_shared):
            return None  # the server saves the common model
        return self._placement.name.replace(" ", "-"), algorithm.users.handed_out(algorithm.users.state_dict()).T
