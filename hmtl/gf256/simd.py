"""Matrix products over GF(2^8) in vector instructions, in blocks, tiles and threads.

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
# A larger X exceeds the shared cache. If several blocks of rows read it, tiles of its columns are first copied to a
# buffer that fits the core's own cache. Its row stride is not a multiple of a large power of two: rows 2^k bytes apart
# would evict each other.
PACK_ABOVE_BYTES = 16 << 20
TILE_BYTES, TILE_ROW_BYTES, TILE_ROW_PADDING = 512 << 10, 16 << 10, 192
# Multiplications per byte of vector width from which threads pay, about a third of a millisecond of work.
THREADS_FROM = 2 << 20
SHARES_PER_THREAD = 4  # so that a thread on a busy core delays the others little


def matmul(
    A: Tensor, X: Tensor, out: Tensor | None = None, threads: int | None = None, path: Path | None = None
) -> Tensor:
    """Return the matrix product A·X over GF(2^8), uint8 [n, L].

    Args:
        A: coefficients, uint8 [n, m] on the CPU.
        X: one message of L bytes per row, uint8 [m, L] on the CPU.
        out: memory for the product, uint8 [n, L] with contiguous rows, disjoint from A and X; None: a new tensor.
        threads: how many threads share the columns of a large product; None: `torch.get_num_threads()`.
        path: one of `usable()`; None: the best.
    """
    (n, m), L = A.shape, X.shape[-1]
    out = torch.empty(n, L, dtype=torch.uint8) if out is None else out
    path = path or usable()[0]
    if not n * m * L:
        return out.zero_()
    if path.strip > L:  # kernels write whole strips
        return out.copy_(matmul(A, pad(X, (0, path.strip - L)), threads=1, path=path)[:, :L])
    X = X if X.stride(1) == 1 else X.contiguous()
    # ctypes releases the GIL, so Python threads run in parallel.
    threads = (threads or torch.get_num_threads()) if n * m * L >= THREADS_FROM * path.width else 1
    shares = 1 if threads == 1 else min(threads * SHARES_PER_THREAD, L // path.strip)
    cuts = [L // path.strip * share // shares * path.strip for share in range(shares)] + [L]
    multiply, ranges = _Product(path, A, X, out), iter(list(pairwise(cuts)))

    def work() -> None:
        for start, stop in ranges:  # an idle thread takes the next range
            multiply(start, stop)

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


class _Product:
    """The product out = A·X of one call, for ranges of at least one strip of columns."""

    def __init__(self, path: Path, A: Tensor, X: Tensor, out: Tensor) -> None:
        from hmtl.gf256.kernels import compiled  # here, because importing LLVM takes long

        self.path, self.X, self.out, (self.n, self.m) = path, X, out, A.shape
        self.table = _table(path.affine)  # a reference, because concurrent first calls create one table each
        # Kernels read the coefficients by columns of A, `inputs` columns at a time.
        self.columns = np.zeros((self.m + -self.m % path.inputs, self.n), dtype=np.uint8)
        self.columns[: self.m] = A.numpy().T
        # The fewest blocks that cover n rows: `tall` of them have `height` rows, the others one less.
        blocks = -(-self.n // path.rows)
        height = -(-self.n // blocks)
        tall = self.n - blocks * (height - 1)
        self.kernels = [(compiled(path, height), tall, 0)]
        if tall < blocks:
            self.kernels.append((compiled(path, height - 1), blocks - tall, height * tall))
        self.pack = blocks > 1 and X.numel() > PACK_ABOVE_BYTES

    def __call__(self, start: int, stop: int) -> None:
        X, strip = self.X, self.path.strip
        if not self.pack:
            self._tile(X.data_ptr() + start, X.stride(0), start, stop - start)
            return
        tile = min(stop - start, max(strip, min(TILE_ROW_BYTES, TILE_BYTES // self.m) // strip * strip))
        buffer, source = np.empty((self.m, tile + TILE_ROW_PADDING), dtype=np.uint8), X.numpy()
        for position in range(start, stop, tile):
            first = min(position, stop - tile)  # the last tile overlaps the one before, so that all are whole
            buffer[:, :tile] = source[:, first : first + tile]
            self._tile(buffer.ctypes.data, buffer.strides[0], first, tile)

    def _tile(self, X: int, X_stride: int, start: int, columns: int) -> None:
        """Multiply the tile at address X and write the result at column `start`."""
        table, coefficients = self.table.data_ptr(), self.columns.ctypes.data
        out, stride = self.out.data_ptr() + start, self.out.stride(0)
        for kernel, blocks, row in self.kernels:
            output = out + row * stride
            kernel(table, coefficients + row, self.n, X, X_stride, output, stride, self.m, columns, blocks)


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
