"""The two sides of a learning algorithm, and the algorithm that joins them.

In a round, the users improve their models locally and send intermediate values (IVs), rows [n, m + e] of m numbers and
e further ones; an aggregator (a relay or the server) turns the IVs into models, rows [K, m + e′], which the users
receive. The two sides share nothing but these messages. If sums of rows are all that the aggregator needs, both say
what rows mean, see `Meaning`; then sums may travel in their place. K users, d features.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from hmtl.errors import ConfigError, RangeError
from hmtl.io.arrays import NOBODY, Ids
from hmtl.io.cpu_time import cpu_seconds
from hmtl.io.described import Described
from hmtl.io.row_layout import RowLayout
from hmtl.mtl.algorithms.meaning import Meaning
from hmtl.mtl.losses import snake_case
from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem
from hmtl.mtl.solvers.base import Kind
from hmtl.mtl.sums import MAX_FIGURE, LazyRows, from_digits, to_digits
from hmtl.mtl.symmetric import Symmetric

DIVERGED = (
    "the models are not finite: training diverges. Lower solver.step or solver.passes, raise lam, or scale the data."
)


class Side(nn.Module, ABC):
    """One side of an algorithm; its buffers are its state.

    Methods replace buffers and never write into them. Therefore `state_dict` is a snapshot that later rounds leave
    unchanged, and buffers may share memory or be expanded views.

    Attributes:
        meaning: what rows mean, if terms are made of them on this side; it is part of the state.
    """

    meaning: Meaning | None

    def __init__(self) -> None:
        super().__init__()
        self.meaning = None

    def make_meaning(self) -> Meaning | None:
        """Return what rows mean, for the users of this side; None: the aggregator needs every row."""
        return None

    def hold_meaning(self) -> Meaning | None:
        """Make what rows mean, see `make_meaning`, and hold it as part of the state from now on."""
        if self.meaning is None:
            self.meaning = self.make_meaning()
        return self.meaning

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = True) -> Any:
        """Replace the buffers by the tensors of `state_dict`, in the type and on the device of the buffers."""
        for prefix, side in [*self.named_modules()]:
            start = f"{prefix}.meaning.".lstrip(".")
            if isinstance(side, Side) and any(name.startswith(start) for name in state_dict):
                side.hold_meaning()
        old = self.state_dict()
        new = {name: value.to(old[name]) if name in old else value for name, value in state_dict.items()}
        return super().load_state_dict(new, strict, assign)


class Users(Side):
    """User side, for many users at once.

    A user's round consists of `local_update`, then `commit` if its IV counted and `roll_back` otherwise, then `receive`
    if a model arrived.
    """

    row_layout: RowLayout
    """What stands in IVs and models; if they have no numbers, a round consists of `local_update` and `commit`."""

    sample: Ids | None = None
    """The users who are sampled for the next round, if the server drew them; None: those that the seed gives."""

    evaluates: bool = True
    """Whether this round will be measured; then users measure what they hold only during the round."""

    seconds: float = 0.0
    """CPU time [s] of the slowest user's local update in this round."""

    @abstractmethod
    def local_update(self, round: int, idle: Ids = NOBODY) -> tuple[Ids, Tensor | LazyRows]:
        """Return the users who take part in a round, and their rows [n, m + e]. The update stays pending.

        Rows may be computed later, as they are sent, but not after the next call of `commit` or `roll_back`. The next
        round may overwrite them.

        Args:
            round: number of the round, which names all random draws.
            idle: users who cannot take part in this round.
        """

    def commit(self, users: Ids) -> None:
        """Apply the pending updates of these users: their IVs reached an aggregator."""

    def roll_back(self, users: Ids) -> None:
        """Discard the pending updates of these users: their IVs reached no aggregator."""

    @abstractmethod
    def receive(self, users: Ids, models: Tensor) -> Tensor | None:
        """Take the models [n, m + e′] of these users; all other users keep theirs.

        The rows may be part of a host's memory, so that they must not be overwritten.

        Returns:
            factors [n] by which what rounding left over of these users' changes is multiplied; None: 1.
        """

    def measure(self) -> dict[str, Tensor]:
        """Return measurements of each user, [K, ...] each, for `Algorithm.figures`; by default none."""
        return {}

    def blocks(self) -> Iterator[Tensor]:
        """Yield the models [K, m] a few columns at a time, if `Algorithm.figures` needs them."""
        yield from ()

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        """Return the models [K, m] that the users of a `state_dict` predict with."""
        return state["W"]

    def places(self, name: str, users: Ids) -> Ids:
        """Return which rows belong to these users in a tensor of all users of their state."""
        return users

    @contextmanager
    def timed(self, budgets: Tensor) -> Iterator[None]:
        """Time users who train meanwhile: the slowest takes the share of its steps, given the steps of each [n]."""
        start = cpu_seconds()
        yield
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        share = float(budgets.max() / budgets.sum()) if budgets.any() else 0.0
        self.seconds = max(self.seconds, share * (cpu_seconds() - start))


