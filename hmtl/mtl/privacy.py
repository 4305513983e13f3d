"""What a user does to its term of a sum before it sends it, for differential privacy: clip it, and add noise.

m numbers per term, in steps of a grid. A term is a user's change of the model times 2^-⌈log2 K⌉, the weight of each of
K users; clipping and noise are scaled with it. No single user's noise hides its term; the noise of all who count hides
each of them in the sum, so that those who learn only the sum need not be trusted.

Ref: McMahan et al. 2018, *Learning differentially private recurrent language models*; Kairouz, Liu, Steinke 2021, *The
distributed discrete Gaussian mechanism for federated learning with secure aggregation*.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.discrete_gaussian import MAX_SIGMA, DrawWords, discrete_gaussian, repeatable_words, system_words
from hmtl.mtl.sums import MAX_SUM, Grid, fitting
from hmtl.rng import generator

Randomness = Literal["system", "seed"]
SLACK = 2.0**-20
"""Terms are clipped by this share more than is asked for, which covers the rounding of norms and products."""
MIN_NOISE_STEPS = 16
"""Least standard deviation of a user's noise, in steps of the grid.

A sum of n discrete Gaussians is not quite one: by proposition 14 of Kairouz et al. their probabilities differ by at
most a factor of exp(10 n exp(−π² σ²)), σ being that of each; here the inner exponential is below 10^-1000.
"""
TAIL = 40
"""Standard deviations that fit into 64 bits beside the term; larger noise has a probability below 10^-347."""


@dataclass(frozen=True)
class Privacy:
    """How users clip their terms and add noise.

    Args:
        clip: largest L2 norm of a user's change of the model, C > 0.
        noise: standard deviation of the noise in a sum, in multiples of C, > 0.
        least: number of users whose shares of the noise add up to that, ≥ 1.
        seed: seed of the run.
        randomness: where the noise comes from. `system`: from the operating system, so that nobody can compute it.
            `seed`: from the run's seed, so that a run can be repeated, and a resumed run is that without interruption.
            Then everyone who knows the seed can subtract the noise: it is for experiments, and protects nobody.
    """

    clip: float
    noise: float
    least: int
    seed: int = 0
    randomness: Randomness = "system"

    def sigma(self, grid: Grid) -> int:
        """Return the standard deviation of a user's noise, in steps of the grid.

        Raises:
            ConfigError: the grid is too coarse for the noise, or 64 bits are too few.
        """
        bound = self._bound(grid)
        sigma = self.noise * bound / math.sqrt(self.least)
        if sigma < MIN_NOISE_STEPS:
            raise ConfigError(
                f"privacy: noise of {self.noise:.3g} · clip={self.clip:g} is too fine for fraction_bits={grid.bits}. "
                "Raise fraction_bits."
            )
        if bound + TAIL * sigma > MAX_SUM / grid.K or sigma > MAX_SIGMA:
            raise ConfigError(
                f"privacy: noise of {self.noise:.3g} · clip={self.clip:g} is too large for sums of K={grid.K} terms in "
                f"64 bits with fraction_bits={grid.bits}. Lower fraction_bits or clip, or raise privacy.epsilon."
            )
        return math.ceil(sigma)

    def protected(self, grid: Grid, round: int, users: NDArray[np.int64], terms: Tensor) -> Tensor:
        """Return the terms [n, m] of users with these numbers [n], clipped and with noise, int64 [n, m]."""
        noisy, sigma = clipped(terms, self._bound(grid)), self.sigma(grid)
        for row, user in zip(noisy, users.tolist(), strict=True):
            words: DrawWords = system_words
            if self.randomness == "seed":
                words = repeatable_words(generator(self.seed, "noise", round, user))
            row += torch.from_numpy(discrete_gaussian(sigma, len(row), words)).to(row.device)
        return noisy

    def _bound(self, grid: Grid) -> float:
        """Return the largest L2 norm of a term, in steps of the grid."""
        return self.clip * fitting(grid.K) * 2.0**grid.bits


def clipped(terms: Tensor, bound: float) -> Tensor:
    """Return rows of whole numbers whose L2 norm is at most `bound`: longer ones are scaled, and rounded toward 0."""
    norms = torch.linalg.vector_norm(terms.double(), dim=1, keepdim=True)
    allowed = bound * (1 - SLACK)
    scaled = (terms.double() * (allowed / norms.clamp_min(allowed))).trunc_().to(torch.int64)
    return torch.where(norms > allowed, scaled, terms)
