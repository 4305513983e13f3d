"""SCAFFOLD: FedAvg whose users correct their steps by how their gradients differ from those of all users."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hmtl.mtl.learners.base import Learner, Numbers, Section, Train


class Scaffold(Learner):
    """FedAvg with control variates: user k takes steps $w ← w − μ_t (∇_k − c_k + c)$, so that steps do not drift apart.

    c_k is the mean gradient of user k's last round, and c the average of all c_k. Afterwards
    $c_k ← c_k − c + (w − w_k)/(μ_t T_k)$ for T_k steps from w to w_k (the paper's option II). c and all c_k start at 0.
    Averages are weighted by numbers of rows, as in FedAvg; in the paper all users weigh the same. Users send twice as
    many numbers as in FedAvg. If users are absent, w is the average over the others, and c remains that over all.

    Ref: Karimireddy et al. 2020, *SCAFFOLD: stochastic controlled averaging for federated learning*.
    """

    plain_steps = True

    def check(self) -> None:
        self.solver.check_correction()

    def sections(self) -> Mapping[str, Section]:
        return {"w": Section(self.start), "c": Section(torch.zeros_like(self.start), over_all=True)}

    def local(self, shared: Numbers, own: Numbers, train: Train) -> Mapping[str, Tensor]:
        correction = shared.c - own.c
        w = train(shared.w, correction=correction)
        return {"w": w, "c": (shared.w - w) / (train.rate * train.steps) - correction}