class Aggregator(Side):
    """Aggregator side. All aggregators of a round get the same bytes and compute the same models."""

    @abstractmethod
    def update(self, users: Ids, ivs: Tensor) -> Tensor:
        """Return the models [K, m + e′] of all users from the IVs [n, m + e] of the users who were heard.

        If rows have a meaning, the argument is the sum of their terms, [1, L + further], and the result the row of
        sums of which models are made, [1, L + answers]. IVs have to be left as they are, since they may be the users'
        own memory; a sum may be overwritten.
        """

    def figure_state(self) -> dict[str, Tensor]:
        """Return the part of the state that `Algorithm.figures` reads."""
        return {}

    def load_figure_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the `figure_state` of another aggregator."""
        self.load_state_dict(state, strict=False)


class Algorithm(Described, ABC):
    """Two sides that play rounds: local update → IVs → global update → models.

    Attributes:
        regularized: whether the algorithm uses the regularizer of the problem.
        improves: what its solver improves; None: it has no solver.
        vectors: names of those sums in `figures_of_sums` that are of models or dual vectors, on the problem's grid.
        problem: data, loss and regularizer.
        seed: seed of all random draws.
        participation: who takes part in a round, and how much each user does.
        users: the user side.
        aggregator: the aggregator side.
    """

    regularized: bool = True
    improves: ClassVar[Kind | None] = None
    vectors: tuple[str, ...] = ()
    _shown: ClassVar[tuple[str, ...]] = ("problem", "solver")
    problem: Problem
    seed: int
    participation: Participation
    users: Users
    aggregator: Aggregator

    @property
    @abstractmethod
    def W(self) -> Tensor:
        """The users' models [d, K]."""

    @property
    def common(self) -> Tensor | None:
        """The model [m] with which all users predict, from the aggregator's state; None: users have their own."""
        return None

    @property
    def remembers(self) -> bool:
        """Whether what a user keeps from earlier rounds may enter its terms; then sampling does not amplify privacy."""
        return True

    @property
    def Omega(self) -> Symmetric | None:
        """Ω as the aggregator holds it, or None if the algorithm has none."""
        return None

    def step(self, round: int) -> None:
        """Play a round without a network: no message is lost, and absent users receive a model as well.

        If users hold what rows mean, they make terms; otherwise the aggregator does on their behalf.
        """
        everybody, users, aggregator = np.arange(self.problem.K), self.users, self.aggregator
        active, rows = users.local_update(round)
        if not users.row_layout.numbers:
            users.commit(active)
            return
        if meaning := users.meaning:
            sent = meaning.terms(round, active, rows)[:].sum(0, keepdim=True)
        else:
            meaning = aggregator.hold_meaning()
            sent = meaning.total_of(active, rows[:]) if meaning else rows[:]
        models = aggregator.update(active, sent)
        users.commit(active)
        if users.meaning:
            users.meaning.commit(active)
        users.receive(everybody, meaning.models(everybody, models) if meaning else models)

    def setup(self) -> tuple[Users, Aggregator] | None:
        """Return the two sides of the exchange before the first round; None if nothing has to be exchanged.

        The constructor has already exchanged these numbers in memory. Playing the set-up over a network leads to the
        same state, and counts the bits.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """Return the parts of this algorithm, by name."""
        loss, regularizer = self.problem.loss, self.problem.regularizer
        return {
            "algorithm": type(self).__name__.lower(),
            "loss": loss.name,
            "error_measure": loss.measure,
            "regularizer": snake_case(regularizer),
            "lam": regularizer.lam,
        }

    def settled(self, tolerance: float) -> bool:
        """Return whether the last update of Ω, which the gap takes as given, lowered the primal by ≤ `tolerance`."""
        return True

    def rank(self, figures: Mapping[str, float]) -> float | None:
        """Return what is least for the best models of a run, given the `figures` of a round; None: the last are.

        That is the validation error, if there is one.
        """
        return figures.get("validation_error")

    def metrics(self) -> dict[str, float]:
        """Return the figures of the present state; see `figures`."""
        return self.figures(self.users.measure(), self.users.blocks())

    @torch.no_grad()
    def figures(self, measured: dict[str, Tensor], blocks: Iterator[Tensor]) -> dict[str, float]:
        """Return the primal, dual and gap if there are any, and the measures on train and test rows.

        Args:
            measured: what `Users.measure` returned, of all users; without the objective if there are measures only.
            blocks: what `Users.blocks` yields, of all users.

        Raises:
            RangeError: a model is not finite.
        """
        # a measure may be undefined for a user, such as one without test rows, which is not a divergence
        own = self._beside_measures(measured)
        if not all(each.isfinite().all() for each in own.values()):
            raise RangeError(DIVERGED)
        figures = dict[str, float]()
        if own:
            sums = {name: each.sum(0) for name, each in self._shares(own).items()}
            for name, M in self._quadratics().items():
                each_block = [own[name]] if name in own else blocks
                sums[name] = torch.stack([M.quadratic(each) for each in each_block]).sum(0)
            figures |= self._objective(sums)
        figures |= self._further(measured)
        for split in self.problem.splits:
            figures |= self.problem.figures(split, measured)
        return figures

    def _beside_measures(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: each for name, each in values.items() if not self.problem.is_measure(name)}

    def _quadratics(self) -> dict[str, Symmetric]:
        """Return the matrices M whose ½ tr(Xᵀ M X) the objective needs, by the name of X in `Users.measure`.

        Users give an X that is not there in `Users.blocks`.
        """
        return {}

    def _shares(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what users add to further sums that the objective needs, [n] each, or [n, m] for one of `vectors`.

        Args:
            own: what users measured beside measures.
        """
        return {}

    @abstractmethod
    def _objective(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Return the primal, and the dual and the gap if there are any, given the values of both."""

    def _further(self, measured: dict[str, Tensor]) -> dict[str, float]:
        """Return further figures, which need what each user measured."""
        return {}

    @torch.no_grad()
    def terms_of_figures(self) -> dict[str, Tensor]:
        """Return what each user of this process adds to the sums that `figures_of_sums` needs, int64 [K, ...].

        It is all that leaves a user for measurements with `metrics=sums`. A user whose figures are not finite adds
        zeros, and is not counted among the finite ones.
        """
        measured = self.users.measure()
        own = {name: each.double() for name, each in self._beside_measures(measured).items()}
        in_range = [(each.abs() < MAX_FIGURE).reshape(len(each), -1).all(1) for each in own.values()]
        fine = torch.stack(in_range).all(0)
        own = {name: each.where(fine.view(-1, *(1,) * (each.ndim - 1)), 0) for name, each in own.items()}
        terms = {"users": torch.stack([torch.ones_like(fine), fine], dim=1)} | self._shares(own)
        for name, M in self._quadratics().items():
            X = own[name] if name in own else torch.cat([*self.users.blocks()], dim=1)
            terms |= {f"{name} squares": M.squares(X), name: M.terms(X, torch.from_numpy(self.problem.users))}
        terms |= self.problem.terms_of_figures(measured)
        grid = self.problem.grid
        return {name: grid.rounded(x) if name in self.vectors else to_digits(x) for name, x in terms.items()}

    def figures_of_sums(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Return `figures` without medians and worst users, from sums of `terms_of_figures` over users.

        If the terms of some users are missing, there is no objective, and means are over the others.

        Raises:
            RangeError: a model is not finite.
        """
        grid = self.problem.grid
        values = {
            name: (grid.values(each) if name in self.vectors else from_digits(each)).to(self.problem.s.device)
            for name, each in sums.items()
        }
        users, finite = values["users"].tolist()
        if finite < users:
            raise RangeError(DIVERGED)
        figures = self.problem.figures_of_sums(values)
        if users < self.problem.K:
            return figures
        for name, M in self._quadratics().items():
            values[name] = M.value(values[f"{name} squares"], values[name])
        return self._objective(values) | figures

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both sides, as tensors in plain dictionaries."""
        return {"users": self.users.state_dict(), "aggregator": self.aggregator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, bit for bit. Keep the aggregator as it is if the state has none."""
        self.users.load_state_dict(state["users"])
        if "aggregator" in state:
            self.aggregator.load_state_dict(state["aggregator"])


def not_bounded(name: str) -> ConfigError:
    """Return the error for an algorithm, called `name`, that cannot be differentially private."""
    return ConfigError(
        f"privacy: {name} sends more of a user than one clipped term of a sum per round. Set communicator=sums and "
        "algorithm=fedavg, fedprox, ditto, pfedme, fedper, fedrep or lg_fedavg (without coupled), or privacy.clip=null."
    )
