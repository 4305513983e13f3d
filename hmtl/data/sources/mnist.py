"""Handwritten digits: MNIST's 70,000 images, or the 5,000 of them that come with hmtl.

Shapes: K users, n images of 28 × 28 = 784 pixels, scaled from 0..255 to [0, 1].
"""

from pathlib import Path

import numpy as np

from hmtl.data.downloads import FAILURES, cache_folder
from hmtl.data.partitions import Partition, one_vs_rest
from hmtl.data.preprocessing import Preprocessing, Scope
from hmtl.data.splitting import Splitting, Wanted
from hmtl.data.tasks import ClassWeight, Task
from hmtl.errors import ConfigError, DataError
from hmtl.io.arrays import Bytes
from hmtl.rng import generator

SHIPPED = Path(__file__).with_name("mnist5k.npz")
MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

Images = tuple[Bytes, Bytes]
"""Pixels [n, 784] and digits [n]."""


def mnist5k(
    K: int | None,
    rows_per_user: int | None = None,
    test_fraction: float = 0.25,
    intercept: bool = False,
    standardize: Scope = "none",
    seed: int = 0,
    partition: Partition | None = None,
    wanted: Wanted = range,
    class_weight: ClassWeight = None,
) -> tuple[Task, ...]:
    """Return tasks from 5,000 of MNIST's training images, 500 of each digit, which come with hmtl.

    Args:
        K: number of users.
        rows_per_user: an even number, as half of the rows are of the user's own digit; None: as many as the data allow,
            at most the paper's 500 (250 for K=20).
        test_fraction: share of each user's rows that is kept for testing; 0: no test.
        intercept, standardize: see `Preprocessing`.
        seed: seed of the partition and the splits.
        partition: deals all images of all ten classes; None: one-vs-rest as in the paper.
        wanted: the users whose rows are held; all users, if preprocessing is set.
        class_weight: see `Task`.

    Raises:
        ConfigError, DataError: see `one_vs_rest`, the partition and `Splitting`.
    """
    with np.load(SHIPPED) as arrays:
        images = arrays["pixels"], arrays["labels"]
    splitting = Splitting(test_fraction, seed, Preprocessing(intercept, standardize), wanted, class_weight)
    return _tasks(images, K, rows_per_user, partition, splitting)


def mnist(
    K: int | None,
    rows_per_user: int | None = None,
    test_fraction: float = 0.25,
    intercept: bool = False,
    standardize: Scope = "none",
    seed: int = 0,
    path: str | Path | None = None,
    download: bool = True,
    partition: Partition | None = None,
    wanted: Wanted = range,
    class_weight: ClassWeight = None,
) -> tuple[Task, ...]:
    """Return tasks from all of MNIST, training and test images pooled.

    Args:
        K, rows_per_user, test_fraction, intercept, standardize, seed, partition, wanted, class_weight: see
            `mnist5k`.
        path: folder with the four idx files in its MNIST/raw, torchvision's layout; None: the user's cache folder.
        download: whether to download missing files.

    Raises:
        DataError: if the files are missing or damaged.
        ConfigError, DataError: see `one_vs_rest`, the partition and `Splitting`.
    """
    images = _read_files(Path(path or cache_folder()), download)
    splitting = Splitting(test_fraction, seed, Preprocessing(intercept, standardize), wanted, class_weight)
    return _tasks(images, K, rows_per_user, partition, splitting)


def _tasks(
    images: Images, K: int | None, rows_per_user: int | None, partition: Partition | None, splitting: Splitting
) -> tuple[Task, ...]:
    pixels, digits = images
    if partition is not None:
        if rows_per_user is not None:
            raise ConfigError(f"rows_per_user={rows_per_user}, but a partition deals all rows. Set it to null.")
        return splitting.deal(lambda rows: pixels[rows] / 255.0, digits, K, partition)
    dealt = one_vs_rest(digits, K, rows_per_user, generator(splitting.seed, "data", "partition"))
    users = {f"user {k}: digit {digit}": rows for k, (digit, rows) in enumerate(dealt)}
    y = np.empty(len(digits))
    for digit, rows in dealt:
        y[rows] = np.where(digits[rows] == digit, 1.0, -1.0)
    return splitting.tasks(lambda rows: pixels[rows] / 255.0, y, users)


def _read_files(folder: Path, download: bool) -> Images:
    """Return the content of MNIST's files, as torchvision reads them."""
    from torchvision.datasets import MNIST  # late, as it takes a second to load

    try:
        parts = [MNIST(folder, train, download=download) for train in (True, False)]
        if any(part.data.shape != (len(part.targets), 28, 28) for part in parts):
            raise ValueError("images are not 28 × 28, or not as many as labels")
    except (*FAILURES, AssertionError, TypeError) as error:
        raise DataError(
            f"MNIST cannot be read from {folder} ({' '.join(str(error).split())}). Put {', '.join(MNIST_FILES)} into "
            f"{folder}/MNIST/raw, give another path, or delete damaged files and run once with network access and "
            "download=true; the data set mnist5k needs neither."
        ) from error
    images, digits = (np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "targets"))
    return images.reshape(-1, 28 * 28), digits
