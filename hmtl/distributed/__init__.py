"""A run in several processes: connections, frames, links and the engine."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # otherwise each handshake that a stranger begins is a line on stderr
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # its handlers abort some children, as of subprocess.run
# gRPC for Python has no setting that requires TLS 1.3 (grpc/grpc issue 37305). This is the only suite that it then has
# for TLS 1.2, and it needs an RSA key, which no node has, so such a handshake fails.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES128-GCM-SHA256"
