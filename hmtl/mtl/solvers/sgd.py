"""Stochastic gradient descent on the users' networks.

User k, with n_k rows of weights s_kj, takes
    w ← w − μ_t · n_k · (mean over the minibatch of s_kj ∇ℓ),    μ_t = μ/(1 + decay·t) in round t,
where the gradient is first clipped by default.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from hmtl.errors import ConfigError
from hmtl.mtl.solvers.trainers import TorchTrainer

MAX_STEP = torch.finfo(torch.float32).max  # networks may be of this type


class LocalSGD(TorchTrainer):
    """`TorchTrainer` with gradient steps on minibatches, which is the default solver for networks.

    Without a step size, it is 0.3, and gradients are clipped to norm 1: no step is longer than 0.3, so training stays
    finite with features and targets in any units. With a proximal term of weight λ, the step size is at most 1/λ. For
    learners with plain steps, see `Learner.plain_steps`, the step size is 0.03, and nothing is clipped.

    Args:
        step: step size μ > 0, of gradients as they are; None: see above.
        epochs: passes per round.
        batch: rows in a minibatch, B.
        decay: how fast the step size falls from round to round, ≥ 0; with 0 it stays constant.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(self, step: float | None = None, epochs: int = 5, batch: int = 20, decay: float = 0.0) -> None:
        clip, step = (1.0, 0.3) if step is None else (None, step)
        super().__init__(partial(torch.optim.SGD, lr=step), clip=clip, epochs=epochs, batch=batch)
        if not 0 < step < MAX_STEP or not 0 <= decay < MAX_STEP:
            raise ConfigError(f"step={step}, decay={decay}: give finite numbers with step > 0 and decay ≥ 0.")
        self.step = step
        self.decay = decay

    def plain(self) -> Self:
        if not self.clip:
            return self
        solver = copy.copy(self)
        solver.step, solver.clip = 0.03, None
        return solver

    def check_proximal(self, name: str, weight: float) -> None:
        """Raise ConfigError if steps on a proximal term of this weight, which the setting `name` has, diverge."""
        if self.clip:
            super().check_proximal(name, weight)
        elif not 0 <= weight < 2 / self.step:
            raise ConfigError(
                f"{name}={weight:g} is not in [0, 2/step), here below {2 / self.step:g}: the models would diverge. "
                f"Lower {name} or solver.step."
            )

    def _groups(self, round: int, parameters: Sequence[nn.Parameter] = (), lam: float = 0.0) -> list[dict[str, Any]]:
        rate = self.step / (1 + self.decay * round)
        return [{"lr": min(rate, 1 / lam) if self.clip and lam else rate}]  # an optimizer imports torch's compiler
