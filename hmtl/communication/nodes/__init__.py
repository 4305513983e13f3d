"""The nodes of the network, as protocols without I/O."""
