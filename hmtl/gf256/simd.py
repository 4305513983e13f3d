"""Matrix products over GF(2^8) in vector instructions, in blocks of rows and in threads.

Shapes: A [n, m] coefficients; X [m, L] and A·X [n, L] messages of L bytes, one per row; all are uint8.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from hmtl.gf256.instructions import Path, usable

POLYNOMIAL = 0x11D
# Multiplications per byte of vector width from which threads pay, about a third of a millisecond of work.
THREADS_FROM = 2 << 20
SHARES_PER_THREAD = 4  # so that a thread on a busy core delays the others little


def matmul(A: Tensor, X: Tensor, threads: int | None = None, path: Path | None = None) -> Tensor:
    """Return the matrix product A·X over GF(2^8), uint8 [n, L].

    Args:
        A: coefficients, uint8 [n, m] on the CPU.
        X: one message of L bytes per row, uint8 [m, L] on the CPU.
        threads: how many threads share the columns of a large product; None: `torch.get_num_threads()`.
        path: one of `usable()`; None: the best.
    """
    (n, m), L = A.shape, X.shape[-1]
    path = path or usable()[0]
    if not n * m * L:
        return torch.zeros(n, L, dtype=torch.uint8)
    if path.strip > L:  # kernels write whole strips
        return matmul(A, pad(X, (0, path.strip - L)), threads=1, path=path)[:, :L].contiguous()
    from hmtl.gf256.kernels import compiled  # here, because importing LLVM takes long

    X = X if X.stride(1) == 1 else X.contiguous()
    out = torch.empty(n, L, dtype=torch.uint8)
    table = _table(path.affine)
    # Kernels read the coefficients by columns of A, `inputs` columns at a time.
    columns = np.zeros((m + -m % path.inputs, n), dtype=np.uint8)
    columns[:m] = A.numpy().T
    # The fewest blocks that cover n rows: `tall` of them have `height` rows, the others one less.
    blocks = -(-n // path.rows)
    height = -(-n // blocks)
    tall = n - blocks * (height - 1)
    kernels = [(compiled(path, height), tall, 0)]
    if tall < blocks:
        kernels.append((compiled(path, height - 1), blocks - tall, height * tall))
    # ctypes releases the GIL, so Python threads run in parallel.
    threads = (threads or torch.get_num_threads()) if n * m * L >= THREADS_FROM * path.width else 1
    shares = 1 if threads == 1 else min(threads * SHARES_PER_THREAD, L // path.strip)
    cuts = [L // path.strip * share // shares * path.strip for share in range(shares)] + [L]
    ranges = iter(list(pairwise(cuts)))

    def work() -> None:
        for start, stop in ranges:  # an idle thread takes the next range
            source, width = X.data_ptr() + start, stop - start
            for kernel, number, row in kernels:
                coefficients, target = columns.ctypes.data + row, out.data_ptr() + row * L + start
                kernel(table.data_ptr(), coefficients, n, source, X.stride(0), target, L, m, width, number)

    futures = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for future in futures:
        future.result()
    return out


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gf256")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork, so the child creates its own pool
    os.register_at_fork(after_in_child=_pool.cache_clear)


@cache
def _table(affine: bool) -> Tensor:
    """Return each multiplier c: a bit matrix [256, 8], or two tables [256, 32].

    The tables hold the products c·x and c·16x for x < 16.
    """
    powers = np.empty((8, 256), dtype=np.int64)  # powers[b, c] = c·2^b
    powers[0] = np.arange(256)
    for b in range(1, 8):
        powers[b] = powers[b - 1] << 1
        powers[b] ^= (powers[b] >> 8) * POLYNOMIAL
    if affine:  # bit b of row i is bit i of c·2^b; GFNI counts the rows from the last byte
        rows = (powers[:, :, None] >> np.arange(7, -1, -1)) & 1
        return torch.from_numpy(np.packbits(rows.astype(np.uint8), axis=0, bitorder="little")[0])
    bits = (np.arange(16)[:, None] >> np.arange(4)) & 1
    halves = [np.bitwise_xor.reduce(powers[h : h + 4, :, None] * bits.T[:, None, :], axis=0) for h in (0, 4)]
    return torch.from_numpy(np.concatenate(halves, axis=1).astype(np.uint8))
