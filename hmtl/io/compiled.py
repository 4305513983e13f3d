"""Loops that are compiled at their first call, and kept on disk for other runs."""

from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any, TypeVar, cast

NUMBA_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
Function = TypeVar("Function", bound=Callable[..., Any])


def jit(**settings: Any) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function with these settings of numba, and caches it if a folder is writable.

    A compiled function lets other threads run, and divides by zero as numpy does. Numba is imported at the first call,
    since this takes longer than all of hmtl.
    """

    def later(function: Function) -> Function:
        return cast("Function", _Loop(function, settings))

    return later


class _Loop:
    """A function that numba compiles when it is called first, or when a function that calls it is compiled."""

    def __init__(self, function: Callable[..., Any], settings: dict[str, Any]) -> None:
        self.function, self.settings = function, NUMBA_OPTIONS | settings
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)

    @cached_property
    def compiled(self) -> Any:
        from numba import njit  # takes about 0.3 s

        try:
            return njit(cache=True, **self.settings)(self.function)
        except RuntimeError:  # neither the package's folder nor the home is writable
            return njit(**self.settings)(self.function)

    @property
    def _numba_type_(self) -> Any:
        """What numba asks for if a function that it compiles calls this one."""
        return self.compiled._numba_type_
