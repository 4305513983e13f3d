"""Networks that users train: what FedAvg, its relatives and FedU share.

K users, m numbers of a network (parameters, and buffers that training changes); one user per row. An IV is the user's
new model, [m].
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hmtl.mtl.algorithms.base import (
    NOBODY,
    Aggregator,
    Algorithm,
    Ids,
    MessageKind,
    Users,
    not_bounded,
    of_rows,
    with_rows,
)
from hmtl.mtl.networks.copies import copies
from hmtl.mtl.networks.flat import FlatModel, MakeModel
from hmtl.mtl.participation import Participation
from hmtl.mtl.privacy import Privacy
from hmtl.mtl.problem import AT_ONCE, Problem, Rows
from hmtl.mtl.solvers.networks import NetworkSolver, NetworkSubproblem, Proximal
from hmtl.mtl.sums import Terms


class Sending(nn.Module):
    """How users encode what they send and decode what they receive; by default, both are models.

    Args:
        numbers, row_bits: as in `Users`.
    """

    averages: torch.dtype | None = None
    """See `Users`."""

    def __init__(self, numbers: int, row_bits: tuple[int, int, int] = (0, 0, 0)) -> None:
        super().__init__()
        self.numbers = numbers
        self.row_bits = row_bits

    def encode(self, users: Ids, ivs: Tensor, last: Tensor) -> Tensor | Terms:
        """Return the rows to send for IVs [n, m + e], given the last models [n, m] that these users received."""
        return ivs

    def commit(self, users: Ids) -> None:
        """Record that what these users encoded last reached an aggregator."""

    def take(self, users: Ids, numbers: Tensor) -> None:
        """Take the answer [n, e] to the set-up."""

    def decode(self, users: Ids, rows: Tensor) -> Tensor:
        """Return the models [n, m] of these users from the rows that they received."""
        return rows


@dataclass(frozen=True)
class LocalTraining:
    """What the users' local training needs; see `NetworkAlgorithm`."""

    problem: Problem
    solver: NetworkSolver
    model: FlatModel
    seed: int
    participation: Participation
    privacy: Privacy | None = None


class NetworkUsers(Users):
    """User side: one network per user. A local update leaves the models `W` [K, m] unchanged.

    Args:
        local: how users train.
        sending: what they send and receive.
        pull: weight of the proximal term (pull/2)‖w − w_start‖² in a user's objective, w_start being the model with
            which the round began.
        start: what users hold before the first round instead of the network's first parameters.
    """

    W: Tensor

    def __init__(self, local: LocalTraining, sending: Sending, pull: float = 0.0, start: Tensor | None = None) -> None:
        super().__init__()
        self.local = local
        self.problem = local.problem
        self.model = local.model
        self.sending = sending
        self.pull = pull
        self.numbers, self.row_bits, self.averages = sending.numbers, sending.row_bits, sending.averages
        self.rows = self.problem.rows_in(self.model.start.dtype)
        self.usual = local.solver.steps(self.problem.here)  # steps of a user who is not a straggler [K]
        self.start = self.model.start if start is None else start
        self.data = self.problem.datasets(self.model.start.dtype, self.model.shape)
        self.register_buffer("W", self.start.expand(len(self.problem.users), -1))

    @property
    def origin(self) -> Tensor:
        return self.start

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor | Terms]:
        participation, problem, seed = self.local.participation, self.problem, self.local.seed
        budgets = participation.budgets(self.usual, seed, round, problem.users, problem.K, self.sample)
        budgets[idle] = 0
        ivs, *own = self._train(round, slice(None), self.rows, budgets)
        users = budgets.numpy().nonzero()[0]
        self._hold(users, own)
        rows = self.sending.encode(users, of_rows(ivs, users), of_rows(self.W, users))
        if self.local.privacy:
            rows = self.local.privacy.protected(problem.grid, round, problem.users[users], rows[:])
        return users, rows

    def local_work(self, round: int, user: int) -> None:
        one = slice(user, user + 1)
        self._train(round, one, self.rows.of(user), self.usual[one])

    def commit(self, users: Ids) -> None:
        self.sending.commit(users)

    def receive(self, users: Ids, models: Tensor) -> None:
        if len(users):
            self.W = with_rows(self.W, users, self.sending.decode(users, models))

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        """Return the IVs [n, m + e] of these users, and further models [n, m] that do not travel.

        Args:
            round: number of the round.
            users: the users who train.
            rows: their training rows.
            budgets: number of steps of each [n].
        """
        W, order = self.W[users], self._order(round, users, rows)
        proximal = Proximal(self.pull, W) if self.pull else None
        return (self._steps(users, rows, W, order, budgets, round, proximal=proximal),)

    def _hold(self, users: Ids, own: list[Tensor]) -> None:
        """Keep the further models of `_train`, [K, m] each, pending for these users."""

    def _order(self, number: int, users: slice, rows: Rows) -> Tensor:
        """Return the minibatches of these users; `number` names the random order."""
        return self.local.solver.draw(self.local.seed, number, self.problem.users[users], rows.counts)

    def _steps(
        self,
        users: slice,
        rows: Rows,
        W: Tensor,
        order: Tensor,
        budgets: Tensor,
        round: int,
        time: int = 0,
        **terms: Any,
    ) -> Tensor:
        """Return the models [n, m] after the solver's steps from W [n, m].

        `time` counts the calls in a round, and `terms` are further attributes of the `NetworkSubproblem`.
        """
        solver, stream = self.local.solver, (self.local.seed, "dropout", round, time)
        start = NetworkSubproblem(self.model, W, self.problem.users[users], round, stream, self.data[users], **terms)
        models: Tensor = solver(self.problem.loss, rows, start, order, budgets)
        return models

    def measure(self) -> dict[str, Tensor]:
        """Return Σ_j s_kj ℓ, and the measures on the rows of each split, of the models that users predict with [K]."""
        models = self.predictors(dict(self.named_buffers()))
        train = self._predictions("train", models)
        measured = {"losses": self.problem.losses(train)} | self.problem.measure("train", train)
        for split in self.problem.splits[1:]:
            measured |= self.measured_on(split, models)
        return measured

    def measured_on(self, split: str, models: Tensor, prefix: str = "") -> dict[str, Tensor]:
        """Return the measures on the rows of a split, [K] each, of models [K, m]; `prefix` begins their names."""
        measures = self.problem.measure(split, self._predictions(split, models))
        return {prefix + name: values for name, values in measures.items()}

    @torch.no_grad()
    def _predictions(self, split: str, models: Tensor) -> Tensor:
        """Return the predictions [N] or, with several outputs, [N, C]."""
        self.model.module.eval()
        x_train = torch.split(self.rows.X, list(self.rows.counts))
        x = x_train if split == "train" else [getattr(task, f"x_{split}") for task in self.problem.tasks]
        predictions = [models.new_empty(0, *[self.model.C][: self.model.C > 1])]
        for w, own in zip(models, x, strict=True):
            one = copies(self.model, w[None])
            predictions += [one.predict(part.to(w)[None])[0] for part in torch.split(own, AT_ONCE)]
        return torch.cat(predictions)


