"""Matrix products and linear algebra over GF(2^8), whose elements are bytes."""

from hmtl.gf256.linalg import cauchy, inverses
from hmtl.gf256.products import matmul

__all__ = ["cauchy", "inverses", "matmul"]
