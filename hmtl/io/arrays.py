"""Types of arrays."""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
"""Numbers of users, ascending."""
NOBODY: Ids = np.empty(0, np.int64)
