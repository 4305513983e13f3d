"""A run in several processes: connections, frames, links and the engine."""

import os
import sys

# gRPC reads its environment when it is imported, and for Python it cannot set a least version of TLS. These suites of
# TLS 1.2 need RSA keys, and all of ours are ECDSA, so that TLS 1.2 is never negotiated; TLS 1.3 has suites of its own.
SUITES = "ECDHE-RSA-AES256-GCM-SHA384"
ONLY_TLS_1_3 = "grpc" not in sys.modules or os.environ.get("GRPC_SSL_CIPHER_SUITES") == SUITES
"""Whether gRPC has not been imported before this package."""
os.environ["GRPC_SSL_CIPHER_SUITES"] = SUITES
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # each refused handshake would be a line; `wire.Refusals` counts them
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # nothing is forked once there are streams
