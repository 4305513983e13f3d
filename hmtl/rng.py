"""Named random streams: one seed gives any number of independent generators."""

import hashlib

import numpy as np

from hmtl.errors import ConfigError


def generator(seed: int, *name: str | int) -> np.random.Generator:
    """Return the random stream with this name.

    Streams with different names are independent, and no stream depends on what was drawn from others. A run that
    resumes at round t therefore draws the same numbers as an uninterrupted one.

    Args:
        seed: the run's seed, a non-negative integer.
        name: strings and numbers, for example `("order", round, user)`.

    Raises:
        ConfigError: the seed is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed} is negative. Set seed to a whole number from 0.")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(_key(part) for part in name)))


def _key(part: str | int) -> int:
    if isinstance(part, int):
        return part
    return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=4).digest(), "little")
