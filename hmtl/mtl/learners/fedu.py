"""FedU: a network for each user, coupled by the regularizer of the problem."""

from collections.abc import Mapping

from hmtl.mtl.learners.base import Learner, Section


class FedU(Learner):
    """R_k SGD steps at user k, then $w_k ← w_k − μ_t·R_k·Σ_l A_kl w_l$ at the aggregator, for all users at once.

    Here w_k is the change of user k's network from its start, so that the regularizer draws no pretrained network to 0.
    With A = ηL, the step is $w_k − μ_t·R_k·η·Σ_l a_kl (w_k − w_l)$. Steps of both kinds weigh the same for any
    minibatches and numbers of steps, so models approach a stationary point of P as μ_t falls. If μ_t·R_k times the
    largest eigenvalue of A is at least 2, the step is taken in as many parts as stability needs.

    If the regularizer needs only sums, each user takes its own coupling step from what all users sent last (see
    `StepsBySums`); for a user who was not heard, what it sent last still counts. If the regularizer learns Ω, the
    aggregator learns it from the users' models in each round, and takes implicit steps (see `StepsOfAll`).

    Ref: Dinh et al. 2021, *FedU: a unified framework for federated multi-task learning*, algorithm 1.
    """

    regularized = True

    def check(self) -> None:
        self.model.check_no_buffers("FedU")

    def sections(self) -> Mapping[str, Section]:
        return {"w": Section(self.start, coupled=True)}
