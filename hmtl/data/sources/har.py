"""Human Activity Recognition with smartphones, from UCI's zip or folder.

Shapes: K users, n windows (UCI's: 10,299), d features (561), float32; six activities, 30 subjects.
"""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.hub import download_url_to_file

from hmtl.data.downloads import FAILURES, cache_folder
from hmtl.data.partitions import Partition, even_sets
from hmtl.data.preprocessing import Preprocessing, Scope
from hmtl.data.splitting import Splitting
from hmtl.data.tasks import ClassWeight, Task
from hmtl.errors import ConfigError, DataError
from hmtl.io.npz import open_file
from hmtl.rng import generator

URL = "https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip"
ZIP = URL.rsplit("/", 1)[1]
# UCI publishes no checksum. This SHA-256 has been published by many who downloaded the file.
SHA256 = "c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031"
FOLDER = "UCI HAR Dataset"
ACTIVITIES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")


def har(
    K: int | None = None,
    rows_per_user: int | None = None,
    partition: str | Partition = "paper",
    target: str = "sitting",
    test_fraction: float = 0.25,
    intercept: bool = False,
    standardize: Scope = "none",
    seed: int = 0,
    path: str | Path | None = None,
    download: bool = True,
    class_weight: ClassWeight = None,
) -> tuple[Task, ...]:
    """Return tasks that predict a person's activity from windows of a phone's acceleration and rotation.

    Args:
        K: number of users; None: one for each subject, or as many as there are rows for.
        rows_per_user: only for partition "paper"; None: as many as there are, at most the paper's 500 (500 for K=20).
        partition: "paper": sets drawn from all windows, with the same proportion of each activity; "subject": a user
            for each subject, with all of its windows; or one of `hmtl.data.partitions`, which deals all windows by
            their targets.
        target: "sitting": y = 1 for sitting and −1 otherwise, as in the paper; "activity": y = 0..5, see ACTIVITIES.
        test_fraction, intercept, standardize, seed, class_weight: see `mnist5k`.
        path: UCI's zip (or the zip inside it), the unpacked folder, or the folder with one of these; None: the cache.
        download: whether to download a missing zip.

    Raises:
        DataError: if the data are missing or damaged, or there are too few rows, see `even_sets` and `split`.
        ConfigError: if an argument has an unknown value, or K or rows_per_user does not match the data.

    Ref: Hu et al. 2022, numerical section; Anguita et al. 2013.
    """
    if isinstance(partition, str) and partition not in ("paper", "subject"):
        raise ConfigError(f"partition={partition} is neither paper nor subject. Choose one of them.")
    if target not in ("sitting", "activity"):
        raise ConfigError(f"target={target} is neither sitting nor activity. Choose one of them.")
    if partition != "paper" and rows_per_user is not None:
        raise ConfigError(f"rows_per_user={rows_per_user}, but only partition=paper uses it. Set it to null.")
    x, activity, subject = _read(Path(path or cache_folder()), download)
    classes, names = None, None
    y = np.where(activity == ACTIVITIES.index("sitting"), 1.0, -1.0)
    if target == "activity":
        classes, names, y = len(ACTIVITIES), ACTIVITIES, activity
    splitting = Splitting(test_fraction, seed, Preprocessing(intercept, standardize), class_weight=class_weight)
    if callable(partition):
        return splitting.deal(lambda rows: x[rows], y, K, partition, labels=names)
    if partition == "subject":
        subjects = np.unique(subject).tolist()
        if K not in (None, len(subjects)):
            raise ConfigError(f"K={K}, but there are {len(subjects)} subjects. Leave K out (null), or set it to that.")
        users = {f"subject {s}": np.flatnonzero(subject == s) for s in subjects}
    else:
        sets = even_sets(activity, K, rows_per_user, generator(seed, "data", "partition"))
        users = {f"user {k}": rows for k, rows in enumerate(sets)}
    return splitting.tasks(lambda rows: x[rows], y, users, classes=classes, labels=names)


def _read(path: Path, download: bool) -> list[NDArray[Any]]:
    """Return all windows, training and test: features [n, d], activities [n] from 0, subjects [n]."""
    try:
        if download and path.suffix != ".zip" and _find(path) is None:
            path.mkdir(parents=True, exist_ok=True)
            download_url_to_file(URL, str(path / ZIP), hash_prefix=SHA256)
        if (place := _find(path)) is None:
            raise FileNotFoundError(f"there is neither {FOLDER} nor {ZIP}")
        root = place if place.is_dir() else _unzip(place)
        x, y, subject = (
            np.concatenate([_numbers(root / part / f"{what}_{part}.txt", dtype) for part in ("train", "test")])
            for what, dtype in (("X", np.float32), ("y", np.int64), ("subject", np.int64))
        )
        if not len(x) == len(y) == len(subject):
            raise ValueError(f"{len(x)} rows of features, {len(y)} labels, {len(subject)} subjects")
        if y.min() < 1 or y.max() > len(ACTIVITIES):
            raise ValueError(f"labels from {y.min()} to {y.max()}, which are not 1..{len(ACTIVITIES)}")
    except FAILURES as error:
        raise DataError(
            f"{_find(path) or path} is not UCI's data ({' '.join(str(error).split())}). Delete it if it is damaged, "
            f"download {URL} on a machine with network access and put it there, or set path to its place."
        ) from error
    return [x, y[:, 0] - 1, subject[:, 0]]


def _find(path: Path) -> Path | None:
    """Return the path of UCI's folder or zip: `path` itself, or one inside it."""
    places = (path, path / FOLDER, path / ZIP, path / f"{FOLDER}.zip")
    return next((place for place in places if (place / "train").is_dir() or place.is_file()), None)


def _unzip(place: Path) -> zipfile.Path:
    """Return the folder inside UCI's zip."""
    with open_file(place) as file:
        archive = zipfile.ZipFile(io.BytesIO(file.read()))
    if f"{FOLDER}.zip" in archive.namelist():  # UCI's download is a zip within a zip
        archive = zipfile.ZipFile(io.BytesIO(archive.read(f"{FOLDER}.zip")))
    root = zipfile.Path(archive)
    return root / FOLDER if (root / FOLDER).is_dir() else root


def _numbers(file: Path | zipfile.Path, dtype: type) -> NDArray[Any]:
    """Return the numbers of one text file, [rows, columns]."""
    if not file.is_file():
        raise ValueError(f"no {file.name}")
    try:
        with file.open("r", encoding="ascii") as lines, warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns of an empty file
            numbers: NDArray[Any] = np.loadtxt(lines, dtype, ndmin=2)
            if not np.isfinite(numbers).all():
                raise ValueError(f"not finite at row {np.isfinite(numbers).all(axis=1).argmin()}")
    except (ValueError, UserWarning) as error:
        raise ValueError(f"{file.name}: {error}") from error
    return numbers
