"""The nodes of the network: hosts of users, relays, the server and aggregators."""
