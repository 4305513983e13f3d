"""FedNova: FedAvg in which users who take more steps do not weigh more."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hmtl.mtl.learners.base import Learner, Numbers, Section, Train

UNIT = 2.0**-10  # of steps, so that they are about as large as changes of the model, beside which they are rounded


class FedNova(Learner):
    """$w ← w + τ Σ_k p_k (w_k − w)/τ_k$ with $τ = Σ_k p_k τ_k$, for τ_k steps of user k and weights p_k = n_k / Σ n.

    With FedAvg, the model moves toward a minimum of an objective in which users with more steps weigh more. The
    section `tau` carries τ_k · UNIT.

    Ref: Wang et al. 2020, *Tackling the objective inconsistency problem*, for plain gradient steps.
    """

    plain_steps = True

    def check(self) -> None:
        self.solver.check_correction()
        self.model.check_no_buffers("FedNova")

    def sections(self) -> Mapping[str, Section]:
        return {"w": Section(self.start), "tau": Section(torch.zeros_like(self.start[:1]))}

    def local(self, shared: Numbers, own: Numbers, train: Train) -> Mapping[str, Tensor]:
        change = (train(shared.w) - shared.w) / train.steps
        return {"w": shared.w + change, "tau": UNIT * train.steps}

    def server(self, state: Numbers, mean: Numbers) -> Mapping[str, Tensor]:
        tau = (state.tau + mean.tau) / UNIT
        return {"w": tau * mean.w, "tau": mean.tau}
