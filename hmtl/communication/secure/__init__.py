"""Secure sums: relays and server learn the sum of the users' terms, and nothing else about them."""
