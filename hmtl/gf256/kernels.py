"""The inner loops of products over GF(2^8), compiled by LLVM at run time.

A kernel keeps a block of rows by a *strip* of columns in registers, and loads each vector of X once for the block.
Numba has no access to these instructions: the fastest loops that it compiles take eight times as long.

Shapes: A [n, m] coefficients; X [m, L] and A·X [n, L] messages of L bytes, one per row.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from hmtl.gf256.instructions import Path

# Hardware prefetchers cannot follow dozens of rows at once, so each strip prefetches explicitly.
PREFETCH_BYTES, LINE_BYTES = 384, 64
BYTE, INT, WORD = ir.IntType(8), ir.IntType(32), ir.IntType(64)


@cache
def compiled(path: Path, rows: int) -> Any:
    """Compile the kernel for blocks of `rows` rows, a function of ten words; see `source`."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # The target has only the features that the path needs, so that tests cover other processors.
    machine = llvm.Target.from_default_triple().create_target_machine(features=path.features, opt=3)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(source(path, rows)), machine)
    engine.finalize_object()
    kernel: Any = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 10)(engine.get_function_address("kernel"))
    kernel.engine = engine  # the engine owns the code, so it must live as long as the function
    return kernel


def source(path: Path, rows: int) -> str:
    """Return the LLVM IR of a kernel.

    Its arguments are table, coefficients, n, X, X_stride, out, out_stride, m, columns and blocks. The kernel multiplies
    `blocks` blocks of `rows` rows by at least one strip of `columns` columns. The coefficients are transposed, [m, n].
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
        """Load the bit matrix or the two tables, repeated to the vector's width."""
        size, starts = (8, [0]) if path.affine else (16, [0, 16])
        mask = ir.Constant(ir.VectorType(INT, path.width), [INT(k % size) for k in range(path.width)])
        parts = [b.load(at(entry, WORD(start)), typ=ir.VectorType(BYTE, size), align=1) for start in starts]
        return [b.shuffle_vector(part, part, mask) for part in parts]

    def strip(block: Any, position: Any) -> Sequence[Any]:
        row = b.mul(block, WORD(rows))
        position = smaller(position, b.sub(columns, WORD(path.strip)))  # the last strip overlaps the one before
        sums = _loop(b, m, path.inputs, lambda j, sums: step(row, position, j, sums), [zeros] * (2 * rows))
        address = at(out, b.mul(row, out_stride), position)
        for r in range(rows):
            for v in range(2):
                b.store(sums[2 * r + v], at(address, WORD(v * path.width)), align=1)
            address = at(address, out_stride)
        return ()

    def step(row: Any, position: Any, j: Any, sums: Sequence[Any]) -> Sequence[Any]:
        """Add the products with rows j, .., j + inputs - 1 of X; coefficients beyond m are 0."""
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
    """Emit a loop and return its last carried values.

    The loop is i = 0; do { carried = body(i, carried); i += step } while (i < stop).
    """
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
