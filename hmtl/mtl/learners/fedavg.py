"""FedAvg and FedProx: one network for all users, the average of the networks that they train."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.learners.base import Learner, Numbers, Train


class FedAvg(Learner):
    """$w ← Σ_k p_k w_k / Σ_k p_k$ over the users who took part, where user k trains w to w_k on its n_k rows.

    Args:
        weights: p_k. `rows`: n_k; `equal`: 1; or a function that returns them [K], given n_k [K].

    Ref: McMahan et al. 2017, *Communication-efficient learning of deep networks from decentralized data*.
    """

    def __init__(self, weights: Literal["rows", "equal"] | Callable[[Tensor], Tensor] = "rows") -> None:
        if not callable(weights) and weights not in ("rows", "equal"):
            raise ConfigError(f"weights={weights!r}: choose rows or equal, or give a function of numbers of rows.")
        self._weights = weights

    def weights(self, counts: Tensor) -> Tensor:
        if callable(self._weights):
            return self._weights(counts).to(counts)
        return counts if self._weights == "rows" else torch.ones_like(counts)


class FedProx(Learner):
    """FedAvg whose users minimize their loss + $(μ/2)‖w_k − w‖²$, so that they drift less in a round of many steps.

    Args:
        mu: μ in [0, 2/step) if a step is named; larger values make local steps diverge. 0 is FedAvg, bit for bit.

    Ref: Li et al. 2020, *Federated optimization in heterogeneous networks*.
    """

    def __init__(self, mu: float) -> None:
        self.mu = mu

    def check(self) -> None:
        self.solver.check_proximal("mu", self.mu)

    def local(self, shared: Numbers, own: Numbers, train: Train) -> Mapping[str, Tensor]:
        return {"w": train(shared.w, anchor=(self.mu, shared.w) if self.mu else None)}
