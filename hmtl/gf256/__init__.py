"""Arithmetic and linear algebra over GF(2^8)."""
