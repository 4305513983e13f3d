"""Bits, seconds and CPU time of each link and node."""
