"""Labeled images of torchvision, in their own shape.

Shapes: n images of [channels, height, width], float32, scaled from 0..255 to [0, 1].
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset

from hmtl.data.downloads import FAILURES, cache_folder
from hmtl.data.partitions import Dirichlet, Partition
from hmtl.data.splitting import Splitting, Wanted
from hmtl.data.tasks import ClassWeight, Task
from hmtl.errors import ConfigError, DataError, did_you_mean
from hmtl.rng import generator


def torchvision(
    name: str,
    K: int,
    partition: Partition = Dirichlet(),  # noqa: B008, it is frozen
    rows: int | None = None,
    size: int | None = None,
    test_fraction: float = 0.25,
    seed: int = 0,
    path: str | Path | None = None,
    download: bool = True,
    options: Mapping[str, Any] | None = None,
    wanted: Wanted = range,
    class_weight: ClassWeight = None,
) -> tuple[Task, ...]:
    """Return tasks from a data set of `torchvision.datasets` that has one class for each image.

    Training and test images are pooled; each user's rows are then split at random.

    Args:
        name: MNIST, FashionMNIST, CIFAR10, SVHN, ImageFolder, ...
        K: number of users.
        partition: deals the images to the users.
        rows: number of images to draw at random; None: all.
        size: height and width to resize the images to; needed if they differ.
        test_fraction, wanted, class_weight: see `mnist5k`.
        seed: seed of the drawn rows, the partition and the splits.
        path: folder, in torchvision's layout (for MNIST the folder above MNIST/raw); None: the user's cache folder.
        download: whether to download missing files.
        options: further arguments of the data set, such as {split: letters} for EMNIST.

    Raises:
        ConfigError: if there is no such data set, it does not take the options, or has fewer images than `rows`.
        DataError: if files are missing or damaged, images have different shapes, or a label is not a class.
        ConfigError, DataError: see the partition and `Splitting`.
    """
    parts = _parts(name, Path(path or cache_folder()), download, size, dict(options or {}))
    source: ConcatDataset[Any] = ConcatDataset(parts)
    n = len(source)
    if rows is not None and not 1 <= rows <= n:
        raise ConfigError(f"rows={rows}, but {name} has {n} images. Choose 1 to {n}, or null for all.")
    drawn = np.arange(n) if rows is None else generator(seed, "data", "rows").permutation(n)[:rows]
    images, labels = [], []
    for i in drawn.tolist():
        image, label = _read(source, i, name)
        images.append(image)
        labels.append(label)
        if image.shape != images[0].shape:
            raise DataError(f"{name} has images of {images[0].shape} and {image.shape}. Set size to resize them.")
    pixels = np.stack(images)

    splitting = Splitting(test_fraction, seed, wanted=wanted, class_weight=class_weight)
    return splitting.deal(
        lambda rows: pixels[rows].astype(np.float32) / np.float32(255), np.array(labels), K, partition
    )


def _parts(name: str, root: Path, download: bool, size: int | None, options: dict[str, Any]) -> list[Any]:
    """Return the data set's training and test images, or all images if it does not divide them."""
    from torchvision import datasets, transforms  # late, as it takes a second to load

    kind = getattr(datasets, name, None)
    if name not in datasets.__all__ or not inspect.isclass(kind):
        remedy = did_you_mean(name, datasets.__all__, "Choose MNIST, FashionMNIST, CIFAR10, ...")
        raise ConfigError(f"torchvision has no data set {name}. {remedy}")
    parameters = inspect.signature(kind).parameters
    resize = [] if size is None else [transforms.Resize((size, size))]
    common = {"root": root, "download": download, "transform": transforms.Compose([*resize, transforms.PILToTensor()])}
    arguments = {key: value for key, value in common.items() if key in parameters} | options
    divider = next((key for key in ("train", "split") if key in parameters and key not in options), None)
    values = {"train": (True, False), "split": ("train", "test"), None: (None,)}[divider]
    try:
        return [kind(**arguments, **({divider: value} if divider else {})) for value in values]
    except TypeError as error:
        raise ConfigError(f"torchvision's {name} does not take these options ({error}). Set or drop some.") from error
    except (*FAILURES, ModuleNotFoundError) as error:
        raise DataError(
            f"{name} cannot be read from {root} ({' '.join(str(error).split())}). Put its files there in torchvision's "
            "layout, give another path, or run once with network access and download=true; the data set mnist5k needs "
            "neither."
        ) from error


def _read(source: ConcatDataset[Any], i: int, name: str) -> tuple[NDArray[np.uint8], int]:
    """Return one image [channels, height, width] and its class."""
    try:
        image, label = source[i]
        return np.asarray(image, np.uint8), int(label)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: the label of image {i} is not a class number ({error}). Choose another.") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{name}: image {i} is damaged ({error}). Fetch it again.") from error
