"""Loops are compiled when they are called."""

import subprocess
import sys

import pytest

from hmtl.io.compiled import jit


@jit()
def square(x):
    return x * x


@jit(fastmath=True)
def sum_of_squares(n):
    total = 0
    for i in range(n):
        total += square(i)
    return total


def test_loops_call_loops() -> None:
    assert sum_of_squares.__name__ == "sum_of_squares"
    assert sum_of_squares(10) == 285
    assert sum_of_squares(4) == 14
    assert square(0.5) == 0.25


def test_without_a_folder_for_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installation and the home may be read-only."""
    from numba.core import caching

    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert jit()(lambda x: x + 1)(1) == 2


@pytest.mark.slow
def test_numba_is_imported_by_the_first_loop() -> None:
    code = "import sys, hmtl.communication, hmtl.mtl; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
