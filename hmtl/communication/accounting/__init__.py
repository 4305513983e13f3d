"""The cost of communication: bits of each link, transmission time, and CPU time of each node."""
