"""hmtl: federated multi-task learning over coded two-hop networks."""

TYPE_CHECKING = False  # that of typing takes long to import, and so does numpy: a command first sees to Ctrl-C
if TYPE_CHECKING:
    from hmtl.saved import Models, load_models

__all__ = ["Models", "load_models"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in __all__:
        from hmtl import saved

        return getattr(saved, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
