"""hmtl: federated multi-task learning over coded two-hop networks."""

__version__ = "0.1.0"
