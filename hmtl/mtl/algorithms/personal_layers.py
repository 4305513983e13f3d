"""FedPer, FedRep and LG-FedAvg: some layers of the network are averaged, and each user keeps the others to itself.

K users; a shared and p personal numbers of a network with m = a + p parameters.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hmtl.errors import ConfigError, few
from hmtl.mtl.algorithms.fedavg import FedAvg
from hmtl.mtl.algorithms.networks import LocalTraining, Sending, StatefulUsers
from hmtl.mtl.networks.flat import FlatModel, MakeModel
from hmtl.mtl.problem import Problem, Rows
from hmtl.mtl.solvers.sgd import LocalSGD


def last_layer(names: Sequence[str]) -> frozenset[str]:
    """Return the parameters that belong to the same module as the last one."""
    layer = names[-1].rpartition(".")[0]
    return frozenset(name for name in names if name.rpartition(".")[0] == layer)


def matching(names: Sequence[str], wanted: Collection[str]) -> frozenset[str]:
    """Return the parameters with a wanted name, or in a module with a wanted name.

    Raises:
        ConfigError: a wanted name matches nothing, or all parameters match.
    """
    of = {each: {name for name in names if f"{name}.".startswith(f"{each}.")} for each in wanted}
    if unknown := [each for each, matched in of.items() if not matched]:
        raise ConfigError(
            f"personal={unknown[0]!r} is none of the network's parameters and modules. Its parameters are "
            f"{few(names)}; give some of them, or modules such as {names[-1].rpartition('.')[0] or names[-1]!r}."
        )
    return frozenset[str]().union(*of.values())


@dataclass(frozen=True, eq=False)
class Split:
    """Which of a network's parameters are personal, by name, and where they are among its m numbers.

    Raises:
        ConfigError: no parameter is personal, or all are.
    """

    model: FlatModel
    personal: frozenset[str]

    def __post_init__(self) -> None:
        if not self.shared or not self.personal:
            raise ConfigError(
                f"personal={sorted(self.personal)} leaves nothing {'shared' if self.personal else 'personal'} of the "
                f"network's parameters ({few(list(self.model.shapes))}). Give some of them, or choose a network with "
                "several layers, such as algorithm.model._target_=hmtl.mtl.mlp."
            )

    @property
    def shared(self) -> frozenset[str]:
        return frozenset(self.model.shapes) - self.personal

    def part(self, W: Tensor, names: frozenset[str]) -> Tensor:
        """Return the numbers [..., n] of these parameters of models W [..., m]."""
        return torch.cat([w.flatten(W.ndim - 1) for name, w in self.model.split(W).items() if name in names], dim=-1)

    def models(self, shared: Tensor, personal: Tensor) -> Tensor:
        """Return the models [K, m] from their shared numbers [K, a] and personal numbers [K, p]."""
        parts = {True: iter(self._cut(personal, self.personal)), False: iter(self._cut(shared, self.shared))}
        return torch.cat([next(parts[name in self.personal]) for name in self.model.shapes], dim=1)

    def _cut(self, numbers: Tensor, names: frozenset[str]) -> tuple[Tensor, ...]:
        sizes = [shape.numel() for name, shape in self.model.shapes.items() if name in names]
        return torch.split(numbers, sizes, dim=1)


class LayerUsers(StatefulUsers):
    """User side: `W` [K, a] are the shared numbers, and `V` [K, p] the personal ones.

    Args: as in `NetworkUsers`, and
        split: which parameters are personal.
        phases: names of the parameters that are trained one after the other in a round, with all of the solver's
            epochs each.
    """

    def __init__(self, local: LocalTraining, sending: Sending, split: Split, phases: Sequence[frozenset[str]]) -> None:
        start = local.model.start
        super().__init__(local, sending, split.part(start, split.personal), start=split.part(start, split.shared))
        self.split = split
        self.phases = phases
        self.usual = len(phases) * self.usual

    @property
    def models(self) -> Tensor:
        return self.split.models(self.W, self.V)

    def predictors(self, state: dict[str, Tensor]) -> Tensor:
        return self.split.models(state["W"], state["V"])

    def _train(self, round: int, users: slice, rows: Rows, budgets: Tensor) -> tuple[Tensor, ...]:
        W = self.split.models(self.W[users], self.V[users])
        usual = self.local.solver.steps(rows.counts)
        for r, trained in enumerate(self.phases):
            steps = (budgets - r * usual).clamp_min(0).minimum(usual)  # a straggler skips the last steps
            order = self._order(round * len(self.phases) + r, users, rows)
            W = self._steps(users, rows, W, order, steps, round, r, trained=trained)
        return self.split.part(W, self.split.shared), self.split.part(W, self.split.personal)


class FedPer(FedAvg):
    """FedAvg of the first layers; each user has a last layer of its own. Users train both at once.

    The personal parameters start alike and never travel. Those of an absent user stay as they are, while the shared
    ones are replaced by the new average.

    Args, Raises: as in `FedAvg`, and
        personal: names of the personal parameters, or of modules with personal parameters only, as in `state_dict` of
            the network; None: the last layer.

    Ref: Arivazhagan et al. 2019.
    """

    last_is_personal: ClassVar[bool] = True
    personal_first: ClassVar[bool] = False
    """Whether users train the personal parameters first, and then the shared ones, instead of all at once."""

    def __init__(
        self,
        problem: Problem,
        solver: LocalSGD,
        model: MakeModel,
        personal: Sequence[str | int] | str | int | None = None,
        **options: Any,
    ) -> None:
        self.personal = [personal] if isinstance(personal, str | int) else personal
        super().__init__(problem, solver, model, **options)

    @property
    def _split(self) -> Split:
        names = list(self.model.shapes)
        if self.personal is not None:
            return Split(self.model, matching(names, [str(each) for each in self.personal]))
        last = last_layer(names)
        return Split(self.model, last if self.last_is_personal else frozenset(names) - last)

    @property
    def _start(self) -> Tensor:
        split = self._split
        return split.part(self.model.start, split.shared)

    def _users(self, sending: Sending) -> LayerUsers:
        split = self._split
        phases = (split.personal, split.shared) if self.personal_first else (frozenset(self.model.shapes),)
        return LayerUsers(self._local, sending, split, phases)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"personal": sorted(self._split.personal)}


class FedRep(FedPer):
    """FedPer whose users train the personal layers first, with the shared ones fixed, and then the shared ones.

    Each of the two phases takes the solver's epochs.

    Args, Raises: as in `FedPer`.

    Ref: Collins et al. 2021.
    """

    personal_first = True


class LGFedAvg(FedPer):
    """FedPer the other way round: each user has first layers of its own, and the last layer is averaged.

    Args, Raises: as in `FedPer`; personal=None: all but the last layer.

    Ref: Liang et al. 2020.
    """

    last_is_personal = False

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"algorithm": "lg_fedavg"}
