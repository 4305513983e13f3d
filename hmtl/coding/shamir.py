"""Shamir's secret sharing over GF(2^8): any t of k shares give a secret, fewer tell nothing about it.

Each byte of a secret is the value at 0 of a polynomial of degree t − 1 whose other coefficients are random; share q is
its value at q + 1. Shapes: n secrets of s bytes, k ≤ 255 shares of each.

Ref: Shamir 1979.
"""

import secrets
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

from hmtl import gf256
from hmtl.gf256.products import INVERSES, PRODUCTS
from hmtl.io.arrays import Bytes

MAX_SHARES = 255  # elements of the field besides 0


def split(values: Bytes, k: int, t: int) -> Bytes:
    """Return k shares of each secret [n, k, s], for secrets [n, s] and a threshold 1 ≤ t ≤ k."""
    n, s = values.shape
    drawn = np.frombuffer(secrets.token_bytes((t - 1) * n * s), np.uint8).reshape(t - 1, n * s)
    coefficients = torch.from_numpy(np.concatenate([values.reshape(1, -1), drawn]))
    x, powers = _points(np.arange(k)), [np.ones(k, np.uint8)]
    for _ in range(t - 1):
        powers.append(_times(powers[-1], x))
    shares = gf256.matmul(torch.from_numpy(np.stack(powers, axis=1)), coefficients).numpy()
    return np.ascontiguousarray(shares.reshape(k, n, s).swapaxes(0, 1))


def join(numbers: NDArray[np.int64], shares: Bytes) -> Bytes:
    """Return the secrets [n, s] from t shares of each [n, t, s], whose numbers q are [n, t].

    By Lagrange's formula at 0, the weight of share i is the product over j ≠ i of x_j / (x_j − x_i).
    """
    x = _points(numbers)
    t = x.shape[1]
    differences = x[:, :, None] ^ x[:, None, :]
    differences[:, np.arange(t), np.arange(t)] = x  # x_i itself, since the numerator below is the product of all x_j
    below = reduce(_times, np.moveaxis(differences, 2, 0))
    weights = _times(reduce(_times, x.T)[:, None], INVERSES.numpy()[below])
    return np.asarray(np.bitwise_xor.reduce(_times(weights[:, :, None], shares), axis=1))


def _points(numbers: NDArray[np.int64]) -> Bytes:
    return (numbers + 1).astype(np.uint8)


def _times(a: Bytes, b: Bytes) -> Bytes:
    return np.asarray(PRODUCTS.numpy()[a, b])
