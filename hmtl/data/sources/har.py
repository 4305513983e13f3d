"""Human Activity Recognition with smartphones, from UCI's zip or folder.

Shapes: K users, n windows (UCI's: 10,299), d features (561), float32; six activities, 30 subjects.
"""

import io
import warnings
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.hub import download_url_to_file

from hmtl.data.cache import cache_folder, cached
from hmtl.data.paper_partitions import even_sets
from hmtl.data.partitions import Partition, share_out
from hmtl.data.preprocessing import Preprocessing, Scope
from hmtl.data.tasks import Task, split
from hmtl.errors import ConfigError, DataError
from hmtl.io.npz import open_file
from hmtl.rng import generator

URL = "https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip"
# UCI publishes no checksum. This SHA-256 of the file behind URL is the one that many who fetched it have put on record.
SHA256 = "c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031"
FOLDER = "UCI HAR Dataset"
MOST_BYTES = 1_000_000_000
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
) -> tuple[Task, ...]:
    """Windows of a phone's acceleration and turning, and what its bearer did.

    Args:
        K: number of users; None: one for each subject, or as many as the rows reach for.
        rows_per_user: partition "paper" only; None takes what the data give, up to the paper's 500 (K=20: 500).
        partition: "paper": sets drawn from all windows, each activity in the same proportion in all of them;
            "subject": a user for each subject, with all of its windows; or one of `hmtl.data.partitions`, which deals
            all windows by what is predicted.
        target: "sitting": y = 1 for sitting, −1 for the rest, as in the paper; "activity": y = 0..5, see ACTIVITIES.
        test_fraction: share of each user's rows kept for testing; 0 tests on nothing.
        intercept, standardize: see `Preprocessing`.
        seed: draws partition and splits.
        path: UCI's zip (or the one inside it), the unpacked folder, or where one of these is; by default the cache.
        download: whether to fetch what is not there.

    Raises:
        DataError: not there and not to be had; damaged; or too few rows, see `even_sets` and `split`.
        ConfigError: an unknown partition or target, or K or rows_per_user that cannot be.

    Ref: Hu et al. 2022, numerical section; Anguita et al. 2013.
    """
    if isinstance(partition, str) and partition not in ("paper", "subject"):
        raise ConfigError(f"partition={partition} is neither paper nor subject.")
    if target not in ("sitting", "activity"):
        raise ConfigError(f"target={target} is neither sitting nor activity.")
    place = _find(Path(path or cache_folder()), download)
    # Files of another size or time are other files; there is no need to keep them apart by place.
    stats = [file.stat() for file in (place.glob("t*/*.txt") if place.is_dir() else [place])]
    key = f"{sum(stat.st_size for stat in stats)}-{max((stat.st_mtime_ns for stat in stats), default=0)}"
    x, y, subject = cached(cache_folder() / f"har-{key}.npz", lambda: _parse(place))
    classes = None if target == "sitting" else len(ACTIVITIES)
    labels = y if classes else np.where(y == ACTIVITIES.index("sitting"), 1.0, -1.0)
    called = ACTIVITIES if classes else None
    prepare = Preprocessing(intercept, standardize)
    if not isinstance(partition, str):
        if rows_per_user is not None:
            raise ConfigError(f"rows_per_user={rows_per_user}, but a partition deals all rows: set it to null.")
        return prepare(share_out(lambda rows: x[rows], labels, K, partition, test_fraction, seed, called))
    if partition == "subject":
        named = _by_subject(subject, K, rows_per_user)
    else:
        sets = even_sets(y, K, rows_per_user, generator(seed, "data", "partition"))
        named = [(f"user {k}", rows) for k, rows in enumerate(sets)]
    return prepare(
        [
            split(name, x[rows], labels[rows], test_fraction, generator(seed, "data", "split", k), classes, called)
            for k, (name, rows) in enumerate(named)
        ]
    )


