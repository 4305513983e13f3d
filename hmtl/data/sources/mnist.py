"""Handwritten digits, one-vs-rest as in the paper: 5,000 of them at hand (mnist5k), or all 70,000 (mnist).

Shapes: K users, n images of 28 × 28 = 784 pixels, scaled from 0..255 to [0, 1].
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmtl.data.cache import cache_folder
from hmtl.data.paper_partitions import one_vs_rest
from hmtl.data.partitions import Partition, share_out
from hmtl.data.preprocessing import Preprocessing, Scope, Wanted, everybody
from hmtl.data.tasks import Task, split
from hmtl.errors import ConfigError, DataError
from hmtl.io.npz import open_file
from hmtl.rng import generator

SHIPPED = Path(__file__).with_name("mnist5k.npz")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

MOST_BYTES = 100_000_000  # of a file; MNIST's have up to 47 MB

Bytes = NDArray[np.uint8]
Folder = str | Path | None


def mnist5k(
    K: int,
    rows_per_user: int | None = None,
    test_fraction: float = 0.25,
    intercept: bool = False,
    standardize: Scope = "none",
    seed: int = 0,
    partition: Partition | None = None,
    wanted: Wanted = everybody,
) -> tuple[Task, ...]:
    """The 5,000 training images, 500 of each digit, that come with hmtl: nothing is downloaded.

    Args:
        K: number of users.
        rows_per_user: even, half own digit; None takes what the data give, up to the paper's 500 (K=20: 250).
        test_fraction: share of each user's rows kept for testing; 0 tests on nothing.
        intercept, standardize: see `Preprocessing`.
        seed: draws partition and splits.
        partition: instead of the paper's one-vs-rest, all images and all ten classes, dealt so.
        wanted: whose rows to hold; all, where anything is done to them.

    Raises:
        ConfigError, DataError: see `one_vs_rest` and `split`.
    """
    with np.load(SHIPPED) as arrays:
        pixels, labels = arrays["pixels"], arrays["labels"]
    prepare = Preprocessing(intercept, standardize)
    return prepare(_tasks(pixels, labels, K, rows_per_user, test_fraction, seed, partition, prepare.needs(wanted)))


def mnist(
    K: int,
    rows_per_user: int | None = None,
    test_fraction: float = 0.25,
    intercept: bool = False,
    standardize: Scope = "none",
    seed: int = 0,
    path: Folder = None,
    download: bool = True,
    partition: Partition | None = None,
    wanted: Wanted = everybody,
) -> tuple[Task, ...]:
    """All of MNIST, its training and test images pooled, since each user's rows are split on their own.

    Args:
        K, rows_per_user, test_fraction, intercept, standardize, seed, partition, wanted: as for `mnist5k`.
        path: folder with the four idx files, gzipped or not, in it or in its MNIST/raw (torchvision's layout);
            by default the user's cache folder.
        download: whether to fetch what is not there.

    Raises:
        DataError: not there and not to be had, or damaged.
        ConfigError, DataError: see `one_vs_rest` and `split`.
    """
    folder = Path(path or cache_folder())
    files = _find(folder)
    if not files:
        cause = _download(folder) if download else "download=False"
        files = _find(folder)
    if not files:
        raise DataError(
            f"MNIST is not in {folder} ({cause}). Put {', '.join(FILES)} (each may end in .gz) there, give another "
            f"path, or run once with network access; the data set mnist5k needs neither."
        )
    images, labels = [_read_idx(file, 28, 28) for file in files[::2]], [_read_idx(file) for file in files[1::2]]
    held, labelled = [len(x) for x in images], [len(y) for y in labels]
    if held != labelled:
        raise DataError(f"{folder} has {held} images (train, test) but {labelled} labels. Fetch the files again.")
    pixels, prepare = np.concatenate(images).reshape(-1, 28 * 28), Preprocessing(intercept, standardize)
    how = K, rows_per_user, test_fraction, seed, partition, prepare.needs(wanted)
    return prepare(_tasks(pixels, np.concatenate(labels), *how))


def _tasks(
    pixels: Bytes,
    labels: Bytes,
    K: int,
    rows_per_user: int | None,
    test_fraction: float,
    seed: int,
    partition: Partition | None,
    wanted: Wanted,
) -> tuple[Task, ...]:
    if partition is not None:
        if rows_per_user is not None:
            raise ConfigError(f"rows_per_user={rows_per_user}, but a partition deals all rows: set it to null.")
        return share_out(lambda rows: pixels[rows] / 255.0, labels, K, partition, test_fraction, seed, wanted=wanted)
    dealt = one_vs_rest(labels, K, rows_per_user, generator(seed, "data", "partition"))
    tasks, here = [], wanted(K)
    for k, (digit, rows) in enumerate(dealt):
        x, y = pixels[rows if k in here else rows[:0]] / 255.0, np.where(labels[rows] == digit, 1.0, -1.0)
        rng = generator(seed, "data", "split", k)
        tasks.append(split(f"user {k}: digit {digit}", x, y, test_fraction, rng, here=k in here))
    return tuple(tasks)


def _find(folder: Path) -> list[Path]:
    """The four files in the order of FILES, or an empty list unless all are there."""
    for place in (folder, folder / "MNIST" / "raw"):
        files = [place / name if (place / name).is_file() else place / f"{name}.gz" for name in FILES]
        if all(file.is_file() for file in files):
            return files
    return []


def _download(folder: Path) -> str:
    """Fetch MNIST to folder/MNIST/raw; returns what went wrong, or nothing."""
    from torchvision.datasets import MNIST  # takes a second to import, and only a download needs it

    try:
        MNIST(folder, download=True)
    except (OSError, RuntimeError) as error:
        return f"the download failed: {' '.join(str(error).split())}"
    return ""


def _read_idx(path: Path, *row: int) -> Bytes:
    """Bytes [n, *row] from an idx file: magic number, the sizes as big-endian 32-bit integers, the values."""
    header = 2 + len(row)
    try:
        with open_file(path, MOST_BYTES) as file, gzip.open(file) if path.suffix == ".gz" else file as content:
            raw = content.read(MOST_BYTES)
        magic, n, *shape = np.frombuffer(raw, ">u4", header).tolist()
        if magic != 0x0801 + len(row) or tuple(shape) != row or not n or len(raw) != 4 * header + n * math.prod(row):
            raise ValueError("its header does not fit its content")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged or not MNIST's ({error}). Delete it and fetch it again.") from error
    return np.frombuffer(raw, np.uint8, offset=4 * header).reshape(n, *row)
