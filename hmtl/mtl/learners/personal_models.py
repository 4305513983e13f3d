"""A shared network w and a personal one for each user, which never travels: Ditto, and the base of its relatives.

Users predict with their own networks v_k; measures of w have the prefix `global_`.
"""

from collections.abc import Mapping

from torch import Tensor

from hmtl.mtl.learners.base import Learner, Numbers, Train


class PersonalModels(Learner):
    """The own state v_k, with which users predict, beside FedAvg's w; what a user sends follows from w alone."""

    lam: float = 0.0
    """λ of the term (λ/2)‖v_k − w‖² in the objective."""

    remembers = False

    def personal(self) -> Mapping[str, Tensor]:
        return {"v": self.start}

    def predictor(self, shared: Numbers, own: Numbers) -> Tensor:
        v: Tensor = own.v
        return v

    def measured(self, shared: Numbers, own: Numbers) -> Mapping[str, Tensor]:
        return {"global_": shared.w}

    def penalty(self, shared: Numbers, own: Numbers) -> Tensor | None:
        return self.lam / 2 * self.square_distances(own.v, shared.w) if self.lam else None


class Ditto(PersonalModels):
    """FedAvg's w, and v_k from as many steps, on the same minibatches, on user k's loss + (λ/2)‖v_k − w‖².

    Args:
        lam: λ in [0, 2/step) if a step is named; larger values make local steps diverge. With 0, each v_k is trained on
            its own; the larger λ, the nearer v_k is to w.

    Ref: Li et al. 2021, *Ditto: fair and robust federated learning through personalization*, algorithm 1.
    """

    def __init__(self, lam: float) -> None:
        self.lam = lam

    def check(self) -> None:
        self.solver.check_proximal("lam", self.lam)

    def local(self, shared: Numbers, own: Numbers, train: Train) -> Mapping[str, Tensor]:
        w = train(shared.w)
        own.v = train(own.v, anchor=(self.lam, shared.w))
        return {"w": w}