def _by_subject(subject: NDArray[Any], K: int | None, rows_per_user: int | None) -> list[tuple[str, NDArray[np.int64]]]:
    if rows_per_user is not None:
        raise ConfigError(f"rows_per_user={rows_per_user}: subjects keep all of their rows. Leave it out (null).")
    found = np.unique(subject).tolist()
    if K not in (None, len(found)):
        raise ConfigError(f"K={K}, but there are {len(found)} subjects: leave K out (null), or set it to that.")
    return [(f"subject {s}", np.flatnonzero(subject == s)) for s in found]


def _find(path: Path, download: bool) -> Path:
    """UCI's folder, or a zip: in `path`, or `path` itself."""
    file = URL.rsplit("/", 1)[1]
    cause = "download=False"
    for fetch in (download and path.suffix != ".zip", False):
        for place in (path, path / FOLDER, path / file, path / f"{FOLDER}.zip"):
            if (place / "train").is_dir() or place.is_file():
                return place
        if fetch:
            try:
                path.mkdir(parents=True, exist_ok=True)
                download_url_to_file(URL, str(path / file), hash_prefix=SHA256)
            except (OSError, RuntimeError, HTTPException) as error:
                cause = f"the download failed: {' '.join(str(error).split())}"
    raise DataError(
        f"Human Activity Recognition is not in {path} ({cause}). Fetch {URL} where there is a network, and "
        f"put it there or give its place as path."
    )


def _parse(place: Path) -> list[NDArray[Any]]:
    """All windows, training and test: features [n, d], activities [n] from 0, subjects [n]."""
    try:
        root = place if place.is_dir() else _unzip(place)
        x, y, subject = (
            np.concatenate([_numbers(root / part / f"{what}_{part}.txt", dtype) for part in ("train", "test")])
            for what, dtype in (("X", np.float32), ("y", np.int64), ("subject", np.int64))
        )
        if not len(x) == len(y) == len(subject):
            raise ValueError(f"{len(x)} rows of features, {len(y)} labels, {len(subject)} subjects")
        if y.min() < 1 or y.max() > len(ACTIVITIES):
            raise ValueError(f"labels from {y.min()} to {y.max()}, which are not 1..{len(ACTIVITIES)}")
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{place} is damaged or not UCI's ({error}). Delete it and fetch it again.") from error
    return [x, y[:, 0] - 1, subject[:, 0]]


def _unzip(place: Path) -> zipfile.Path:
    with open_file(place, MOST_BYTES) as file:
        archive = zipfile.ZipFile(io.BytesIO(file.read()))
    _bounded(archive)
    if f"{FOLDER}.zip" in archive.namelist():  # what UCI hands out is a zip in a zip
        archive = zipfile.ZipFile(io.BytesIO(archive.read(f"{FOLDER}.zip")))
        _bounded(archive)
    root = zipfile.Path(archive)
    return root / FOLDER if (root / FOLDER).is_dir() else root


def _bounded(archive: zipfile.ZipFile) -> None:
    """Refuse a zip that would not stop unpacking; UCI's holds 270 MB."""
    if sum(info.file_size for info in archive.infolist()) > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")


def _numbers(file: Path | zipfile.Path, dtype: type) -> NDArray[Any]:
    """The numbers of one text file, [rows, columns]."""
    if not file.is_file():
        raise ValueError(f"no {file.name}")
    try:
        with file.open("r", encoding="ascii") as lines, warnings.catch_warnings():
            warnings.simplefilter("error")  # that a file is empty is only warned of
            numbers: NDArray[Any] = np.loadtxt(lines, dtype, ndmin=2)
            if not np.isfinite(numbers).all():
                raise ValueError(f"not finite at row {np.isfinite(numbers).all(axis=1).argmin()}")
    except (ValueError, UserWarning) as error:
        raise ValueError(f"{file.name}: {error}") from error
    return numbers
