"""Named random generators: one seed gives any number of independent streams, each found again by its name."""

import hashlib

import numpy as np

from hmtl.errors import ConfigError


def generator(seed: int, *name: str | int) -> np.random.Generator:
    """The stream called `name` under `seed`.

    Streams with different names are independent, and a stream does not depend on which others were drawn before it;
    so a run that is resumed at round t draws what the uninterrupted run would have drawn.

    Args:
        seed: the run's seed, a non-negative integer.
        name: words and numbers, for example `("order", round, user)`.

    Raises:
        ConfigError: a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed} is below 0: give a whole number from 0.")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(_key(part) for part in name)))


def _key(part: str | int) -> int:
    if isinstance(part, int):
        return part
    return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=4).digest(), "little")
