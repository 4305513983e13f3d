"""The contract of a federated learner of networks: what users train, what is averaged, and what the server does.

A learner says nothing about transport. It defines `local`, and `server` if that is more than an average; sums that do
not depend on who adds, codes, low precision, secure sums, differential privacy, sampling, drop-outs, checkpoints and
processes come with it. `docs/guide/learner.md` writes two learners step by step.

Four concepts:

- A *section* holds numbers that are averaged in each round, or coupled by the regularizer of the problem.
- *Own state* stays with a user. What `local` assigns takes effect only if the user's update is counted.
- `train` improves models on the users' own rows, by the solver of the run.
- The *server* turns the mean change of a section into its next value.

K users, m numbers of a network, b users of a block, n numbers of a section.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from hmtl.io.described import Described
from hmtl.mtl.networks.flat import FlatModel
from hmtl.mtl.solvers.base import Kind
from hmtl.mtl.solvers.networks import NetworkSolver

Numbers = SimpleNamespace
"""Tensors by the name of their section or own state: `shared.w`, `own.v`."""


@dataclass(frozen=True, eq=False)
class Section:
    """Numbers that users train, and that are averaged or coupled in each round.

    Attributes:
        start: the numbers before the first round [n].
        coupled: whether the regularizer couples the users' numbers, as in FedU; otherwise they are averaged. It acts on
            their changes from `start`, which also travel in their place.
        over_all: whether the average is over all users, also those who took no part, with what they sent last. Each
            user keeps that as own state with the name of the section.
    """

    start: Tensor
    coupled: bool = False
    over_all: bool = False


class Train(Protocol):
    """Local training of the users of a block, for `Learner.local`.

    All trainings of a round take the same minibatches, except those of different phases.

    Attributes:
        steps: number of steps that each user takes in the round, in the type of the models [b, 1].
    """

    steps: Tensor

    @property
    def rate(self) -> float:
        """The step size of this round, or ConfigError if the solver has none, or clips gradients."""
        ...

    def __call__(
        self,
        w: Tensor,
        anchor: tuple[float, Tensor] | None = None,
        correction: Tensor | None = None,
        only: frozenset[str] | None = None,
        phase: int = 0,
    ) -> Tensor:
        """Return the models [b, m] after the users' steps from w [b, m].

        Args:
            w: where steps start.
            anchor: λ and v [b, m] of a term (λ/2)‖w − v‖² in the users' objectives.
            correction: numbers added to the gradient of each step [b, m].
            only: names of the parameters that steps change; None: all.
            phase: which of the learner's `phases` this is, from 0.
        """
        ...


class Learner(Described):
    """A federated learner of networks. Its constructor takes its settings alone.

    The framework sets `model` and `solver` before it calls any other method.

    Attributes:
        regularized: whether a section is coupled.
        plain_steps: whether the learner corrects or counts gradient steps, so that these are not to be clipped, as they
            are by default. Coupled users have plain steps, too, since those of the coupling are as long.
        phases: number of local trainings per round, each with the solver's passes; a straggler's steps are divided
            evenly among them.
        model: the network. `model.shapes` has the names and shapes of its parameters, and `model.split(w)` returns
            these as views of models [..., m].
        solver: how users train.
    """

    regularized: bool = False
    plain_steps: bool = False
    phases: int = 1
    improves: ClassVar[Kind] = "networks"
    model: FlatModel
    solver: NetworkSolver

    @property
    def start(self) -> Tensor:
        """The initial parameters [m], the same for all users."""
        return self.model.start

    def check(self) -> None:
        """Raise ConfigError if the model or the solver does not suit this learner."""

    def sections(self) -> Mapping[str, Section]:
        """Return the sections by name; by default w, the average of the users' networks."""
        return {"w": Section(self.start)}

    def personal(self) -> Mapping[str, Tensor]:
        """Return the own state of a user who has not taken part yet, by name."""
        return {}

    def memory(self) -> Mapping[str, Tensor]:
        """Return what the server keeps from round to round beside the sections, before the first round, by name."""
        return {}

    def weights(self, counts: Tensor) -> Tensor:
        """Return the users' weights in averages [K], given their numbers of training rows [K]."""
        return counts

    def local(self, shared: Numbers, own: Numbers, train: Train) -> Mapping[str, Tensor]:
        """Return new numbers [b, n] for each section, and assign new own state to `own`.

        Args:
            shared: the sections as these users hold them, [b, n] each.
            own: their own state, a row for each user.
            train: trains networks [b, m] on their rows.
        """
        return {"w": train(shared.w)}

    def server(self, state: Numbers, mean: Numbers) -> Numbers | Mapping[str, Tensor]:
        """Return by how much each averaged section moves, [n] each; `mean` itself moves it to the mean.

        Only elementary operations, which have the same bits on all machines, should be used. In a round in which nobody
        takes part, the mean change is 0.

        Args:
            state: the sections' values and the memory, float64; new values of the memory are assigned to it.
            mean: the mean change of each section over the users who took part, float64 [n].
        """
        return mean

    def predictor(self, shared: Numbers, own: Numbers) -> Tensor:
        """Return the models [b, m] with which users predict."""
        w: Tensor = shared.w
        return w

    def measured(self, shared: Numbers, own: Numbers) -> Mapping[str, Tensor]:
        """Return further models [b, m] to be measured on test rows; a name such as `global_` begins their measures."""
        return {}

    def penalty(self, shared: Numbers, own: Numbers) -> Tensor | None:
        """Return what is added to each user's losses in the objective [b]; None: nothing."""
        return None

    @property
    def remembers(self) -> bool:
        """Whether a user's own state enters what it sends; then sampling does not amplify privacy."""
        return bool(self.personal())

    def describe(self) -> dict[str, Any]:
        """Return the name and the settings that `summary.json` reports."""
        own = {name: value for name, value in vars(self).items() if name not in vars(Learner) and name[0] != "_"}
        settings = {name: value for name, value in own.items() if isinstance(value, int | float | str)}
        return {"algorithm": type(self).__name__.lower(), **settings}

    def square_distances(self, W: Tensor, V: Tensor) -> Tensor:
        """Return ‖w_k − v_k‖² over trained parameters, without buffers, [b] for models [b, m], float64."""
        m = sum(shape.numel() for name, shape in self.model.shapes.items() if name not in self.model.buffers)
        return torch.sub(W[:, :m], V[:, :m]).double().square().sum(1)  # buffers come last
