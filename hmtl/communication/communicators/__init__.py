"""Communicators: which messages a round consists of, and what they cost."""
