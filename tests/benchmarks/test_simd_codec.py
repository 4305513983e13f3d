"""Products over GF(2^8) beside ISA-L, zfec and galois: by turns, on one thread, medians of CPU time.

ISA-L comes from pyeclib's wheel; its coefficient tables are made beforehand, ours within the call. zfec codes n blocks
more from m blocks: as many multiplications, with coefficients of its own.
"""

import ctypes
import importlib.metadata
import statistics
import time

import numpy as np
import pytest
import torch
from timing import medians

from hmtl.coding import make_plan
from hmtl.gf256 import simd
from hmtl.topology import symmetric

pytestmark = pytest.mark.skipif(not simd.usable(), reason="this processor has no instructions that simd uses")
SIZES = [(8, 20, 64 << 10), (8, 20, 1 << 20), (40, 40, 256 << 10), (128, 128, 64 << 10)]
TILES = [1 << kib for kib in range(10, 17)]  # bytes of columns
GAPS = {"rows without gaps": 0, "rows with gaps": 192}  # without, rows 2^k bytes apart evict each other from the cache


def aligned(n, L, padding=0):
    """Memory for n rows of L bytes that start at multiples of 64 bytes, with a gap of `padding` bytes after each."""
    rows = torch.zeros(n, L + padding, dtype=torch.uint8)
    assert rows.data_ptr() % 64 == rows.stride(0) % 64 == 0
    return rows[:, :L]


def operands(n, m, L, padding=0):
    rng = np.random.default_rng(0)
    A, X = rng.integers(0, 256, (n, m), dtype=np.uint8), rng.integers(0, 256, (m, L), dtype=np.uint8)
    return torch.from_numpy(A), aligned(m, L, padding).copy_(torch.from_numpy(X))


def isal(A, X, out):
    """Return ISA-L's product out = A·X as functions without arguments, by bytes per tile; L bytes are whole rows."""
    pytest.importorskip("pyeclib", exc_type=ImportError)
    library = next(file for file in importlib.metadata.files("pyeclib") if "libisal" in file.name)
    library = ctypes.CDLL(str(library.locate()))
    library.ec_init_tables.argtypes = [ctypes.c_int] * 2 + [ctypes.c_void_p] * 2
    library.ec_encode_data.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 3
    (n, m), L = A.shape, X.shape[1]
    tables = torch.zeros(32 * n * m, dtype=torch.uint8)
    library.ec_init_tables(m, n, A.data_ptr(), tables.data_ptr())

    def encoder(width):
        def rows(tensor, start):
            return (ctypes.c_void_p * len(tensor))(*(row.data_ptr() + start for row in tensor))

        tiles = [(min(width, L - start), rows(X, start), rows(out, start)) for start in range(0, L, width)]

        def encode():
            for columns, sources, targets in tiles:
                library.ec_encode_data(columns, m, n, tables.data_ptr(), sources, targets)

        return encode

    return {width: encoder(width) for width in [*(tile for tile in TILES if tile < L), L]}


@pytest.mark.parametrize("layout", GAPS)
def test_beside_isal(layout, record):
    """The peer in the tiles that suit it best."""

    def ratio(n, m, L):
        A, X = operands(n, m, L, GAPS[layout])
        peer_out = aligned(n, L, GAPS[layout])
        encoders = isal(A, X, peer_out)
        seconds = dict(zip(encoders, medians(*encoders.values(), repeats=15, clock=time.process_time), strict=True))
        best = min(encoders, key=seconds.__getitem__)
        ours, theirs = medians(
            lambda: simd.matmul(A, X, threads=1), encoders[best], repeats=60, clock=time.process_time
        )
        assert torch.equal(simd.matmul(A, X), peer_out)
        name = f"product [{n}, {m}] x {L >> 10} KiB, {layout}, {simd.usable()[0].name}"
        peer = f"ISA-L, {'whole rows' if best == L else f'tiles of {best >> 10} KiB'}"
        record(name, n * m * L / ours / 1e9, "GB/s of products", peer, theirs / ours)
        return theirs / ours

    mean = statistics.geometric_mean(ratio(*size) for size in SIZES)
    record(f"product, {layout}, geometric mean of the sizes", mean, "× ISA-L")


@pytest.mark.parametrize(("n", "m", "L"), SIZES)
def test_beside_zfec(n, m, L, record):
    zfec = pytest.importorskip("zfec")
    A, X = operands(n, m, L)
    encoder, blocks, numbers = zfec.Encoder(m, m + n), [row.tobytes() for row in X.numpy()], list(range(m, m + n))
    ours, theirs = medians(
        lambda: simd.matmul(A, X, threads=1),
        lambda: encoder.encode(blocks, numbers),
        repeats=5,
        clock=time.process_time,
    )
    record(f"product [{n}, {m}] x {L >> 10} KiB", 1e3 * ours, "ms", "zfec", theirs / ours)


@pytest.mark.parametrize(("n", "m"), [(8, 20), (40, 40), (128, 128)])
def test_beside_galois(n, m, record):
    """Over 4 KiB a row: galois takes a second for 0.2 GB of products."""
    galois = pytest.importorskip("galois")
    field = galois.GF(2**8, irreducible_poly=simd.POLYNOMIAL)
    A, X = operands(n, m, 4096)
    ours, theirs = medians(
        lambda: simd.matmul(A, X, threads=1),
        lambda: field(A.numpy()) @ field(X.numpy()),
        repeats=3,
        clock=time.process_time,
    )
    record(f"product [{n}, {m}] x 4 KiB", 1e3 * ours, "ms", "galois", theirs / ours)


@pytest.mark.parametrize(("n", "m", "L"), [(8, 20, 4 << 20), (40, 40, 256 << 10), (128, 128, 64 << 10)])
def test_two_threads(n, m, L, record):
    A, X = operands(n, m, L)
    one, two = medians(lambda: simd.matmul(A, X, threads=1), lambda: simd.matmul(A, X, threads=2), repeats=15)
    record(f"product [{n}, {m}] x {L >> 10} KiB, 2 threads", 1e3 * two, "ms", "1 thread", one / two)


@pytest.mark.parametrize("path", simd.usable(), ids=lambda path: path.name)
def test_every_path(path, record):
    n, m, L = 40, 40, 16 << 10
    A, X = operands(n, m, L)
    (seconds,) = medians(lambda: simd.matmul(A, X, threads=1, path=path), repeats=20)
    record(f"product [{n}, {m}] x {L >> 10} KiB, {path.name}", n * m * L / seconds / 1e9, "GB/s of products")


@pytest.mark.parametrize(("n", "m", "L"), [(1, 1, 128), (48, 120, 2091), (20, 40, 6272)])
def test_small_products(n, m, L, record):
    A, X = operands(n, m, L, padding=-L % 64)
    (seconds,) = medians(lambda: simd.matmul(A, X, threads=1), repeats=200)
    record(f"product [{n}, {m}] x {L} bytes", 1e6 * seconds, "us")


def test_products_of_a_coded_round(record):
    """All products of one exchange, K=40, H=5, r=3, IVs of 6272 bytes."""
    (block,) = make_plan(symmetric(K=40, H=5, r=3), "paper").blocks
    matrices = [*block.uplink, block.downlink, *block.decoders]
    work = [(A, torch.randint(0, 256, (A.shape[1], -(-6272 // block.pieces)), dtype=torch.uint8)) for A in matrices]
    (seconds,) = medians(lambda: [simd.matmul(A, X, threads=1) for A, X in work], repeats=30)
    record("all products of a coded round, K=40 H=5 r=3, one thread", 1e3 * seconds, "ms")
