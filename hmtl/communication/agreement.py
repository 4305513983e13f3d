"""Agreement of aggregators: the server compares digests of their IVs and models before it releases the models."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

from hmtl.gf256 import matmul
from hmtl.rng import generator

CHECK_ROWS = 4  # random combinations; two different sets of IVs agree in all of them with probability 2^-32
CONTENT_DIGEST_BYTES = 16
FOLD = 8 << 10  # bytes; longer content is folded into CHECK_ROWS rows of this length before it is hashed


@lru_cache(maxsize=64)
def check_rows(n: int) -> Tensor:
    """Return random coefficients [CHECK_ROWS, n], the same at every node."""
    return torch.from_numpy(generator(0, "fingerprint", n).integers(0, 256, (CHECK_ROWS, n), "uint8"))


class Digest:
    """A digest of rows of bytes: a hash of a few random combinations over GF(2^8).

    Hashing every byte would cost several times more than coding it.
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=CONTENT_DIGEST_BYTES)

    def add(self, combinations: Tensor) -> None:
        """Add one row, or random combinations of some rows, uint8 [1 or CHECK_ROWS, L]; see `check_rows`."""
        content = combinations.reshape(-1)
        pieces = len(content) // FOLD
        folded, rest = content[: pieces * FOLD].view(-1, FOLD), content[pieces * FOLD :]
        if pieces:
            self._hash.update(matmul(check_rows(pieces), folded).numpy().data)
        self._hash.update(rest.numpy().data)

    def add_rows(self, rows: Tensor) -> None:
        """Add rows, uint8 [n, L]."""
        if not rows.numel():
            return
        one = len(rows) == 1 or rows.stride(0) == 0  # one row in memory may stand for n equal rows
        self.add(rows[:1] if one else matmul(check_rows(len(rows)), rows))

    def value(self) -> bytes:
        """Return the digest of everything added so far, CONTENT_DIGEST_BYTES long."""
        return self._hash.digest()

    def sealed(self, plan: bytes) -> bytes:
        """Return the digest, whose first bytes are replaced by a digest of the plan."""
        return plan + self.value()[len(plan) :]
