"""The two sides of a learner of networks: who takes part, what travels, and which updates count.

K users, m numbers of a network (parameters, and buffers that training changes), b users of a block. The sections of a
learner are one row of numbers: first those that are averaged, then the change of the one that is coupled, from its
start. The regularizer acts on these changes, so it draws no user's network to zero.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hmtl.errors import CheckpointError, ConfigError, RangeError
from hmtl.io.arrays import NOBODY, Ids
from hmtl.io.row_layout import RowLayout
from hmtl.mtl.algorithms.averages import Average, AverageAggregator, WeightedMean
from hmtl.mtl.algorithms.base import DIVERGED, Aggregator, Algorithm, Users, not_bounded
from hmtl.mtl.algorithms.coupled_steps import Coupler, SummedCoupler, coupler_of
from hmtl.mtl.algorithms.held_rows import UserRows
from hmtl.mtl.algorithms.local_training import BlockTraining, Setting
from hmtl.mtl.algorithms.meaning import Meaning
from hmtl.mtl.algorithms.setup_exchange import SetupAggregator, SetupUsers
from hmtl.mtl.algorithms.two_parts import AggregatorOfTwoParts, MeaningOfTwoParts
from hmtl.mtl.algorithms.weights import Weights, are_alike, weights_of
from hmtl.mtl.learners.base import Learner, Numbers
from hmtl.mtl.networks.flat import FlatModel, MakeModel
from hmtl.mtl.participation import Participation
from hmtl.mtl.privacy import Privacy
from hmtl.mtl.problem import Problem
from hmtl.mtl.solvers.networks import NetworkSolver
from hmtl.mtl.sums import LazyRows, RowsByUsers
from hmtl.mtl.symmetric import Symmetric
from hmtl.mtl.torch_loss import TorchLoss

MODEL_CHUNK_BYTES = 2**26  # bytes of models that are held at once; more are trained as they are sent
RECEIVED = "averaged", "coupled"  # rows that change when they are received, unlike own state
COLUMN_CHUNK_NUMBERS = 2**22  # numbers in a block of columns of all models


class NetworkUsers(Users):
    """User side of a learner.

    Args:
        setting: how users train.
        average: the averaged sections; None: there are none.
        weights: the weights in averages of the users of this process.
        coupler: the aggregator of the coupled section, which says whether sums suffice; None: there is none.
    """

    def __init__(
        self,
        setting: Setting,
        average: Average | None,
        weights: Weights,
        coupler: Coupler | SummedCoupler | None,
    ) -> None:
        super().__init__()
        self.setting, self.average = setting, average
        object.__setattr__(self, "coupler", coupler)  # no state of the users
        self.problem, self.model, self.learner = setting.problem, setting.model, setting.learner
        self.weights = weights
        self.usual = self.learner.phases * setting.solver.steps(self.problem.here)
        self._declared, K = dict(self.learner.sections()), len(self.problem.users)
        sections = self._declared
        self.coupled = next((name for name, section in sections.items() if section.coupled), "")
        starts = dict(self.learner.personal())
        starts |= {name: section.start for name, section in sections.items() if section.over_all}
        if average:
            starts["averaged"] = average.start
        if coupler:
            starts["coupled"] = self.start_of_coupled
        change = torch.zeros_like(self.start_of_coupled)
        parts = [average.start, change] if average else [change]
        self.row_layout = RowLayout(torch.cat(parts) if self.coupled and average else parts[0], 1 if coupler else 0)
        self.held = {name: UserRows(start, K) for name, start in starts.items()}
        self._rows = torch.empty(0, 0)  # the next round overwrites them; `AverageAggregator` keeps none
        self._tuned: dict[str, Tensor] = {}

    @property
    def start_of_coupled(self) -> Tensor:
        """The coupled section before the first round, empty if there is none."""
        return self._declared[self.coupled].start if self.coupled else self.model.start[:0]

    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor | LazyRows]:
        setting, problem = self.setting, self.problem
        budgets = setting.participation.budgets(self.usual, setting.seed, round, problem.users, problem.K, self.sample)
        budgets[idle] = 0
        users = budgets.numpy().nonzero()[0]
        budgets = budgets[users]
        self._tuned, self.seconds = {}, 0.0
        if self.evaluates and self.problem.tuned and self.held.keys() == {"averaged"}:
            unknown = self.problem.s.new_full((len(self.problem.users),), torch.nan)
            self._tuned = {f"tuned_test_{name}": unknown.clone() for name in self.problem.measures}
        if self.coupler or not self.average:
            return users, self._trained(users, budgets, round)
        start, size = self.average.start, max(1, MODEL_CHUNK_BYTES // self.average.start.nbytes)

        def make(block: slice, room: Tensor) -> Tensor:
            return self._trained(users[block], budgets[block], round, room)

        if len(users) <= size:
            return users, make(slice(0, len(users)), self._room(len(users)))
        return users, TrainedRows(len(users), start, make, size, self._room)

    def _room(self, n: int) -> Tensor:
        """Return memory for n rows, which is kept: the first write to new memory takes longer than a copy."""
        if len(self._rows) < n:
            self._rows = self.model.start.new_empty(n, self.row_layout.numbers)
        return self._rows[:n]

    def make_meaning(self) -> Meaning | None:
        ids = self.problem.users
        coupled = self.coupler.meaning_of(ids) if isinstance(self.coupler, SummedCoupler) else None
        if not self.average or (self.coupler and not coupled):
            return coupled
        mean = WeightedMean(self.average, self.weights, self.held["averaged"].of, ids, self.setting.privacy)
        return MeaningOfTwoParts(mean, coupled) if coupled else mean

    def _trained(self, users: Ids, budgets: Tensor, round: int, room: Tensor | None = None) -> Tensor:
        """Train these users, keep what is their own until it counts, and return their rows [b, m + e], maybe `room`."""
        if not len(users):
            return self.model.start.new_empty(0, self.row_layout.numbers + self.row_layout.further)
        own_names = self.learner.personal().keys()
        shared, own = self._numbers(users)
        before = {name: (rows, rows._version) for name, rows in vars(own).items()}
        room = room if self.held.keys() == {"averaged"} else None  # users keep of what they train
        training = BlockTraining(self.setting, round, users, budgets, room)
        with self.timed(budgets):
            new = self._checked(self.learner.local(shared, own, training), len(users))
        if unknown := vars(own).keys() - before.keys():
            raise ConfigError(f"{self._name}.local assigns own.{min(unknown)}. Return its first value in `personal`.")
        for name in own_names:
            rows, version = before[name]
            if rows._version != version:
                raise ConfigError(f"{self._name}.local writes into own.{name}. Assign a new tensor to it instead.")
            if getattr(own, name) is not rows:
                self.held[name].propose(users, getattr(own, name))
        if self._tuned:  # the last average, tuned to the users' own rows
            predictions = self.setting.predictions("test", users, training.last)
            for name, values in self.problem.measure("test", predictions, users).items():
                self._tuned[f"tuned_{name}"][users] = values.to(self.problem.s)
        averaged = self.average.sections if self.average else {}
        for name, section in averaged.items():
            if section.over_all:  # the change of what the user sent last is a change of the average
                self.held[name].propose(users, new[name])
                new[name] = getattr(shared, name) + (new[name] - getattr(own, name))
        parts = [new[name] for name in averaged]
        if self.coupler:
            steps = budgets // self.learner.phases  # the first phase trains coupled numbers
            change = new[self.coupled] - self.start_of_coupled
            parts += [change, steps[:, None].to(change)]
        if not parts:
            return self.model.start.new_empty(len(users), 0)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    @property
    def _name(self) -> str:
        return type(self.learner).__name__

    def _checked(self, new: object, b: int) -> dict[str, Tensor]:
        """Return the sections that b users have trained, or raise ConfigError if they are not as declared."""
        for name, section in self._declared.items():
            shape = (b, len(section.start))
            if not isinstance(new, Mapping) or getattr(new.get(name), "shape", None) != shape:
                raise ConfigError(
                    f"{self._name}.local does not return section {name} of shape {list(shape)}, a row for each user. "
                    "Return a dictionary of new tensors by name of section."
                )
        return dict(new) if isinstance(new, Mapping) else {}

    def _numbers(self, users: Ids) -> tuple[Numbers, Numbers]:
        """Return the sections and the own state of these users."""
        return self._named({name: rows.of(users) for name, rows in self.held.items()})

    def _named(self, rows: dict[str, Tensor]) -> tuple[Numbers, Numbers]:
        """Return the sections and the own state among rows [b, ...] by name."""
        own = {name: each for name, each in rows.items() if name not in RECEIVED}
        shared = self.average.split(rows["averaged"]) if self.average else {}
        if self.coupler:
            shared[self.coupled] = rows["coupled"]
        return Numbers(**shared), Numbers(**own)

    def commit(self, users: Ids) -> None:
        for name, rows in self.held.items():
            if name not in RECEIVED:
                rows.commit(users)

    def roll_back(self, users: Ids) -> None:
        for rows in self.held.values():
            rows.roll_back(users)

    def receive(self, users: Ids, models: Tensor) -> None:
        a = len(self.average.start) if self.average else 0
        if "averaged" in self.held and len(users):
            self.held["averaged"].put(users, models[:, :a])
        if self.coupler and len(users):
            self.held["coupled"].put(users, models[:, a:] + self.start_of_coupled)

    def take(self, users: Ids, answers: Tensor) -> None:
        """Take the answer [n, e] to the set-up: the sum of all weights, if there is any."""
        if answers.shape[1]:
            self.weights.total = float(answers[0, 0])

    def measure(self) -> dict[str, Tensor]:
        """Return Σ_j s_kj ℓ, penalties, and the measures on the rows of each split, of the models in use [K].

        If training rows are not measured, the first two are missing.

        Raises:
            RangeError: training rows are not measured, and a model is not finite.
        """
        splits = self.problem.splits
        predictions: dict[str, list[Tensor]] = {split: [] for split in splits}
        further: dict[str, list[Tensor]] = {}
        penalties = []
        for users in self._blocks():
            shared, own = self._numbers(users)
            models = self.learner.predictor(shared, own)
            if "train" not in splits and not models[: None if models.stride(0) else 1].isfinite().all():
                raise RangeError(DIVERGED)  # no loss would show it
            for split in splits:
                predictions[split].append(self.setting.predictions(split, users, models))
            for name, each in self.learner.measured(shared, own).items():
                further.setdefault(name, []).append(self.setting.predictions("test", users, each))
            if "train" in splits and (penalty := self.learner.penalty(shared, own)) is not None:
                penalties.append(penalty)
        joined = {split: torch.cat(each) for split, each in predictions.items()}
        measured = {"losses": self.problem.losses(joined["train"])} if "train" in splits else {}
        if penalties:
            measured["penalties"] = torch.cat(penalties)
        for split, each in joined.items():
            measured |= self.problem.measure(split, each)
        for name, parts in further.items():
            measures = self.problem.measure("test", torch.cat(parts))
            measured |= {name + key: values for key, values in measures.items()}
        return measured | self._tuned

    def _blocks(self) -> Iterator[Ids]:
        """Yield all users, as many at once as have models that may be held, or all if these are the same."""
        K = len(self.problem.users)
        alike = all(rows.alike() for rows in self.held.values())
        size = max(1, K if alike else MODEL_CHUNK_BYTES // self.model.start.nbytes)
        for first in range(0, max(1, K), size):
            yield np.arange(first, min(first + size, K))

    def blocks(self) -> Iterator[Tensor]:
        if self.coupler:
            rows, width = self.held["coupled"].all(), max(1, COLUMN_CHUNK_NUMBERS // self.problem.K)
            columns = torch.split(rows, width, dim=1), torch.split(self.start_of_coupled, width)
            yield from map(torch.sub, *columns)

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        return self.learner.predictor(*self._named({name: state[name] for name in self.held}))

    def state_dict(self, **options: Any) -> dict[str, Any]:  # type: ignore[override]  # as torch calls it
        held: dict[str, Any] = {name: rows.all() for name, rows in self.held.items()}
        held |= {f"{name}.proposed": rows.proposed() for name, rows in self.held.items() if name not in RECEIVED}
        return held | dict(super().state_dict(**options))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = True) -> Any:
        everybody = np.arange(len(self.problem.users))
        for name, held in self.held.items():
            rows = state_dict[name].to(held.all())
            alike = rows.stride(0) == 0 or bool((rows == rows[:1]).all())
            held.put(everybody, rows[:1].expand_as(rows) if alike else rows)
            if name not in RECEIVED:
                proposed = state_dict[f"{name}.proposed"].to(rows)
                users = (proposed != rows).any(1).cpu().numpy().nonzero()[0]
                held.propose(users, proposed[users])
        others = {key: each for key, each in state_dict.items() if key.removesuffix(".proposed") not in self.held}
        return super().load_state_dict(others, strict, assign)


class TrainedRows(RowsByUsers):
    """Models that are trained as they are sent.

    Args:
        n: number of users.
        start: a model [m].
        train: returns the models of some users, perhaps in the memory that it gets.
        at_once: how many users are trained at once.
        room: returns memory for n models, which the next ones overwrite.
    """

    def __init__(
        self,
        n: int,
        start: Tensor,
        train: Callable[[slice, Tensor], Tensor],
        at_once: int,
        room: Callable[[int], Tensor],
    ) -> None:
        super().__init__((n, len(start)), start.dtype, start.device, self._trained, at_once)
        self._train, self._room = train, room

    def _block(self, users: slice, columns: slice) -> Tensor:
        if self._made[0] != users:
            self._made = users, self._trained(users)
        return self._made[1][:, columns]

    def _trained(self, users: slice) -> Tensor:
        rows = self._room(users.stop - users.start)
        for i in range(0, len(rows), self.at_once):
            part = rows[i : i + self.at_once]
            first = users.start + i
            trained = self._train(slice(first, first + len(part)), part)
            if trained is not part:
                part.copy_(trained)
        return rows


class NoAggregator(Aggregator):
    """The aggregator of learners whose users send nothing."""

    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        return ivs


class NetworkAlgorithm(Algorithm):
    """A learner of networks on a problem.

    Args:
        learner: what users and server do; the algorithm keeps a copy.
        problem: data, loss and regularizer; any loss will do.
        solver: how users train.
        model: returns the network when called with the numbers of features and outputs, and with `shape` if it has such
            a parameter. All computations have the type of the network's parameters, float32 by default.
        seed: seed of the first parameters (the same for all users), of the order of rows, and of participation.
        participation: who takes part in a round, and how much each user does.
        privacy: how users clip their terms of sums and add noise; None: they do not. All users then weigh the same: a
            number of rows would tell about a user, and one bound holds for the terms of all.
        frozen: mode in which layers without parameters to train are while others train, see `FlatModel`.

    Raises:
        ConfigError: the rows are sparse, the model does not fit the data, the solver or regularizer does not fit the
            learner, or `privacy` would not bound what others see of a user.
    """

    improves = "networks"
    vectors = ("W",)
    _shown = ("learner", *Algorithm._shown)
    users: NetworkUsers

    def __init__(
        self,
        learner: Learner,
        problem: Problem,
        solver: NetworkSolver,
        model: MakeModel,
        seed: int = 0,
        participation: Participation = Participation(),  # noqa: B008, it is frozen
        privacy: Privacy | None = None,
        frozen: Literal["eval", "train"] = "eval",
    ) -> None:
        solver.check(self.improves, problem.loss)
        solver = solver.plain() if learner.regularized or learner.plain_steps else solver
        problem.check_dense(type(learner).__name__)
        self.problem = problem.for_networks()
        self.seed = seed
        self.participation = participation = participation.among(problem.counts)
        self.privacy = privacy
        C = None if isinstance(problem.loss, TorchLoss) and not problem.loss.classes else problem.outputs
        self.model = FlatModel(
            model,
            problem.example(),
            C,
            seed,
            problem.shape,
            as_given=problem.items,
            device=problem.s.device,
            frozen=frozen,
        )
        solver.check_network(self.model, self.problem)
        self.solver = solver
        self.learner = copy.copy(learner)
        self.learner.model, self.learner.solver = self.model, solver
        self.learner.check()
        sections = self.learner.sections()
        averaged = {name: section for name, section in sections.items() if not section.coupled}
        self.coupled = [section.start for section in sections.values() if section.coupled]
        if privacy:
            fits = len(sections) == 1 and not self.coupled and not any(each.over_all for each in averaged.values())
            if not fits:
                raise not_bounded(type(learner).__name__)
            privacy.sigma(self.problem.grid)
        names = [*self.learner.personal(), *self.learner.memory()]
        if set(names) & {*RECEIVED, "kept"} or any("." in name for name in names):
            raise ConfigError(
                f"{type(learner).__name__} has own state or memory with a name that hmtl uses. Rename it."
            )
        if len(self.coupled) > 1 or bool(self.coupled) != learner.regularized:
            raise ConfigError(
                f"{type(learner).__name__} has {len(self.coupled)} coupled sections and regularized="
                f"{learner.regularized}. Set regularized = True for one such section, and have no further one."
            )
        self.regularized = learner.regularized
        weights = self._weights()
        self.averages: AverageAggregator | None = None
        self.coupler: Coupler | SummedCoupler | None = None
        average, total = None, float(weights.sum())
        if averaged:
            average = Average(dict(sorted(averaged.items(), key=lambda each: each[1].over_all)), self.problem.grid)
            self.averages = AverageAggregator(average, self.learner, Weights(weights, total), privacy)
        if self.coupled:
            self.coupler = coupler_of(self.problem, solver, torch.zeros_like(self.coupled[0]))
        setting = Setting(self.problem, self.learner, solver, self.model, seed, participation, privacy)
        self.users = NetworkUsers(setting, average, Weights(weights[self.problem.users], total), self.coupler)
        if self.averages and self.coupler:
            self.aggregator = AggregatorOfTwoParts(self.averages, self.coupler)
        else:
            self.aggregator = self.averages or self.coupler or NoAggregator()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"trunk": trunk} if (trunk := self.model.trunk) else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("trunk", "") != self.model.trunk:
            raise CheckpointError(
                "The checkpoint belongs to a network with other frozen numbers. Give the same pretrained numbers, or "
                "start a new run."
            )
        super().load_state_dict(state)

    def _weights(self) -> Tensor:
        """Return the users' weights in averages [K, 1]; with privacy, they are equal."""
        counts = torch.tensor(self.problem.counts).to(self.problem.s)
        return torch.ones_like(counts)[:, None] if self.privacy else weights_of(self.learner, counts)

    @property
    def common(self) -> Tensor | None:
        if self.averages is None or self.coupled:
            return None
        sections = self.averages.average.split(self.averages.value())
        shared = {name: rows[:0] for name, rows in sections.items()}  # of nobody, since nobody's own numbers are here
        own = {name: rows.of(np.arange(0)) for name, rows in self.users.held.items() if name not in RECEIVED}
        model = self.learner.predictor(Numbers(**shared), Numbers(**own))
        return next((sections[name][0] for name, rows in shared.items() if model is rows), None)

    @property
    def remembers(self) -> bool:
        return self.learner.remembers

    @property
    def Omega(self) -> Symmetric | None:
        if isinstance(self.coupler, Coupler) and self.problem.regularizer.learns:
            return self.coupler.steps.Omega
        return None

    def setup(self) -> tuple[Users, Aggregator] | None:
        """Return the exchange of the users' weights, and of what the regularizer has to know about them."""
        weighs = self.averages is not None and not self.privacy and not are_alike(self.learner, self.problem.K)
        weights = self._weights()[self.problem.users] if weighs else self.problem.s[:, None][:, :0]
        facts = self.problem.facts() if self.coupled else weights[:, :0]
        if not weighs and not facts.shape[1]:
            return None

        def answer(facts: Tensor) -> Tensor:
            if isinstance(self.coupler, Coupler) and facts.shape[1] > weights.shape[1]:
                regularizer = self.problem.regularizer.prepared(facts[:, weights.shape[1] :])
                self.coupler.steps.take(regularizer.to(self.problem.s.device))
            return self.averages.answer(facts[:, :1]) if weighs and self.averages else facts[:, :0]

        joined = torch.cat([weights.double(), facts.double()], dim=1)
        return SetupUsers(joined, int(weighs), self.users.take), SetupAggregator(answer, self.problem.K)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        if not self.coupled:
            del described["regularizer"], described["lam"]
        return described | self.learner.describe()

    def _quadratics(self) -> dict[str, Symmetric]:
        return {"W": self.coupler.steps.A} if self.coupler else {}

    def _shares(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"losses": own["losses"] + own.get("penalties", 0)}

    def _objective(self, sums: dict[str, Tensor]) -> dict[str, float]:
        return {"primal": float(sums["losses"] + sums.get("W", 0))}

    def _further(self, measured: dict[str, Tensor]) -> dict[str, float]:
        figures = dict[str, float]()
        for prefix in sorted({name.partition("_test_")[0] for name in measured if "_test_" in name}):
            each = self.problem.figures(f"{prefix}_test", measured).items()
            figures |= {name: value for name, value in each if not name.endswith("_users")}  # who trained is known
        return figures

    @property
    def W(self) -> Tensor:
        """The parameters that the users predict with [m, K]."""
        return self.users.predictors({name: rows.all() for name, rows in self.users.held.items()}).T
