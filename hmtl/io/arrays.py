"""Types of arrays, and of numbers of users."""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
"""Numbers of users, ascending."""
NOBODY: Ids = np.empty(0, np.int64)


def are_among(numbers: NDArray[np.int64], ids: Ids) -> bool:
    """Return whether all of these numbers are among `ids`."""
    at = np.searchsorted(ids, numbers)
    return bool((at < len(ids)).all() and (ids[at] == numbers).all())
