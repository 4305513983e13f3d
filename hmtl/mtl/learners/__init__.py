"""Federated learners of networks, each on a page: what users train, what is averaged, what the server makes of it."""
