"""pFedMe: personal networks by Moreau envelopes, and a shared one that moves toward them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.learners.base import Numbers, Train
from hmtl.mtl.learners.personal_models import PersonalModels


class PFedMe(PersonalModels):
    """v_k ≈ argmin of user k's loss + (λ/2)‖v − w_k‖², and a shared w that moves toward all v_k.

    In a round, each user starts from v_k = w_k = w. R times it improves v_k by the solver's steps and then moves
    $w_k ← w_k − ηλ (w_k − v_k)$. It sends w_k, and w ← (1 − β) w + β · (mean of all w_k), with equal weights.

    The paper improves v_k, its θ_k, on one minibatch; here the steps pass over all of the user's rows, which comes
    nearer to the argmin. The paper does not say where θ_k starts; its authors' code starts at w, too.

    Args:
        lam: λ in (0, 2/step) if a step is named; larger values make local steps diverge. The larger λ, the nearer v_k
            is to w.
        eta: η in (0, 1/λ]; None: 1/λ, with which w_k becomes v_k.
        local_rounds: R ≥ 1.
        beta: β > 0; 1 is the mean, and a larger β goes beyond it.

    Ref: Dinh et al. 2020, *Personalized federated learning with Moreau envelopes*, algorithm 1.
    """

    def __init__(self, lam: float, eta: float | None = None, local_rounds: int = 1, beta: float = 1.0) -> None:
        if eta is None:
            eta = 1 / lam if lam else 1.0
        if not (eta > 0 and 0 < eta * lam <= 1):
            raise ConfigError(
                f"eta={eta:g}, lam={lam:g}: eta·lam, the share of the way to v_k, is not in (0, 1]. Change eta or lam."
            )
        if local_rounds < 1 or not 0 < beta < math.inf:
            raise ConfigError(
                f"local_rounds={local_rounds}, beta={beta:g}: give at least 1 local round, and a finite beta above 0."
            )
        self.lam = lam
        self.eta = eta
        self.local_rounds = self.phases = local_rounds
        self.beta = beta

    def check(self) -> None:
        self.solver.check_proximal("lam", self.lam)
        if self.beta != 1:
            self.model.check_no_buffers("pFedMe with this beta")

    def weights(self, counts: Tensor) -> Tensor:
        return torch.ones_like(counts)

    def local(self, shared: Numbers, own: Numbers, train: Train) -> Mapping[str, Tensor]:
        w = v = shared.w
        for r in range(self.phases):
            v = train(v, anchor=(self.lam, w), phase=r)
            w = w - self.eta * self.lam * (w - v)
        own.v = v
        return {"w": w}

    def server(self, state: Numbers, mean: Numbers) -> Numbers | Mapping[str, Tensor]:
        return mean if self.beta == 1 else {"w": self.beta * mean.w}
