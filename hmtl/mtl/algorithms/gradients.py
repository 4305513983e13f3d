"""Any network, trained by gradients: what FedU, FedAvg and those built on it share.

K users, m parameters of a network. Messages hold one user per row: local models [K, m] up, in FedU with the number of
steps behind them as a further column, models [K, m] down.
"""

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.base import NOBODY, Aggregator, Algorithm, Ids, Users, with_rows
from hmtl.mtl.networks.copies import ALIGNMENT, copies
from hmtl.mtl.networks.models import FlatModel, MakeModel
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem, Rows
from hmtl.mtl.solvers.sgd import LocalSGD

BLOCK = 2**22  # numbers


class ByGradients(Algorithm):
    """Local steps of minibatch gradient descent on any network; what the aggregator makes of the models is left open.

    Args:
        problem: data, loss, regularizer; any loss, also of several classes.
        solver: the users' steps.
        model: called with the numbers of features and of outputs, and with the rows' shape if it has an argument
            `shape`, gives the network. Everything is computed in the type of its parameters, float32 by default.
        seed: of the first parameters, the same for all users, of the order of rows, and of participation.
        participation: who does how much in a round; for the IV of a user who drops out, the aggregator takes the last
            model that it made for it.

    Raises:
        ConfigError: the model does not fit the data, or the regularizer cannot be used.
    """

    users: Any  # ModelUsers, or what stands between these and sums

    def __init__(
        self,
        problem: Problem,
        solver: LocalSGD,
        model: MakeModel,
        seed: int = 0,
        participation: Participation = Participation(),  # noqa: B008, it is frozen
    ) -> None:
        if not isinstance(solver, LocalSGD):
            name = type(self).__name__
            raise ConfigError(f"{name} works by gradients, {type(solver).__name__} does not. Choose solver=sgd.")
        participation.check(problem.K)
        self.problem, self.solver, self.seed, self.participation = problem, solver, seed, participation
        rows = problem.s.new_zeros(2, problem.d)
        self.model = FlatModel(model, rows, problem.outputs, seed, problem.shape)
        self.model.check_training(rows)
        self.users = self._users()
        self.aggregator = self._aggregator(self._start())

    def _users(self) -> "ModelUsers":
        """The user side."""
        return ModelUsers(self.problem, self.solver, self.model, self.seed, self.participation)

    def _start(self) -> Tensor:
        """The users' first models [K, m], in the memory of one."""
        return self.model.start.expand(self.problem.K, -1)

    @abstractmethod
    def _aggregator(self, start: Tensor) -> Aggregator:
        """The aggregator side, that knows the users' first models [K, m]."""

    @property
    def W(self) -> Tensor:
        """The users' parameters, [m, K]."""
        W: Tensor = self.users.models.T
        return W


