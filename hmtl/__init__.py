"""hmtl: federated multi-task learning over coded two-hop networks."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
"""Before torch is imported: its threads sleep while they wait. Else what nodes compute, which is measured as CPU time
over all threads, would grow manyfold with the machine's load, and whatever else runs would be slowed down."""

TYPE_CHECKING = False  # that of typing takes long to import, and so does numpy: a command first sees to Ctrl-C
if TYPE_CHECKING:
    from hmtl.config.runs import load_run
    from hmtl.estimator import MultiTask
    from hmtl.inference.models import Models

__all__ = ["Models", "MultiTask", "load_run"]
__version__ = "0.1.0"
_HOMES = {"Models": "inference.models", "load_run": "config.runs", "MultiTask": "estimator"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"hmtl.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
