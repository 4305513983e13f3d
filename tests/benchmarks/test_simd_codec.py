"""Products over GF(2^8) beside ISA-L, zfec and galois: one process, one thread, taking turns, medians.

ISA-L comes from pyeclib's wheel; its coefficient tables are made beforehand, ours within the call. zfec codes n blocks
more from m blocks: as many multiplications, with coefficients of its own.
"""

import ctypes
import importlib.metadata
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hmtl.gf256 import simd

pytestmark = pytest.mark.skipif(not simd.usable(), reason="this processor has no instructions that simd uses")
SIZES = [(8, 20, 64 << 10), (8, 20, 1 << 20), (40, 40, 256 << 10), (128, 128, 64 << 10)]
TILE_BYTES = 16 << 10


def operands(n, m, L):
    rng = np.random.default_rng(0)
    A, X = rng.integers(0, 256, (n, m), dtype=np.uint8), rng.integers(0, 256, (m, L), dtype=np.uint8)
    return torch.from_numpy(A), torch.from_numpy(X), torch.zeros(n, L, dtype=torch.uint8)


def medians(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, every round running all of them."""
    seconds = {name: [] for name in works}
    for _ in range(repeats + 1):  # the first warms up
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def isal(A, X, out):
    """ISA-L's product, out = A·X, over whole rows and in tiles: two functions without arguments."""
    pytest.importorskip("pyeclib", exc_type=ImportError)
    library = next(file for file in importlib.metadata.files("pyeclib") if "libisal" in file.name)
    library = ctypes.CDLL(str(library.locate()))
    library.ec_init_tables.argtypes = [ctypes.c_int] * 2 + [ctypes.c_void_p] * 2
    library.ec_encode_data.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 3
    (n, m), L = A.shape, X.shape[1]
    tables = np.zeros(32 * n * m, dtype=np.uint8)
    library.ec_init_tables(m, n, A.data_ptr(), tables.ctypes.data)

    def encoder(width):
        def rows(tensor, start):
            return (ctypes.c_void_p * len(tensor))(*(tensor.data_ptr() + i * L + start for i in range(len(tensor))))

        starts = [(min(width, L - start), rows(X, start), rows(out, start)) for start in range(0, L, width)]

        def encode():
            for columns, sources, targets in starts:
                library.ec_encode_data(columns, m, n, tables.ctypes.data, sources, targets)

        return encode

    return encoder(L), encoder(TILE_BYTES)


def test_beside_isal(record):
    ratios = []
    for n, m, L in SIZES:
        A, X, out = operands(n, m, L)
        peer_out = torch.zeros_like(out)
        whole, tiled = isal(A, X, peer_out)
        works = {
            "hmtl": lambda A=A, X=X, out=out: simd.matmul(A, X, out=out, threads=1),
            "whole": whole,
            "tiled": tiled,
        }
        seconds = medians(works, 40)
        assert torch.equal(out, peer_out)
        ratios.append(min(seconds["whole"], seconds["tiled"]) / seconds["hmtl"])
        name = f"product [{n}, {m}] x {L >> 10} KiB, {simd.usable()[0].name}"
        record(name, n * m * L / seconds["hmtl"] / 1e9, "GB/s of products", "ISA-L", ratios[-1])
    record("product, geometric mean of the sizes", statistics.geometric_mean(ratios), "x")


def test_beside_zfec(record):
    zfec = pytest.importorskip("zfec")
    for n, m, L in SIZES:
        A, X, out = operands(n, m, L)
        encoder, blocks, numbers = zfec.Encoder(m, m + n), [row.tobytes() for row in X.numpy()], list(range(m, m + n))
        works = {
            "hmtl": lambda A=A, X=X, out=out: simd.matmul(A, X, out=out, threads=1),
            "zfec": lambda encoder=encoder, blocks=blocks, numbers=numbers: encoder.encode(blocks, numbers),
        }
        seconds = medians(works, 5)
        name = f"product [{n}, {m}] x {L >> 10} KiB"
        record(name, 1e3 * seconds["hmtl"], "ms", "zfec", seconds["zfec"] / seconds["hmtl"])


def test_beside_galois(record):
    """Over 4 KiB a row: galois takes a second for 0.2 GB of products."""
    galois = pytest.importorskip("galois")
    field = galois.GF(2**8, irreducible_poly=simd.POLYNOMIAL)
    for n, m in dict.fromkeys((n, m) for n, m, _ in SIZES):
        A, X, out = operands(n, m, 4096)
        works = {
            "hmtl": lambda A=A, X=X, out=out: simd.matmul(A, X, out=out, threads=1),
            "galois": lambda A=A, X=X: field(A.numpy()) @ field(X.numpy()),
        }
        seconds = medians(works, 3)
        name = f"product [{n}, {m}] x 4 KiB"
        record(name, 1e3 * seconds["hmtl"], "ms", "galois", seconds["galois"] / seconds["hmtl"])


def test_two_threads(record):
    for n, m, L in [(8, 20, 4 << 20), (40, 40, 256 << 10), (128, 128, 64 << 10), (128, 128, 1 << 20)]:
        A, X, out = operands(n, m, L)
        works = {k: lambda A=A, X=X, out=out, k=k: simd.matmul(A, X, out=out, threads=k) for k in (1, 2)}
        seconds = medians(works, 15)
        record(
            f"product [{n}, {m}] x {L >> 10} KiB, 2 threads",
            1e3 * seconds[2],
            "ms",
            "1 thread",
            seconds[1] / seconds[2],
        )


@pytest.mark.parametrize("path", simd.usable(), ids=lambda path: path.name)
def test_every_path(path, record):
    n, m, L = 40, 40, 16 << 10
    A, X, out = operands(n, m, L)
    seconds = medians({"hmtl": lambda: simd.matmul(A, X, out=out, threads=1, path=path)}, 20)["hmtl"]
    record(f"product [{n}, {m}] x {L >> 10} KiB, {path.name}", n * m * L / seconds / 1e9, "GB/s of products")


@pytest.mark.parametrize(("n", "m", "L"), [(1, 1, 128), (48, 120, 2091), (20, 40, 6272)])
def test_small_products(n, m, L, record):
    A, X, _ = operands(n, m, L)
    seconds = medians({"hmtl": lambda: simd.matmul(A, X, threads=1)}, 200)["hmtl"]
    record(f"product [{n}, {m}] x {L} bytes", 1e6 * seconds, "us")
