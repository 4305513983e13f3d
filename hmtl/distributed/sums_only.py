"""The exchange of a process if measurements are sums over users, and hosts keep their users' state to themselves.

Beside the messages of the network, hosts send no figure and no state of a single user; `docs/guide/privacy.md` lists
what they send. The server learns the sums, so that it always has the aggregator's state.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hmtl.communication import Communicator, Outcome
from hmtl.distributed.control import AGAIN
from hmtl.distributed.exchange import NODE_STATE, ProcessExchange
from hmtl.distributed.masked_figures import MaskingFigures, UnmaskingFigures
from hmtl.errors import EngineError, ProcessLost
from hmtl.mtl import Aggregator, Algorithm, Problem, Users
from hmtl.training.engine import RoundResult, Values


class SumsOnlyExchange(ProcessExchange):
    """As `ProcessExchange`, for `metrics=sums`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._kept: Tensor | None = None  # the best common model [m], at the server
        self._masking: MaskingFigures | UnmaskingFigures | None = None  # in this round, with secure sums
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
        secure = communicator.recipe.secure
        secure = replace(secure, sampled=None) if secure else None  # all users measure
        self._masking = None
        if secure and evaluate and len(self._placement.users):
            self._masking = MaskingFigures(self._control, self._placement, secure)
        elif secure and evaluate and self.leads:
            self._masking = UnmaskingFigures(self._control, self._placement, secure)
            self._masking.introduce()
        return super().gather_round(algorithm, communicator, outcome, user_seconds, evaluate)

    def _measured_here(self, algorithm: Algorithm) -> Values:
        terms = algorithm.terms_of_figures()
        rows = torch.cat([each.flatten(1) for each in terms.values()], dim=1)  # int64 [n, L], a row for each user
        total = self._masking.masked(rows) if isinstance(self._masking, MaskingFigures) else rows.sum(0)
        if total is None:
            return {}
        return {"sum": total, "shapes": {name: list(each.shape[1:]) for name, each in terms.items()}}

    def _figures(
        self, algorithm: Algorithm, measured: dict[str, Values], first: bool
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """As in `ProcessExchange`, of the users of the hosts that have sent any; users of late hosts are left out."""
        sent = self._of_all_hosts(measured) if first else list(measured.values())
        sums = {name: values["sum"] for name, values in measured.items()}
        if isinstance(self._masking, UnmaskingFigures):
            total = self._masking.total(sums)
        else:
            total = torch.stack(list(sums.values())).sum(0) if sums else None
        if total is None and first:
            raise ProcessLost("too few users answered, so that the first figures cannot be unmasked.", AGAIN)
        if total is None:
            return {}, {}
        shapes = sent[0]["shapes"]
        parts = torch.split(total, [torch.Size(shape).numel() for shape in shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return algorithm.figures_of_sums(named), {}

    def _send_blocks(self, users: Users) -> None:
        """Send no models; with secure sums, help to unmask that of figures."""
        if isinstance(self._masking, MaskingFigures):
            self._masking.reveal()

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
        if state is not None and self.resumable(algorithm):
            state["common"] = {"W": algorithm.common} | ({} if self._kept is None else {"kept": self._kept})
        return state

    def scatter_state(
        self, state: Mapping[str, Any] | None, algorithm: Algorithm, communicator: Communicator
    ) -> Mapping[str, Any]:
        part = super().scatter_state(state, algorithm, communicator)
        users, nodes = algorithm.users.state_dict(), part["communicator"][NODE_STATE]
        if self._begins and "common" in part:
            common = part["common"]
            users |= {name: common.get(name, common["W"]).expand_as(rows) for name, rows in users.items()}
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
