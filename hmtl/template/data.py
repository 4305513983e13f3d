"""The data of each user: replace `users` by your own."""

import torch
from torch.utils.data import TensorDataset


def users(K: int = 12, rows: int = 60) -> list[tuple[TensorDataset, TensorDataset]]:
    """Return training and test rows of K users, whose three classes are shifted against each other."""
    draw = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 8, generator=draw)
    data = []
    for _ in range(K):
        shift, y = torch.randn(8, generator=draw), torch.randint(3, (rows,), generator=draw)
        x = centers[y] + shift + 0.5 * torch.randn(rows, 8, generator=draw)
        n = 3 * rows // 4
        data.append((TensorDataset(x[:n], y[:n]), TensorDataset(x[n:], y[n:])))
    return data
