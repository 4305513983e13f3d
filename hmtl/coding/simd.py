"""Matrix products over GF(2^8), polynomial 0x11D, in vector instructions: compiled at run time for this processor.

Multiplication by a constant is linear over GF(2), so it is one instruction where the processor multiplies bytes by an
8 x 8 bit matrix (GFNI), and two look-ups, of the low and of the high four bits, where it shuffles bytes. (GFNI's own
byte product is of no use: it is fixed to the polynomial 0x11B.) Every path gives the same bytes.

A kernel keeps a block of rows by a *strip* of columns in registers, and loads each vector of X once for the block.

Shapes: A [n, m] coefficients, X [m, L] and A·X [n, L] messages of L bytes, one a row; all of them uint8.
"""

import ctypes
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from torch import Tensor
from torch.nn.functional import pad

from hmtl.errors import CodingError

POLYNOMIAL = 0x11D
# Hardware prefetchers lose track of some dozens of rows read side by side, so each strip asks for what comes later.
PREFETCH_BYTES, LINE_BYTES = 384, 64
# Above this X outgrows the shared cache. If several blocks of rows then read it, tiles of its columns are copied first
# to a buffer that fits the core's own cache, with a row stride that no power of two divides: rows 2^k bytes apart
# would evict each other, whatever the cache's size.
PACK_ABOVE_BYTES = 16 << 20
TILE_BYTES, TILE_ROW_BYTES, TILE_ROW_PADDING = 512 << 10, 16 << 10, 192
# A third of a millisecond of work, or more: multiplications per byte of vector width from which threads pay.
THREADS_FROM = 2 << 20
SHARES_PER_THREAD = 4  # so that a thread whose core is busy elsewhere holds up the others by little

BYTE, INT, WORD = ir.IntType(8), ir.IntType(32), ir.IntType(64)


@dataclass(frozen=True)
class Path:
    """A way to multiply: what it needs of the processor, and the shape of its kernel.

    Attributes:
        name: for messages.
        features: what the processor must have, as LLVM takes it.
        instruction: LLVM's intrinsic; one with "affine" in its name takes bit matrices, the others look up.
        width: bytes per vector.
        rows: the largest block of rows: with two vectors a row, as many as registers hold.
        inputs: rows of X per step. With two, AVX-512 adds both products in one instruction.
    """

    name: str
    features: str
    instruction: str
    width: int
    rows: int
    inputs: int = 1

    @property
    def strip(self) -> int:
        """Columns per step: two vectors, so that each coefficient is loaded once for both."""
        return 2 * self.width

    @property
    def affine(self) -> bool:
        return "affine" in self.instruction


PATHS = (  # best first
    Path("GFNI-512", "+gfni,+avx512bw", "llvm.x86.vgf2p8affineqb.512", 64, rows=12, inputs=2),
    Path("GFNI-256", "+gfni,+avx2", "llvm.x86.vgf2p8affineqb.256", 32, rows=6),
    Path("AVX-512", "+avx512bw", "llvm.x86.avx512.pshuf.b.512", 64, rows=10),
    Path("AVX2", "+avx2", "llvm.x86.avx2.pshuf.b", 32, rows=4),
    Path("SSSE3", "+ssse3", "llvm.x86.ssse3.pshuf.b.128", 16, rows=4),
    Path("NEON", "+neon", "llvm.aarch64.neon.tbl1.v16i8", 16, rows=5),
)


@cache
def usable() -> tuple[Path, ...]:
    """The paths that this processor can run, best first."""
    try:
        present = {f"+{name}" for name, here in llvm.get_host_cpu_features().items() if here}
    except RuntimeError:  # LLVM cannot tell on this system
        present = set()
    if platform.machine() in ("aarch64", "arm64"):
        present.add("+neon")  # part of the architecture, so not every system lists it
    return tuple(path for path in PATHS if present.issuperset(path.features.split(",")))


def available() -> bool:
    """Whether this processor has instructions that `matmul` can use."""
    return bool(usable())


