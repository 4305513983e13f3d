"""A run in several processes: connections, frames, links and the engine."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # otherwise each handshake that a stranger begins is a line on stderr
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # its handlers abort some children, as of subprocess.run
