"""Human Activity Recognition in the layout of UCI's folder, for the tests that read it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write(folder: Path, x: NDArray, y: NDArray, subject: NDArray, is_train: NDArray) -> Path:
    """x [n, d], y [n] from 0, subject [n]; the rows are dealt into the two parts by is_train [n]."""
    for part, rows in (("train", is_train), ("test", ~is_train)):
        (folder / part).mkdir(parents=True)
        np.savetxt(folder / part / f"X_{part}.txt", x[rows], fmt="% .8e")
        np.savetxt(folder / part / f"y_{part}.txt", y[rows] + 1, fmt="%d")
        np.savetxt(folder / part / f"subject_{part}.txt", subject[rows], fmt="%d")
    return folder