def matmul(
    A: Tensor, X: Tensor, out: Tensor | None = None, threads: int | None = None, path: Path | None = None
) -> Tensor:
    """The matrix product A·X over GF(2^8).

    Args:
        A: coefficients, uint8 [n, m].
        X: one message of L bytes per row, uint8 [m, L].
        out: where to put the product, uint8 [n, L], each row contiguous, apart from A and X; None makes a new tensor.
        threads: how many share the columns of a large product; None means `torch.get_num_threads()`.
        path: one of `usable()`; None means the best.

    Returns:
        uint8 [n, L]: `out` where given.

    Raises:
        CodingError: an argument is no CPU tensor of bytes, or the shapes do not fit each other; or no path is usable.
    """
    (n, m), L = A.shape, X.shape[-1]
    out = torch.empty(n, L, dtype=torch.uint8) if out is None else out
    for name, tensor, shape in (("A", A, A.shape), ("X", X, (m, L)), ("out", out, (n, L))):
        if tensor.dtype != torch.uint8 or tensor.shape != shape or not tensor.is_cpu:
            raise CodingError(
                f"Argument {name!r} must be a uint8 tensor {list(shape)} on the CPU, to match the others; "
                f"it is {tensor.dtype} {list(tensor.shape)} on {tensor.device}."
            )
    if L > 1 and out.stride(1) != 1:
        raise CodingError("Argument 'out' must have contiguous rows, for vectors are stored whole. Pass out=None.")
    path = path or next(iter(usable()), None)
    if path not in usable():
        name, names = path.name if path else "any path", [usable_path.name for usable_path in usable()]
        raise CodingError(f"This processor cannot run {name}, only {names}. Pass path=None, or use gf256.matmul.")
    if not n * m * L:
        return out.zero_()
    if path.strip > L:  # kernels write whole strips
        return out.copy_(matmul(A, pad(X, (0, path.strip - L)), threads=1, path=path)[:, :L])
    X = X if X.stride(1) == 1 else X.contiguous()
    # ctypes lets go of the GIL, so Python's threads do run side by side.
    threads = (threads or torch.get_num_threads()) if n * m * L >= THREADS_FROM * path.width else 1
    shares = 1 if threads == 1 else min(threads * SHARES_PER_THREAD, L // path.strip)
    cuts = [L // path.strip * share // shares * path.strip for share in range(shares)] + [L]
    multiply, ranges = _Product(path, A, X, out), iter(list(pairwise(cuts)))

    def work() -> None:
        for start, stop in ranges:  # whoever is free takes the next
            multiply(start, stop)

    others = [_pool().submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()
    return out


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gf256")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork: the child makes its own pool
    os.register_at_fork(after_in_child=_pool.cache_clear)


class _Product:
    """out = A·X, for any range of columns, a strip or more: what the threads of one call share."""

    def __init__(self, path: Path, A: Tensor, X: Tensor, out: Tensor) -> None:
        self.path, self.X, self.out, (self.n, self.m) = path, X, out, A.shape
        # Kernels take the coefficients of one column of A together, `inputs` columns at a time.
        self.columns = np.zeros((self.m + -self.m % path.inputs, self.n), dtype=np.uint8)
        self.columns[: self.m] = A.numpy().T
        # The fewest blocks that cover n rows, as even as can be: `tall` of them of `height` rows, the others one less.
        blocks = -(-self.n // path.rows)
        height = -(-self.n // blocks)
        tall = self.n - blocks * (height - 1)
        self.kernels = [(_kernel(path, height), tall, 0)]
        if tall < blocks:
            self.kernels.append((_kernel(path, height - 1), blocks - tall, height * tall))
        self.pack = blocks > 1 and X.numel() > PACK_ABOVE_BYTES

    def __call__(self, start: int, stop: int) -> None:
        X, strip = self.X, self.path.strip
        if not self.pack:
            self._tile(X.data_ptr() + start, X.stride(0), start, stop - start)
            return
        tile = min(stop - start, max(strip, min(TILE_ROW_BYTES, TILE_BYTES // self.m) // strip * strip))
        buffer, source = np.empty((self.m, tile + TILE_ROW_PADDING), dtype=np.uint8), X.numpy()
        for position in range(start, stop, tile):
            first = min(position, stop - tile)  # the last tile goes over some columns again, so that all are whole
            buffer[:, :tile] = source[:, first : first + tile]
            self._tile(buffer.ctypes.data, buffer.strides[0], first, tile)

    def _tile(self, X: int, X_stride: int, start: int, columns: int) -> None:
        """Multiply what lies at address X; the result belongs at column `start`."""
        table, coefficients = _table(self.path.affine).data_ptr(), self.columns.ctypes.data
        out, stride = self.out.data_ptr() + start, self.out.stride(0)
        for kernel, blocks, row in self.kernels:
            output = out + row * stride
            kernel(table, coefficients + row, self.n, X, X_stride, output, stride, self.m, columns, blocks)


@cache
def _table(affine: bool) -> Tensor:
    """What multiplies by each c: a bit matrix, [256, 8] bytes; or [256, 32], the products c·x and c·16x for x < 16."""
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


@cache
def _kernel(path: Path, rows: int) -> Any:
    """The machine code for blocks of `rows` rows, as a function of ten words: see `_source`."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # Compiled for what the path needs, not for all that this processor has: so what tests run here runs elsewhere.
    machine = llvm.Target.from_default_triple().create_target_machine(features=path.features, opt=3)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_source(path, rows)), machine)
    engine.finalize_object()
    kernel: Any = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 10)(engine.get_function_address("kernel"))
    kernel.engine = engine  # it owns the code, and must live as long as the address
    return kernel


def _source(path: Path, rows: int) -> str:
    """LLVM IR of the function kernel(table, coefficients, n, X, X_stride, out, out_stride, m, columns, blocks).

    It multiplies `blocks` blocks of `rows` rows by `columns` columns, a strip or more. Coefficients come as [m, n].
    """
    module, vector, pointer = ir.Module(), ir.VectorType(BYTE, path.width), ir.PointerType()
    types = [pointer, pointer, WORD, pointer, WORD, pointer, WORD, WORD, WORD, WORD]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), types), "kernel")
    table, coefficients, n, X, X_stride, out, out_stride, m, columns, blocks = function.args
    signature = ir.FunctionType(vector, [vector, vector, BYTE] if path.affine else [vector, vector])
    instruction = ir.Function(module, signature, path.instruction)
    prefetch = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer, INT, INT, INT]), "llvm.prefetch.p0")
    zeros, fifteens, fours = (ir.Constant(vector, [BYTE(value)] * path.width) for value in (0, 15, 4))
    b = ir.IRBuilder(function.append_basic_block())

    def at(base: Any, *offsets: Any) -> Any:
        for offset in offsets:
            base = b.gep(base, [offset], source_etype=BYTE)
        return base

    def smaller(x: Any, y: Any) -> Any:
        return b.select(b.icmp_unsigned("<", x, y), x, y)

    def multiplicand(address: Any) -> list[Any]:
        x = b.load(address, typ=vector, align=1)
        return [x] if path.affine else [b.and_(x, fifteens), b.lshr(x, fours)]

    def multiplier(entry: Any) -> list[Any]:
        """The bit matrix, or the two tables, repeated to the vector's width."""
        size, starts = (8, [0]) if path.affine else (16, [0, 16])
        mask = ir.Constant(ir.VectorType(INT, path.width), [INT(k % size) for k in range(path.width)])
        parts = [b.load(at(entry, WORD(start)), typ=ir.VectorType(BYTE, size), align=1) for start in starts]
        return [b.shuffle_vector(part, part, mask) for part in parts]

    def strip(block: Any, position: Any) -> Sequence[Any]:
        row = b.mul(block, WORD(rows))
        position = smaller(position, b.sub(columns, WORD(path.strip)))  # the last goes over some columns again
        sums = _loop(b, m, path.inputs, lambda j, sums: step(row, position, j, sums), [zeros] * (2 * rows))
        address = at(out, b.mul(row, out_stride), position)
        for r in range(rows):
            for v in range(2):
                b.store(sums[2 * r + v], at(address, WORD(v * path.width)), align=1)
            address = at(address, out_stride)
        return ()

    def step(row: Any, position: Any, j: Any, sums: Sequence[Any]) -> Sequence[Any]:
        """Add the products with rows j, .., j + inputs - 1 of X. Beyond m, coefficients are 0."""
        vectors, added = [], list(sums)
        for u in range(path.inputs):
            address = at(X, b.mul(smaller(b.add(j, WORD(u)), b.sub(m, WORD(1))), X_stride), position)
            vectors += [multiplicand(at(address, WORD(v * path.width))) for v in range(2)]
            for line in range(0, path.strip, LINE_BYTES):
                b.call(prefetch, [at(address, WORD(PREFETCH_BYTES + line)), INT(0), INT(3), INT(1)])
        for r in range(rows):
            for u in range(path.inputs):
                index = b.load(at(coefficients, b.mul(b.add(j, WORD(u)), n), row, WORD(r)), typ=BYTE)
                factor = multiplier(at(table, b.mul(b.zext(index, WORD), WORD(8 if path.affine else 32))))
                for v in range(2):
                    for x, c in zip(vectors[2 * u + v], factor, strict=True):
                        term = b.call(instruction, [x, c, BYTE(0)] if path.affine else [c, x])
                        added[2 * r + v] = b.xor(added[2 * r + v], term)
        return added

    _loop(b, blocks, 1, lambda block, _: _loop(b, columns, path.strip, lambda position, _: strip(block, position)))
    b.ret_void()
    return str(module)


def _loop(
    b: Any, stop: Any, step: int, body: Callable[[Any, Sequence[Any]], Sequence[Any]], carried: Sequence[Any] = ()
) -> Sequence[Any]:
    """i = 0; do { carried = body(i, carried); i += step } while (i < stop); the last values of `carried`."""
    before, inside, after = b.block, b.append_basic_block(), b.append_basic_block()
    b.branch(inside)
    b.position_at_end(inside)
    first = [WORD(0), *carried]
    phis = [b.phi(value.type) for value in first]
    last = [b.add(phis[0], WORD(step)), *body(phis[0], phis[1:])]
    for phi, start, again in zip(phis, first, last, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(again, b.block)
    b.cbranch(b.icmp_unsigned("<", last[0], stop), inside, after)
    b.position_at_end(after)
    return last[1:]
