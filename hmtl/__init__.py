"""hmtl: federated multi-task learning over coded two-hop networks."""

from hmtl.saved import Models, load_models

__all__ = ["Models", "load_models"]
__version__ = "0.1.0"
