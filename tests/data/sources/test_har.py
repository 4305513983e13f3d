"""HAR from small folders and zips in UCI's layout, written here."""

import hashlib
import io
import urllib.error
import zipfile

import numpy as np
import pytest
import torch
from uci_har import write

from hmtl.data import Pathological, Quantity, har
from hmtl.data.sources import har as activity
from hmtl.errors import ConfigError, DataError

OUTER = "human+activity+recognition+using+smartphones.zip"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test touches the user's cache, or the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(activity, "download_url_to_file", offline)


def offline(url, target, **_):
    raise urllib.error.URLError("no route to host")


def small(n_train=126, n_test=54, d=5):
    """Feature 0 of window i is i/256, exact in the text; subjects 1..5, the last two in the test part."""
    n = n_train + n_test
    x = np.random.default_rng(0).uniform(-1, 1, (n, d)).astype(np.float32)
    x[:, 0] = np.arange(n) / 256
    i = np.arange(n)
    subject = np.where(i < n_train, 1 + i % 3, 4 + i % 2)
    return x, i // 6 % 6, subject, i < n_train


def zipped(folder, arrays, nested=False):
    """The bytes of a zip of "UCI HAR Dataset", or of a zip with that zip in it."""
    write(folder / "UCI HAR Dataset", *arrays)
    inner, outer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*.txt")):
            file.write(path, path.relative_to(folder))
            file.writestr(f"__MACOSX/{path.relative_to(folder).parent}/._{path.name}", b"\0")
    if not nested:
        return inner.getvalue()
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr("UCI HAR Dataset.names", "...")
        file.writestr("UCI HAR Dataset.zip", inner.getvalue())
    return outer.getvalue()


def rows_of(task):
    return torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])


def check_subjects(tasks, arrays):
    x, y, subject, _ = arrays
    assert [task.name for task in tasks] == [f"subject {s}" for s in np.unique(subject)]
    for s, task in zip(np.unique(subject), tasks, strict=True):
        features, labels = rows_of(task)
        assert features.dtype == torch.float32
        i = (features[:, 0] * 256).int().numpy()
        assert sorted(i) == np.flatnonzero(subject == s).tolist()
        assert torch.equal(features, torch.from_numpy(x[i]))
        assert labels.tolist() == (y[i].tolist() if task.classes else np.where(y[i] == 3, 1, -1).tolist())


@pytest.mark.parametrize("given", ["folder", "above", "zip in folder", "UCI's zip"])
def test_reads_every_layout(tmp_path, given):
    arrays, home = small(), tmp_path / "home"
    home.mkdir()
    if given in ("folder", "above"):
        place = write(home / "UCI HAR Dataset", *arrays)
        place = home if given == "above" else place
    else:
        place = home / (OUTER if "UCI" in given else "UCI HAR Dataset.zip")
        place.write_bytes(zipped(tmp_path / "made", arrays, nested="UCI" in given))
        place = home if "folder" in given else place
    check_subjects(har(partition="subject", path=place), arrays)
    tasks = har(5, partition="subject", target="activity", path=place)
    check_subjects(tasks, arrays)
    assert all(task.classes == 6 and task.y_train.dtype == torch.int64 for task in tasks)


def test_even_sets_as_in_the_paper(tmp_path):
    arrays = small()
    place = write(tmp_path / "har", *arrays)
    tasks = har(4, seed=3, path=place)
    i = np.concatenate([(rows_of(task)[0][:, 0] * 256).int().numpy() for task in tasks])
    assert sorted(i) == list(range(180))
    for k, task in enumerate(tasks):
        x, y = rows_of(task)
        assert (task.name, len(task.x_train), len(task.x_test)) == (f"user {k}", 33, 12)
        assert 7 <= int((y == 1).sum()) <= 8  # 30 of the 180 windows are sitting
        assert y.tolist() == np.where(arrays[1][(x[:, 0] * 256).int()] == 3, 1, -1).tolist()
    assert len(har(path=place)) == 1
    assert len(har(rows_per_user=30, path=place)) == 6
    again, other = har(4, seed=3, path=place), har(4, seed=4, path=place)
    assert all(torch.equal(a.x_test, b.x_test) for a, b in zip(tasks, again, strict=True))
    assert not any(torch.equal(a.x_test, b.x_test) for a, b in zip(tasks, other, strict=True))
    with pytest.raises(DataError, match=r"180\. Choose at most rows_per_user=45"):
        har(4, 50, path=place)