class ModelUsers(Users):
    """User side: rows in the type of the models, and these, W [K, m]. A local update leaves them as they are.

    Args:
        pull: weight of (pull/2)‖w − w_start‖² in what users minimise in a round.
        tells_steps: whether an IV says how many steps are behind it.
    """

    state: tuple[str, ...] = ("W",)

    def __init__(
        self,
        problem: Problem,
        solver: LocalSGD,
        model: FlatModel,
        seed: int,
        participation: Participation,
        pull: float = 0.0,
        tells_steps: bool = False,
    ) -> None:
        self.problem, self.solver, self.model, self.seed = problem, solver, model, seed
        self.participation, self.tells_steps, self.pull = participation, tells_steps, pull
        self.rows, self.numbers = problem.padded(model.start.dtype), len(model.start)
        self.W = model.start.expand(len(problem.users), -1)  # they are replaced, and never written to
        self._usual = solver.steps(problem.here)

    @property
    def models(self) -> Tensor:
        """What the users predict with, [K, m]."""
        return self.W

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor]:
        budgets = self.participation.budgets(self._usual, self.seed, round, self.problem.users, self.problem.K)
        budgets[idle] = 0
        ivs, *own = self._train(round, slice(None), self.rows, budgets)
        working = budgets.numpy() > 0
        users = working.nonzero()[0]
        self._hold(users, own)
        return users, ivs if working.all() else ivs[working]

    def _hold(self, users: Ids, own: list[Tensor]) -> None:
        """Keep pending what these users trained [K, m] and do not send."""

    def local_work(self, round: int, user: int) -> None:
        one = slice(user, user + 1)
        self._train(round, one, self.rows.of(user), self._usual[one], group=1)

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor, group: int = 0) -> tuple[Tensor, ...]:
        """IVs [n, m + e] of these users after a round of so many steps, and then any other models."""
        W, order = self.W[users], self._order(round, users, rows)
        ivs = W.new_empty(len(W), self.numbers + self.tells_steps)
        ivs[:, self.numbers :] = budgets[:, None]
        self._steps(users, rows, W, order, budgets, round, self.pull, W, out=ivs[:, : self.numbers], group=group)
        return (ivs,)

    def _order(self, number: int, users: slice, rows: Rows) -> Tensor:
        return self.solver.draw(self.seed, number, self.problem.users[users], rows.counts, max(self.problem.counts))

    def _steps(
        self,
        users: slice,
        rows: Rows,
        W: Tensor,
        order: Tensor,
        budgets: Tensor,
        round: int,
        *pull: Any,
        time: int = 0,
        **how: Any,
    ) -> Tensor:
        """Their models after so many steps, made for the nth `time` in a round."""
        how |= {"numbers": self.problem.users[users], "everybody": self.problem.K}
        how |= {"seed": self.seed, "draws": ("dropout", round, time)}
        return self.solver.solve(self.model, self.problem.loss, rows, W, order, budgets, round, *pull, **how)

    def blocks(self) -> Iterator[Tensor]:
        return column_blocks(self.models, self.problem.K) if self.tells_steps else iter(())

    def receive(self, users: Ids, models: Tensor) -> None:
        self.W = with_rows(self.W, users, models)

    def _predictions(self, split: str, models: Tensor) -> Tensor:
        """What each user's model [K, m] predicts for its rows, [K, n] or, of several outputs, [K, n, C]."""
        self.model.module.eval()
        one, y = copies(self.model, 1, models), self._y[split]
        predictions = models.new_zeros(*y.shape, *[self.model.C][: self.model.C > 1])
        for k, (w, task) in enumerate(zip(models, self.problem.tasks, strict=True)):
            x = self.rows.X[k, : self.rows.counts[k]] if split == "train" else task.x_test.to(w)
            one.load(w[None])
            predictions[k, : len(x)] = one.predict((x.clone() if x.data_ptr() % ALIGNMENT else x)[None])[0]
        return predictions

    @cached_property
    def _y(self) -> dict[str, Tensor]:
        """Of each split, y [K, n], padded with ones."""
        longest = max(len(task.y_test) for task in self.problem.everybody)
        y = self.rows.y.new_ones(len(self.rows.y), longest)
        for row, task in zip(y, self.problem.tasks, strict=True):
            row[: len(task.y_test)] = task.y_test
        return {"train": self.rows.y, "test": y}

    @cached_property
    def _counts(self) -> dict[str, Tensor]:
        """Of each split, how many rows each user has, [K] float64."""
        tasks, s = self.problem.tasks, self.problem.s
        counts = {split: [len(getattr(task, f"y_{split}")) for task in tasks] for split in ("train", "test")}
        return {split: s.new_tensor(each) for split, each in counts.items()}

    def _sums(self, split: str, figures: Tensor) -> Tensor:
        """What each user has for its rows [K, n], summed up, [K] float64."""
        there = torch.arange(figures.shape[1], device=figures.device) < self._counts[split][:, None]
        return torch.where(there, figures, 0).double().sum(1)

    def _errors(self, split: str, predictions: Tensor) -> Tensor:
        """Mean error [K]."""
        return self._sums(split, self.problem.loss.error(predictions, self._y[split])) / self._counts[split]

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """Σ_j ℓ, s, train and test error [K]."""
        train = self._predictions("train", self.models)
        return {
            "losses": self._sums("train", self.problem.loss(train, self._y["train"])),
            "s": self.problem.s,
            "train_error": self._errors("train", train),
            "test_error": self._errors("test", self._predictions("test", self.models)),
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].to(self.W, copy=True))


class Mixing(Aggregator):
    """Aggregator side: the last models [K, m] that it made, which stand in for those of users who were not heard."""

    state = ("models", "rounds")

    def __init__(self, start: Tensor) -> None:
        self.models, self.rounds = start, torch.tensor(0)

    @abstractmethod
    def mixed(self, W: Tensor, steps: Tensor) -> Tensor:
        """The models [K, m] made of local models W [K, m] after so many steps each, [K] float64."""

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        m = self.models.shape[1]
        steps = torch.zeros(len(self.models), dtype=torch.float64, device=ivs.device)
        if ivs.shape[1] > m:
            steps[users] = ivs[:, m].double()
        W = with_rows(self.models, users, ivs[:, :m].to(self.models))
        self.models = self.mixed(W, steps)
        self.rounds += 1
        return self.models

    def state_dict(self) -> dict[str, Tensor]:
        return {"models": self.models, "rounds": self.rounds.clone()}  # models are replaced, and never written to

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in self.state:
            setattr(self, name, state[name].to(getattr(self, name), copy=name != "models"))


def column_blocks(W: Tensor, K: int) -> Iterator[Tensor]:
    """W [n, m], so many columns at a time as make BLOCK numbers of K rows."""
    return iter(W.split(max(1, BLOCK // K), dim=1))  # type: ignore[no-untyped-call]  # torch's split


def told_nothing(users: Ids, extras: Tensor) -> None:
    """What users do with the answer to a set-up that holds no numbers."""
