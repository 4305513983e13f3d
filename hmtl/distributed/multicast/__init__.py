"""Reliable multicast from the server to several relays."""
