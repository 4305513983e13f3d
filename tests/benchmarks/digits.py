"""Digits for benchmarks: MNIST where HMTL_DATA names a folder with mnist.npz, else clouds of points as large."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def digits(K: int, n: int, n_test: int, d: int = 784) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training rows x [K, n, d] float32 and y [K, n] int64, and test rows, in random order."""
    rng = np.random.default_rng(0)
    if folder := os.environ.get("HMTL_DATA"):
        with np.load(Path(folder, "mnist.npz")) as file:
            x, y, is_test = file["x"], file["y"], file["is_test"]
        parts = [(x[~is_test], y[~is_test]), (x[is_test], y[is_test])]
    else:
        centres = rng.integers(0, 256, (10, d))
        ys = [rng.integers(10, size=K * rows) for rows in (n, n_test)]
        parts = [(np.clip(centres[y] + rng.normal(0, 160, (len(y), d)), 0, 255).astype(np.uint8), y) for y in ys]
    made = []
    for (x, y), rows in zip(parts, (n, n_test), strict=True):
        chosen = rng.permutation(len(y))[: K * rows]
        made += [torch.from_numpy(x.reshape(len(x), -1)[chosen]).float().div_(255).view(K, rows, d)]
        made += [torch.from_numpy(y[chosen].astype(np.int64)).view(K, rows)]
    return tuple(made)  # type: ignore[return-value]
