"""Labelled images of torchvision, kept in their shape.

Shapes: n images of [channels, height, width], float32, scaled from 0..255 to [0, 1].
"""

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.data.cache import cache_folder
from hmtl.data.partitions import Dirichlet, Partition, share_out
from hmtl.data.preprocessing import Wanted, everybody
from hmtl.data.tasks import Task
from hmtl.errors import ConfigError, DataError
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
    wanted: Wanted = everybody,
) -> tuple[Task, ...]:
    """A data set of `torchvision.datasets` with one class for each image, training and test images pooled.

    They are pooled since each user's rows are split on their own.

    Args:
        name: MNIST, FashionMNIST, CIFAR10, SVHN, ImageFolder, ...
        K: number of users.
        partition: who gets which images, see `hmtl.data.partitions`.
        rows: number of images to draw at random; None: all.
        size: height and width to bring the images to, needed where they differ.
        test_fraction: share of each user's rows kept for testing.
        seed: draws rows, partition and splits.
        path: folder, in torchvision's layout (for MNIST the folder above MNIST/raw); by default the cache.
        download: whether to fetch what is not there.
        options: what the data set takes besides, such as {split: letters} of EMNIST.
        wanted: whose images to hold.

    Raises:
        ConfigError: there is no such data set, it takes no such options, or fewer images than `rows`.
        DataError: not there and not to be had, damaged, images of different shapes, or labels that are no classes.
        ConfigError, DataError: see the partition, and `share_out`.
    """
    parts = _parts(name, Path(path or cache_folder()), download, size, dict(options or {}))
    lengths = [len(part) for part in parts]
    first, n = np.cumsum([0, *lengths]), sum(lengths)
    if rows is not None and not 1 <= rows <= n:
        raise ConfigError(f"rows={rows}, but {name} has {n} images: choose 1 to {n}, or null for all.")
    drawn = np.arange(n) if rows is None else generator(seed, "data", "rows").permutation(n)[:rows]
    images, labels = [], []
    for i in drawn.tolist():
        part = int(np.searchsorted(first, i, side="right")) - 1
        image, label = _read(parts[part], i - int(first[part]), name)
        images.append(image)
        labels.append(label)
        if image.shape != images[0].shape:
            raise DataError(f"{name} has images of {images[0].shape} and {image.shape}. Set size to bring them to one.")
    pixels = np.stack(images)
    return share_out(
        lambda mine: pixels[mine].astype(np.float32) / np.float32(255),
        np.array(labels),
        K,
        partition,
        test_fraction,
        seed,
        wanted=wanted,
    )


def _parts(name: str, root: Path, download: bool, size: int | None, options: dict[str, Any]) -> list[Any]:
    """The data set's training and test images, or all where it does not divide them."""
    from torchvision import datasets, transforms  # takes a second to import

    kind = getattr(datasets, name, None)
    if name not in datasets.__all__ or not inspect.isclass(kind):
        near = difflib.get_close_matches(name, datasets.__all__, n=1)
        raise ConfigError(
            f"torchvision has no data set {name}: "
            + (f"did you mean {near[0]}?" if near else "choose MNIST, FashionMNIST, CIFAR10, ...")
        )
    takes = inspect.signature(kind).parameters
    resize = [] if size is None else [transforms.Resize((size, size))]
    common = {"root": root, "download": download, "transform": transforms.Compose([*resize, transforms.PILToTensor()])}
    given = {key: value for key, value in common.items() if key in takes} | options
    divided = next((key for key in ("train", "split") if key in takes and key not in options), None)
    values = {"train": (True, False), "split": ("train", "test"), None: (None,)}[divided]
    try:
        return [kind(**given, **({divided: value} if divided else {})) for value in values]
    except TypeError as error:
        raise ConfigError(f"torchvision's {name} does not take these options ({error}). Set or drop some.") from error
    except (OSError, RuntimeError, ValueError, ModuleNotFoundError) as error:
        cause = " ".join(str(error).split())
        raise DataError(
            f"{name} cannot be read from {root} ({cause}). Put its files there as torchvision does, give another path, "
            "or run once with network access and download=true; the data set mnist5k needs neither."
        ) from error


def _read(part: Any, i: int, name: str) -> tuple[NDArray[np.uint8], int]:
    """One image [channels, height, width] and its class."""
    try:
        image, label = part[i]
        return np.asarray(image, np.uint8), int(label)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} has no class for image {i}, one number each ({error}). Choose another.") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{name}: image {i} is damaged ({error}). Fetch it again.") from error
