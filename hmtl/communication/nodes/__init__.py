"""The nodes of the network, as protocols without I/O: hosts of users, relays, the server and aggregators."""
