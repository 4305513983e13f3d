"""Every vector path of this processor against schoolbook products of polynomials."""

import ctypes
import gc
import mmap
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from coding_oracles import product as carryless_product
from hypothesis import given
from hypothesis import strategies as st

from hmtl.gf256 import kernels, simd
from hmtl.gf256.instructions import PATHS

pytestmark = pytest.mark.skipif(not simd.usable(), reason="this processor has no instructions that simd uses")
every_path = pytest.mark.parametrize("path", simd.usable(), ids=lambda path: path.name)


def schoolbook(A, X):
    return torch.from_numpy(carryless_product(A.numpy(), X.numpy()))


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


@every_path
def test_all_pairs_of_bytes(path):
    byte = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(simd.matmul(byte[:, None], byte[None], path=path), schoolbook(byte[:, None], byte[None]))


@every_path
@given(n=st.integers(0, 40), m=st.integers(0, 12), L=st.integers(0, 300), seed=st.integers(0, 99))
def test_any_shape(path, n, m, L, seed):
    A, X = draw(seed, (n, m), (m, L))
    assert torch.equal(simd.matmul(A, X, path=path), schoolbook(A, X))


@every_path
@pytest.mark.parametrize("L", [128, 129, 5 * 128 - 1])
def test_strides_and_nothing_written_beside_the_product(path, L, monkeypatch):
    A, X, around = draw(L, (7, 30), (7, 3 * L), (20, L))
    A, X = A.T[::2], X[:, L : 2 * L]
    expected = around.clone()
    expected[2:17] = schoolbook(A, X)
    with monkeypatch.context() as patch:
        patch.setattr(simd.torch, "empty", lambda *shape, dtype: around[2:17])
        simd.matmul(A, X, path=path)
    assert torch.equal(around, expected)
    columns = X.T.contiguous().T
    assert torch.equal(simd.matmul(A, columns, path=path), schoolbook(A, X))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects a page of memory")
@every_path
def test_nothing_is_read_beyond_X(path):
    """X ends where a forbidden page begins."""
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(address + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    values = draw(0, (3, 1001))[0]
    X = torch.frombuffer(memory, dtype=torch.uint8, count=values.numel(), offset=mmap.PAGESIZE - values.numel())
    X = X.view(values.shape).copy_(values)
    A = draw(1, (15, 3))[0]
    assert torch.equal(simd.matmul(A, X, path=path), schoolbook(A, values))


@every_path
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("L", [129, 10_001])
def test_threads_change_no_byte(path, threads, L, monkeypatch):
    monkeypatch.setattr(simd, "THREADS_FROM", 0)
    A, X = draw(L, (14, 5), (5, L))
    assert torch.equal(simd.matmul(A, X, threads=threads, path=path), schoolbook(A, X))


def test_calls_from_many_threads_at_once(monkeypatch):
    monkeypatch.setattr(simd, "THREADS_FROM", 0)
    kernels.compiled.cache_clear()
    cases = [draw(seed, (1 + seed % 13, 6), (6, 999)) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda case: simd.matmul(*case, threads=2), cases))
    assert all(torch.equal(result, schoolbook(*case)) for result, case in zip(results, cases, strict=True))


def test_code_lives_as_long_as_its_function():
    kernels.compiled.cache_clear()
    kernel = kernels.compiled(simd.usable()[0], 5)
    kernels.compiled.cache_clear()
    gc.collect()
    A, X, out = draw(0, (5, 4), (4, 512), (5, 512))
    coefficients, table = A.T.contiguous(), simd._table(simd.usable()[0].affine)
    kernel(table.data_ptr(), coefficients.data_ptr(), 5, X.data_ptr(), 512, out.data_ptr(), 512, 4, 512, 1)
    assert torch.equal(out, schoolbook(A, X))


def _product_in_child(A, X, expected):
    sys.exit(0 if torch.equal(simd.matmul(A, X, threads=2), expected) else 1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(simd.os, "register_at_fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(simd, "THREADS_FROM", 0)
    A, X = draw(1, (6, 5), (5, 4000))
    expected = schoolbook(A, X)
    assert torch.equal(simd.matmul(A, X, threads=2), expected)
    child = multiprocessing.get_context("fork").Process(target=_product_in_child, args=(A, X, expected))
    child.start()
    child.join(20)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert child.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_kernels_compile_for_every_processor_and_stay_in_registers(path):
    """The code has the vector instruction, and the inner loop no stack access, also for other processors."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = "aarch64-linux-gnu" if path.name == "NEON" else "x86_64-linux-gnu"
    machine = llvm.Target.from_triple(triple).create_target_machine(features=path.features, opt=3)
    assembly = machine.emit_assembly(llvm.parse_assembly(kernels.source(path, path.rows)))
    mnemonic = {"NEON": "tbl\t"}.get(path.name, "gf2p8affineqb" if path.affine else "pshufb")
    loop = (
        max(assembly.split("\n.LBB"), key=lambda lines: lines.count(mnemonic)).split("\tjb\t")[0].split("\tb.lo\t")[0]
    )
    products = path.rows * path.inputs * 2
    assert loop.count(mnemonic) == products * (1 if path.affine else 2)
    spills = [line for line in loop.splitlines() if "sp]" in line or ("rsp" in line and "mm" in line)]
    assert not spills
