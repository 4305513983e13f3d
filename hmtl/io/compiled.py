"""Loops that are compiled at their first call, and kept on disk for other runs."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
Function = TypeVar("Function", bound=Callable[..., Any])


def jit(**settings: Any) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function with these settings of numba, and caches it if a folder is writable.

    A compiled function lets other threads run, and divides by zero as numpy does.
    """

    def compile(function: Function) -> Function:
        compiled: Function
        try:
            compiled = njit(cache=True, **SETTINGS, **settings)(function)
        except RuntimeError:  # neither the package's folder nor the home is writable
            compiled = njit(**SETTINGS, **settings)(function)
        return compiled

    return compile
