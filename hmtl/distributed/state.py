"""State of a run over processes: gathered from all of them for a checkpoint, and handed back when a run resumes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hmtl.communication import Communicator
from hmtl.communication.messages import SERVER, Users
from hmtl.distributed.control import Control
from hmtl.distributed.placement import Placement
from hmtl.errors import CheckpointError, EngineError
from hmtl.mtl import Algorithm
from hmtl.training.engine import Values

NODE_STATE = "nodes"  # a process's answer has it, whatever else


def _never_saved() -> Mapping[str, Any]:
    raise EngineError("a process was lost before the first checkpoint. Start the run again.")


class StateExchange:
    """One process's part in gathering and handing back the state of a run.

    Args:
        placement: who lives where.
        control: how values travel.

    Attributes:
        load_checkpoint: returns the last checkpoint; the state of a lost process is taken from there.
    """

    def __init__(self, placement: Placement, control: Control) -> None:
        self.placement, self.control = placement, control
        self.load_checkpoint: Callable[[], Mapping[str, Any]] = _never_saved

    def load_users(self) -> dict[str, Tensor]:
        """Return the users' state in the last checkpoint."""
        users: dict[str, Tensor] = self.load_checkpoint()["algorithm"]["users"]
        return users

    def gather(self, algorithm: Algorithm, communicator: Communicator, holders: list[str]) -> Values | None:
        """Return the state of all processes at the leading one, None elsewhere.

        The leading process asks one process after the other, so that it never receives more than one state at a time.

        Args:
            holders: names of the aggregators that hold the present state.

        Raises:
            EngineError: no aggregator with the present state answers.
        """
        communication = communicator.state_dict()
        if not self.control.leads:
            self._answer(algorithm, communication[NODE_STATE])
            return None
        if not holders and communicator.planner.preferred:  # no round has been aggregated: all relays hold the same
            holders = self.placement.relays
        aggregator: Values | None = None
        if not holders or not algorithm.users.numbers:
            aggregator = algorithm.aggregator.state_dict()
        nodes: Values = {SERVER: communication[NODE_STATE]}
        users = _Rows(self.placement.K)
        for name in self.placement.others:
            asked = name in holders and aggregator is None
            self.control.send(name, {"send state": True, "with aggregator": asked})
            answer = self.control.receive([name], key=NODE_STATE).get(name) or self._saved(name)
            nodes[name] = answer[NODE_STATE]
            users.put(self.placement.users_of(name), answer["users"])
            if asked and _version(nodes, name) == _version(nodes, SERVER):  # it has not missed the last verdict
                aggregator = answer["aggregator"]
        for name in self.placement.others:
            self.control.send(name, {"send state": False})
        if aggregator is None:
            raise EngineError(
                f"no aggregator ({', '.join(holders)}) sent the state that later rounds need. Restart from the last "
                "checkpoint with resume=PATH."
            )
        sides = {"users": users.tensors, "aggregator": aggregator}
        return {"algorithm": sides, "communicator": communication | {NODE_STATE: nodes}}

    def scatter(self, state: Values, algorithm: Algorithm, communicator: Communicator) -> Values:
        """Return the part of a gathered state that this process needs: its users' rows, and its node's state.

        Raises:
            CheckpointError: the state is of another number of processes.
        """
        nodes, sides = state["communicator"][NODE_STATE], state["algorithm"]
        placement = self.placement
        if set(nodes) != set(placement.names):
            raise CheckpointError(
                f"the checkpoint is of {len(nodes)} processes, but this run has {len(placement.names)}: start as many."
            )
        part: Values = {"users": _rows_of(sides["users"], placement.users)}
        algorithm.aggregator.load_figure_state(
            {key: sides["aggregator"][key] for key in algorithm.aggregator.figure_state()}
        )
        if communicator.planner.preferred:  # the other relays get the aggregator's state in the next round
            versions = {name: _version(nodes, name) for name in placement.relays if nodes[name]}
            holds = placement.name in versions and versions[placement.name] == max(versions.values())
        else:
            holds = self.control.leads
        if holds:
            part["aggregator"] = sides["aggregator"]
        return {"algorithm": part, "communicator": state["communicator"] | {NODE_STATE: nodes[placement.name]}}

    def _answer(self, algorithm: Algorithm, nodes: Values) -> None:
        """Send this process's state each time the leading process asks for it."""
        while (question := self.control.receive_from_leader())["send state"]:
            users = algorithm.users.state_dict() if len(self.placement.users) else {}
            aggregator = algorithm.aggregator.state_dict() if question["with aggregator"] else None
            self.control.send(SERVER, {"users": users, "aggregator": aggregator, NODE_STATE: nodes})

    def _saved(self, name: str) -> Values:
        """Return the state of a process that does not answer, from the last checkpoint."""
        checkpoint = self.load_checkpoint()
        users = _rows_of(checkpoint["algorithm"]["users"], self.placement.users_of(name))
        return {"users": users, NODE_STATE: checkpoint["communicator"][NODE_STATE][name], "aggregator": None}


class _Rows:
    """The users' state of all hosts, put together host by host.

    Args:
        K: number of users.
    """

    def __init__(self, K: int) -> None:
        self.K = K
        self.tensors: dict[str, Tensor] = {}

    def put(self, users: Users, state: Mapping[str, Tensor]) -> None:
        """Add the state of some users: rows for each of them, and numbers that all share (the largest counts)."""
        for key, rows in state.items():
            if not rows.ndim:
                self.tensors[key] = torch.maximum(rows, self.tensors.get(key, rows))
                continue
            if key not in self.tensors:
                self.tensors[key] = rows.new_empty(self.K, *rows.shape[1:])
            self.tensors[key][users] = rows


def _rows_of(state: Mapping[str, Tensor], users: Users) -> dict[str, Tensor]:
    """Return the state of some users out of that of all users."""
    return {key: rows[users] if rows.ndim else rows for key, rows in state.items()}


def _version(nodes: Values, name: str) -> int:
    """Return how many aggregated rounds a node knows of."""
    return int(nodes[name][name]["version"]) if name in nodes[name] else 0