@pytest.mark.parametrize(("target", "classes"), [("sitting", None), ("activity", 6)])
def test_a_partition_deals_all_windows(tmp_path, target, classes):
    arrays = small()
    write(tmp_path / "UCI HAR Dataset", *arrays)
    tasks, seen = har(3, None, Pathological(2), target, path=tmp_path), []
    for task in tasks:
        x, y = rows_of(task)
        number = (256 * x[:, 0]).long()
        want = torch.from_numpy(arrays[1])[number]
        assert torch.equal(y, want if classes else (want == 3).double() * 2 - 1)
        assert len(set(y.tolist())) == 2
        assert task.classes == classes
        seen += number.tolist()
    assert sorted(seen) == list(range(180))
    with pytest.raises(ConfigError, match="rows_per_user=9"):
        har(3, 9, Quantity(), path=tmp_path)


def test_without_data_or_network(tmp_path):
    for download, cause in ((True, "no route to host"), (False, "UCI HAR Dataset")):
        with pytest.raises(DataError, match=cause) as error:
            har(path=tmp_path / "none", download=download)
        assert str(tmp_path / "none") in str(error.value)
        assert activity.URL in str(error.value)
    with pytest.raises(DataError, match=r"no\.zip"):
        har(path=tmp_path / "no.zip")
    assert not (tmp_path / "no.zip").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_downloads_with_a_checksum(tmp_path, monkeypatch, whole):
    """From a file here, through the real download, which is to refuse what has another SHA-256."""
    arrays, source = small(), tmp_path / OUTER
    content = zipped(tmp_path / "made", arrays, nested=True)
    source.write_bytes(content if whole else content[:-100])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(activity, "URL", source.as_uri())
    monkeypatch.setattr(activity, "SHA256", hashlib.sha256(content).hexdigest())
    target = tmp_path / "target"
    if whole:
        check_subjects(har(partition="subject", path=target), arrays)
        assert len(list(target.iterdir())) == 1
    else:
        with pytest.raises(DataError, match="invalid hash value"):
            har(path=target)
        assert not list(target.iterdir())


def edit(file, old, new, count=1):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, count))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: (f / "train/y_train.txt").unlink(), "no y_train.txt"),
        (lambda f: (f / "test/X_test.txt").write_text(""), "X_test.txt"),
        (lambda f: edit(f / "train/X_train.txt", " 3.90625000e-03", "nan"), "X_train.txt: not finite at row 1"),
        (lambda f: edit(f / "test/y_test.txt", "1\n", ""), "180 rows of features, 179 labels, 180 subjects"),
        (lambda f: edit(f / "test/y_test.txt", "6", "7"), "labels from 1 to 7"),
        (lambda f: edit(f / "test/y_test.txt", "1", "walking"), "y_test.txt"),
        (lambda f: (f / "test/y_test.txt").write_bytes(b"\xff\xfe"), "y_test.txt"),
        (lambda f: np.savetxt(f / "test/X_test.txt", np.ones((54, 4))), "dimension"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, named):
    place = write(tmp_path / "har", *small())
    damage(place)
    with pytest.raises(DataError, match=f"{place} is not UCI's data .*{named}"):
        har(3, path=place)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[:-5],
        lambda b: b[:600] + bytes(byte ^ 255 for byte in b[600:700]) + b[700:],
    ],
    ids=["empty", "end missing", "a hundred bytes"],
)
def test_damaged_zips_are_named(tmp_path, damage, nested):
    place = tmp_path / "har.zip"
    place.write_bytes(damage(zipped(tmp_path / "made", small(), nested)))
    with pytest.raises(DataError, match=r"har\.zip is not UCI's data"):
        har(3, path=place)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"other\.zip is not UCI's data \(no X_train\.txt"):
        har(3, path=tmp_path / "other.zip")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"K": 4, "partition": "subject"}, "K=4, but there are 5 subjects"),
        ({"rows_per_user": 9, "partition": "subject"}, "rows_per_user=9"),
        ({"partition": "dirichlet"}, "partition=dirichlet"),
        ({"target": "lying"}, "target=lying"),
        ({"K": 0}, "K=0"),
        ({"K": 2, "test_fraction": 1}, "test_fraction=1"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        har(path=write(tmp_path / "har", *small()), **arguments)
