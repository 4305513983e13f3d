"""hmtl: federated multi-task learning over coded two-hop networks."""

import os
import sys

# True for `python -m hmtl.train` and the like, before their modules are imported, but not for other people's programs.
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].removeprefix("-m").partition(".")[0] == "hmtl":
    from hmtl.errors import handle_interrupts

    handle_interrupts()
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
"""Lets the threads of torch sleep while they wait; set before torch is imported.

Nodes are timed by CPU time over all threads, which busy waiting would inflate on a loaded machine.
"""

TYPE_CHECKING = False  # importing typing would delay the start of every command
if TYPE_CHECKING:
    from hmtl.config.build import load_run
    from hmtl.inference.models import Models
    from hmtl.interfaces.estimator import MultiTask, MultiTaskClassifier, MultiTaskRegressor
    from hmtl.interfaces.federation import Federation

__all__ = ["Federation", "Models", "MultiTask", "MultiTaskClassifier", "MultiTaskRegressor", "load_run"]
__version__ = "0.1.0"
_HOMES = {
    "Federation": "interfaces.federation",
    "Models": "inference.models",
    "load_run": "config.build",
    **dict.fromkeys(["MultiTask", "MultiTaskClassifier", "MultiTaskRegressor"], "interfaces.estimator"),
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"hmtl.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
