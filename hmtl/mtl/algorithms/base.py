"""What every learning algorithm offers to the loop that runs it.

K users, m numbers per IV and model, e further numbers that a user needs, d features. Two sides share nothing but
messages: the user side (`local_update`, `receive`) and the aggregator side (`global_update`).
"""

import statistics
import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from hmtl.mtl.participation import Participation
from hmtl.mtl.problem import Problem


class Algorithm(ABC):
    """Local update → IVs → global update → models, once per round."""

    problem: Problem
    seed: int
    participation = Participation()

    @abstractmethod
    def local_update(self, round: int) -> Tensor:
        """User side: the IVs v_k, [K, m]."""

    @abstractmethod
    def global_update(self, ivs: Tensor) -> Tensor:
        """Aggregator side: IVs [K, m] to models [K, m + e]; the first m numbers of a row are w_k, the rest overhead."""

    @abstractmethod
    def receive(self, models: Tensor) -> None:
        """User side: take the models [K, m + e]."""

    @property
    @abstractmethod
    def W(self) -> Tensor:
        """The users' models, [d, K]."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that changes from round to round, as tensors in plain dictionaries (torch.save, weights_only)."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, to the same bits."""

    @abstractmethod
    def local_work(self, round: int, user: int) -> None:
        """One user's `local_update`, alone and without a trace in the state: for timing."""

    def absent(self, round: int) -> tuple[int, ...]:
        """Users who drop out of a round: they send nothing, and all relays know what to take for their IVs."""
        shares = self.participation.shares(self.seed, round, self.problem.K)
        return tuple(int(k) for k in (shares == 0).nonzero())

    @property
    def Omega(self) -> Tensor | None:
        """Ω [K, K], where the algorithm learns one."""
        return None

    def errors(self, split: str) -> Tensor:
        """Mean error of each user's model on its own `train` or `test` rows, [K]; see `Loss.error`."""
        return self.problem.errors(self.W, split)

    def metrics(self) -> dict[str, float]:
        """Figures of the state between two rounds: train and test error, mean over users and of the worst user.

        An algorithm that has them puts primal, dual and gap before these.
        """
        figures: dict[str, float] = {}
        for split in ("train", "test"):
            errors = self.errors(split)
            figures |= {f"{split}_error": float(errors.mean()), f"{split}_error_worst": float(errors.max())}
        return figures

    def user_seconds(self, round: int, users: int = 3, repeats: int = 3) -> float:
        """Measured wall time [s] of the slowest user's local update.

        The `users` users with most rows are timed, each alone, median of `repeats`: users work side by side, so a
        round waits for the slowest of them, not for their sum. Stragglers do less so as to be done by then.
        """
        counts = self.problem.rows.counts
        busiest = sorted(range(len(counts)), key=lambda k: -counts[k])[:users]
        self.local_work(round, busiest[0])  # whatever compiles or loads on first use is no part of a round
        return max(statistics.median(self._seconds(round, user) for _ in range(repeats)) for user in busiest)

    def _seconds(self, round: int, user: int) -> float:
        start = time.perf_counter()
        self.local_work(round, user)
        if self.problem.rows.X.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start
