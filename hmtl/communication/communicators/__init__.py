"""Communicators: how one round of messages travels."""