class StatefulUsers(NetworkUsers):
    """User side: `W` [K, a] is what users received, and `V` [K, p] what they keep to themselves.

    `_train` returns the new `V` besides the IVs; they stay in `pending` [K, p] until they count.

    Args: as in `NetworkUsers`, and
        own: what each user keeps before the first round [p].
    """

    V: Tensor
    pending: Tensor

    def __init__(
        self, local: LocalTraining, sending: Sending, own: Tensor, pull: float = 0.0, start: Tensor | None = None
    ) -> None:
        super().__init__(local, sending, pull, start)
        self.register_buffer("V", own.expand(len(self.W), -1))
        self.register_buffer("pending", self.V)

    def _hold(self, users: Ids, own: list[Tensor]) -> None:
        self.pending = with_rows(self.pending, users, own[0][users])

    def commit(self, users: Ids) -> None:
        super().commit(users)
        self.V = with_rows(self.V, users, self.pending[users])

    def roll_back(self, users: Ids) -> None:
        self.pending = with_rows(self.pending, users, self.V[users])


class NetworkAlgorithm(Algorithm):
    """An algorithm whose users train networks; subclasses say how they are combined.

    Args:
        problem: data, loss and regularizer; any loss will do.
        solver: how users train.
        model: returns the network when called with the numbers of features and outputs, and with `shape` if it has such
            a parameter. All computations have the type of the network's parameters, float32 by default.
        seed: seed of the first parameters (the same for all users), of the order of rows, and of participation.
        participation: who takes part in a round, and how much each user does.
        messages: what users send.
        privacy: how users clip their terms of sums and add noise; None: they do not.

    Raises:
        ConfigError: the rows are sparse, the model does not fit the data, the solver or regularizer does not fit the
            algorithm, or `privacy` would not bound what others see of a user.
    """

    improves = "networks"

    def __init__(
        self,
        problem: Problem,
        solver: NetworkSolver,
        model: MakeModel,
        seed: int = 0,
        participation: Participation = Participation(),  # noqa: B008, it is frozen
        messages: MessageKind = "ivs",
        privacy: Privacy | None = None,
    ) -> None:
        solver.check(self.improves, problem.loss)
        problem.check_dense(type(self).__name__)
        participation.check(problem.K)
        self.problem = problem.for_networks()
        self.seed = seed
        self.participation = participation
        self.privacy = privacy
        if privacy:
            if messages != "sums" or not self.bounded:
                raise not_bounded(type(self).__name__)
            privacy.sigma(self.problem.grid)
        self.model = FlatModel(model, problem.s.new_zeros(2, problem.d), problem.outputs, seed, problem.shape)
        solver.check_network(self.model, self.problem)
        self.solver = solver
        self.users, self.aggregator = self._sides(messages)

    @property
    def bounded(self) -> bool:
        """Whether others see nothing of a user but one term of a sum per round, so that clipping bounds it."""
        return False

    @abstractmethod
    def _sides(self, messages: MessageKind) -> tuple[Users, Aggregator]:
        """Return the user side and the aggregator side."""

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        if not self.regularized:
            del described["regularizer"], described["lam"]
        return described

    def _objective(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        return {"primal": float(measured["losses"].sum())}

    @property
    def _local(self) -> LocalTraining:
        return LocalTraining(self.problem, self.solver, self.model, self.seed, self.participation, self.privacy)

    @property
    def W(self) -> Tensor:
        """The parameters that the users predict with [m, K]."""
        return self.users.predictors(self.users.state_dict()).T
