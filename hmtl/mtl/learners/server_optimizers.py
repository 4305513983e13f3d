"""FedAvg whose server treats the mean change of the users' models as a gradient: FedAvgM, FedAdam, FedYogi."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.learners.base import Learner, Numbers


class FedAvgM(Learner):
    """FedAvg with momentum at the server: $v ← β v + Δ$ and $w ← w + η v$, where Δ is the mean change.

    Args:
        beta: β in [0, 1); 0 is FedAvg.
        eta: step size η > 0 of the server.

    Ref: Hsu, Qi, Brown 2019, *Measuring the effects of non-identical data distribution*.
    """

    def __init__(self, beta: float = 0.9, eta: float = 1.0) -> None:
        if not (0 <= beta < 1 and eta > 0):
            raise ConfigError(f"beta={beta:g}, eta={eta:g}: give beta in [0, 1) and eta above 0.")
        self.beta = beta
        self.eta = eta

    def check(self) -> None:
        self.model.check_no_buffers("FedAvgM")

    def memory(self) -> Mapping[str, Tensor]:
        return {"v": torch.zeros_like(self.start)}

    def server(self, state: Numbers, mean: Numbers) -> Mapping[str, Tensor]:
        state.v = self.beta * state.v + mean.w
        return {"w": self.eta * state.v}


class FedAdam(Learner):
    """$w ← w + η u/(√v + τ)$, where $u ← β₁ u + (1 − β₁) Δ$ and $v ← β₂ v + (1 − β₂) Δ²$; v begins as τ².

    Args:
        eta: step size η > 0 of the server.
        beta1, beta2: β₁ and β₂ in [0, 1).
        tau: τ > 0; the larger, the less the step size adapts to each coordinate.

    Ref: Reddi et al. 2021, *Adaptive federated optimization*, algorithm 2.
    """

    def __init__(self, eta: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> None:
        if not (eta > 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and tau > 0):
            raise ConfigError(
                f"eta={eta:g}, beta1={beta1:g}, beta2={beta2:g}, tau={tau:g}: give eta and tau above 0, and both betas "
                "in [0, 1)."
            )
        self.eta = eta
        self.beta1 = beta1
        self.beta2 = beta2
        self.tau = tau

    def check(self) -> None:
        self.model.check_no_buffers(type(self).__name__)

    def memory(self) -> Mapping[str, Tensor]:
        return {"u": torch.zeros_like(self.start), "v": torch.full_like(self.start, self.tau**2)}

    def server(self, state: Numbers, mean: Numbers) -> Mapping[str, Tensor]:
        state.u = self.beta1 * state.u + (1 - self.beta1) * mean.w
        state.v = self.second_moment(state.v, mean.w.square())
        return {"w": self.eta * state.u / (state.v.sqrt() + self.tau)}

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """Return the next v, given Δ² [m]."""
        return self.beta2 * v + (1 - self.beta2) * square


class FedYogi(FedAdam):
    """FedAdam with $v ← v − (1 − β₂) Δ² sign(v − Δ²)$, which falls more slowly.

    Args:
        eta, beta1, beta2, tau: as in `FedAdam`.
    """

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta2) * square * (v - square).sign()
