"""mnist5k on the real images; mnist on small idx files written here, and on the real ones where HMTL_DATA has them."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from idx_files import NAMES, idx, small, write

from hmtl.data import Dirichlet, mnist, mnist5k
from hmtl.data.sources.mnist import SHIPPED
from hmtl.errors import ConfigError, DataError

DIGEST = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"


def test_mnist5k_twenty_users_share_all_images():
    tasks = mnist5k(20)
    assert [task.name for task in tasks[:11:10]] == ["user 0: digit 0", "user 10: digit 0"]
    assert tasks[3].name == "user 3: digit 3"
    for task in tasks:
        assert task.x_train.shape == (187, 784)
        assert task.x_test.shape == (63, 784)
        y = torch.cat([task.y_train, task.y_test])
        assert sorted(y.tolist()) == [-1.0] * 125 + [1.0] * 125
        assert abs(int(task.y_test.sum())) == 1  # 31 and 32 of 63
    x = torch.cat([part for task in tasks for part in (task.x_train, task.x_test)])
    assert x.dtype == torch.float64
    assert (x.min(), x.max()) == (0, 1)

    with np.load(SHIPPED) as arrays:
        images, digits = arrays["pixels"], arrays["labels"]
    assert hashlib.sha256(images.tobytes() + digits.tobytes()).hexdigest() == DIGEST
    used = torch.round(x * 255).numpy().astype(np.uint8)
    assert sorted(map(bytes, used)) == sorted(map(bytes, images))  # each image once
    of = {bytes(image): digit for image, digit in zip(images, digits, strict=True)}
    for k, task in enumerate(tasks):
        seen = [of[bytes(image)] for image in torch.round(task.x_train * 255).numpy().astype(np.uint8)]
        assert ((torch.tensor(seen) == k % 10) == (task.y_train == 1)).all()


def test_mnist5k_depends_on_the_seed_alone():
    once, again, other = (mnist5k(4, 20, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a.x_test, b.x_test) for a, b in zip(once, again, strict=True))
    assert not any(torch.equal(a.x_test, b.x_test) for a, b in zip(once, other, strict=True))


def test_mnist5k_passes_on_what_cannot_be():
    with pytest.raises(DataError, match="At most rows_per_user=124"):
        mnist5k(40, 500)
    with pytest.raises(ConfigError, match="test_fraction=1"):
        mnist5k(4, test_fraction=1.0)
    with pytest.raises(DataError, match="2 rows cannot be split"):
        mnist5k(4, 2, test_fraction=0.9)


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("gz", [(), tuple(NAMES), (("train", "x"), ("test", "y"))], ids=["plain", "gz", "mixed"])
def test_mnist_reads_a_folder(tmp_path, place, gz):
    arrays = small()
    write(tmp_path / place, arrays, gz)
    tasks = mnist(10, 8, seed=3, path=tmp_path, download=False)
    x = np.concatenate([arrays["train", "x"], arrays["test", "x"]]).reshape(-1, 784)
    seen = []
    for k, task in enumerate(tasks):
        assert (task.name, len(task.x_train), len(task.x_test)) == (f"user {k}: digit {k}", 6, 2)
        for row, y in zip(torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test]), strict=True):
            i = round(float(row[0]) * 255)
            assert torch.equal(row, torch.from_numpy(x[i] / 255.0))
            assert y == (1 if i % 10 == k else -1)
            seen.append(i)
    assert sorted(seen) == list(range(80))  # training and test images pooled, each used once


def test_mnist_is_downloaded_to_torchvision_s_place(tmp_path, monkeypatch):
    def fetch(root, download):
        assert download
        write(Path(root) / "MNIST" / "raw", small())

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(mnist(10, 8)) == 10
    assert (tmp_path / "hmtl" / "MNIST" / "raw").is_dir()
    monkeypatch.setattr(torchvision.datasets, "MNIST", None)
    assert len(mnist(10, 8)) == 10  # found, not fetched again


def test_mnist_missing_says_how_to_get_it(tmp_path, monkeypatch):
    write(tmp_path, small())
    (tmp_path / NAMES["test", "y"]).unlink()  # three of four do not count
    with pytest.raises(DataError) as error:
        mnist(10, path=tmp_path, download=False)
    for word in [str(tmp_path), "download=False", *NAMES.values(), ".gz", "network", "mnist5k"]:
        assert word in str(error.value)

    def fails(root, download):
        raise RuntimeError("Error downloading x:\nTried a mirror")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fails)
    with pytest.raises(DataError, match=r"the download failed: Error downloading x: Tried a mirror"):
        mnist(10, path=tmp_path)


def test_mnist_without_write_permission(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder can be made below a file")
    with pytest.raises(DataError, match="the download failed"):
        mnist(10, path=tmp_path / "file")


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b + b"\0",
        lambda b: b[:9],
        lambda b: b"",
        lambda b: b"\1" + b[1:],
        lambda b: b[:15] + b"\x1b" + b[16:],
        lambda b: idx(np.ones((0, 28, 28))),
        lambda b: idx(np.ones((60, 27, 28))),
        lambda b: idx(np.ones(60)),
    ],
    ids=["cut", "longer", "short header", "empty", "magic", "size", "no rows", "27 × 28", "labels"],
)
def test_mnist_damaged_file_is_named(tmp_path, damage):
    write(tmp_path, small())
    file = tmp_path / NAMES["train", "x"]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=f"{file} is damaged.*fetch it again"):
        mnist(10, 8, path=tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:500], lambda b: b"plain", lambda b: b[:300] + b"\0\0\0" + b[303:]])
def test_mnist_damaged_gz_is_named(tmp_path, damage):
    write(tmp_path, small(), gz=tuple(NAMES))
    file = tmp_path / f"{NAMES['train', 'x']}.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=f"{file} is damaged"):
        mnist(10, 8, path=tmp_path)


def test_mnist_labels_that_are_not_the_images_own(tmp_path):
    arrays = small()
    arrays["train", "y"], arrays["test", "y"] = arrays["test", "y"], arrays["train", "y"]
    write(tmp_path, arrays)
    with pytest.raises(DataError, match=r"\[60, 20\] images .* \[20, 60\] labels"):
        mnist(10, 8, path=tmp_path)


@pytest.mark.skipif("HMTL_DATA" not in os.environ, reason="needs HMTL_DATA, a folder with mnist.npz")
def test_all_of_mnist_at_the_paper_s_size(tmp_path):
    with np.load(Path(os.environ["HMTL_DATA"]) / "mnist.npz") as file:
        x, y = file["x"].reshape(-1, 28, 28), file["y"]
    write(
        tmp_path,
        {("train", "x"): x[:60_000], ("train", "y"): y[:60_000], ("test", "x"): x[60_000:], ("test", "y"): y[60_000:]},
    )
    tasks = mnist(20, path=tmp_path, download=False)
    assert {tuple(task.x_train.shape) for task in tasks} == {(375, 784)}
    assert {tuple(task.x_test.shape) for task in tasks} == {(125, 784)}
    digits = {bytes(image): int(digit) for image, digit in zip(x, y, strict=True)}
    seen = set()
    for k, task in enumerate(tasks):
        rows = torch.round(torch.cat([task.x_train, task.x_test]) * 255).numpy().astype(np.uint8)
        labels = torch.cat([task.y_train, task.y_test])
        assert [1.0 if digits[bytes(row)] == k % 10 else -1.0 for row in rows] == labels.tolist()
        seen |= {bytes(row) for row in rows}
    assert len(seen) == 20 * 500


@pytest.mark.parametrize("settings", [{}, {"partition": Dirichlet(alpha=1.0)}, {"standardize": "all"}], ids=str)
def test_of_those_who_are_not_wanted_there_is_no_more_than_their_number(settings) -> None:
    whole = mnist5k(K=12, seed=3, **settings)
    part = mnist5k(K=12, seed=3, wanted=lambda K: range(K // 2), **settings)
    assert [task.is_local for task in part] == [k < 6 or "standardize" in settings for k in range(12)]
    for one, other in zip(whole, part, strict=True):
        for rows in ("x_train", "y_train", "x_test", "y_test"):
            held, known = getattr(one, rows), getattr(other, rows)
            assert (held.shape, held.dtype) == (known.shape, known.dtype)
            assert not other.is_local or torch.equal(held, known)
