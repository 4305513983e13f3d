"""Which numbers of a network each user has for itself, by the names of layers and parameters.

b users; a shared and p personal numbers of a network with m = a + p parameters.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from hmtl.errors import ConfigError, few
from hmtl.mtl.networks.flat import FlatModel


def last_layer(names: Sequence[str]) -> frozenset[str]:
    """Return the parameters that belong to the same module as the last one."""
    layer = names[-1].rpartition(".")[0]
    return frozenset(name for name in names if name.rpartition(".")[0] == layer)


def matching(names: Sequence[str], wanted: Collection[str]) -> frozenset[str]:
    """Return the parameters with a wanted name, or in a module with one; `*` and `?` stand for any characters.

    Raises:
        ConfigError: a wanted name matches nothing.
    """
    of = {each: {name for name in names if fnmatchcase(f"{name}.", f"{each}.*")} for each in wanted}
    if unknown := [each for each, matched in of.items() if not matched]:
        raise ConfigError(
            f"personal={unknown[0]!r} is none of the network's parameters and modules. Its parameters are "
            f"{few(names)}; give some of them, modules such as {names[-1].rpartition('.')[0] or names[-1]!r}, or a "
            "pattern such as '*bias'."
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
        parts = {name: w for name, w in self.model.split(W).items() if name in names}
        return torch.cat([w.reshape(*W.shape[:-1], self.model.shapes[n].numel()) for n, w in parts.items()], dim=-1)

    def models(self, shared: Tensor, personal: Tensor) -> Tensor:
        """Return the models [b, m] from their shared numbers [b, a] and personal numbers [b, p]."""
        parts = {True: iter(self._cut(personal, self.personal)), False: iter(self._cut(shared, self.shared))}
        return torch.cat([next(parts[name in self.personal]) for name in self.model.shapes], dim=1)

    def _cut(self, numbers: Tensor, names: frozenset[str]) -> tuple[Tensor, ...]:
        sizes = [shape.numel() for name, shape in self.model.shapes.items() if name in names]
        return torch.split(numbers, sizes, dim=1)
