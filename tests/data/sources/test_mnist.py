"""mnist5k on the shipped images; mnist on small idx files written here."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import NAMES, idx, small, write

from hmtl.data import Dirichlet, Pathological, mnist, mnist5k
from hmtl.data.sources.mnist import SHIPPED
from hmtl.errors import ConfigError, DataError

RAW = Path("MNIST", "raw")
DIGEST = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"


def test_twenty_users_share_all_shipped_images():
    with np.load(SHIPPED) as arrays:
        images, digits = arrays["pixels"], arrays["labels"]
    assert hashlib.sha256(images.tobytes() + digits.tobytes()).hexdigest() == DIGEST
    tasks = mnist5k(20)
    assert [task.name for task in tasks[3:14:10]] == ["user 3: digit 3", "user 13: digit 3"]
    digit_of = {bytes(image): digit for image, digit in zip(images, digits, strict=True)}
    used = []
    for k, task in enumerate(tasks):
        assert (task.x_train.shape, task.x_test.shape) == ((187, 784), (63, 784))
        x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
        assert sorted(y.tolist()) == [-1.0] * 125 + [1.0] * 125
        assert abs(int(task.y_test.sum())) == 1  # 31 and 32 of 63
        pixels = torch.round(x * 255).numpy().astype(np.uint8)
        assert torch.equal(x, torch.from_numpy(pixels / 255.0))
        used += map(bytes, pixels)
        assert [digit_of[bytes(image)] == k % 10 for image in pixels] == (y == 1).tolist()
    assert sorted(used) == sorted(map(bytes, images))


def test_the_seed_draws_the_rows():
    once, again, other = (mnist5k(4, 20, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a.x_test, b.x_test) for a, b in zip(once, again, strict=True))
    assert not any(torch.equal(a.x_test, b.x_test) for a, b in zip(once, other, strict=True))


def test_refused():
    with pytest.raises(DataError, match="at most rows_per_user=124"):
        mnist5k(40, 500)
    with pytest.raises(ConfigError, match="test_fraction=1"):
        mnist5k(4, test_fraction=1.0)
    with pytest.raises(DataError, match="2 rows cannot be split"):
        mnist5k(4, 2, test_fraction=0.9)
    with pytest.raises(ConfigError, match="rows_per_user=40"):
        mnist5k(10, 40, partition=Pathological(3))


def test_a_partition_deals_all_ten_classes(tmp_path):
    assert [len(set(task.y_train.tolist())) for task in mnist5k(10, partition=Pathological(3))] == [3] * 10
    write(tmp_path / RAW, small())
    tasks = mnist(4, path=tmp_path, download=False, partition=Dirichlet(min_rows=8), intercept=True, standardize="all")
    raws = [task.raw for task in tasks]
    x = torch.cat([part for raw in raws for part in (raw.x_train, raw.x_test)])
    y = torch.cat([part for raw in raws for part in (raw.y_train, raw.y_test)])
    number = (x[:, 0] * 255).round().long()
    assert sorted(number.tolist()) == list(range(80))
    assert torch.equal(y, number % 10)
    prepared = torch.cat([task.x_train for task in tasks])
    assert (prepared[:, -1] == 1).all()
    assert prepared[:, :-1].mean(0).abs().max() < 1e-9


@pytest.mark.parametrize("settings", [{}, {"partition": Dirichlet(alpha=1.0)}, {"standardize": "all"}], ids=str)
def test_rows_of_unwanted_users_are_not_held(settings):
    whole = mnist5k(K=12, seed=3, **settings)
    part = mnist5k(K=12, seed=3, wanted=lambda K: range(K // 2), **settings)
    assert [task.is_local for task in part] == [k < 6 or "standardize" in settings for k in range(12)]
    for one, other in zip(whole, part, strict=True):
        assert (one.x_train.shape, one.x_test.shape) == (other.x_train.shape, other.x_test.shape)
        assert not other.is_local or torch.equal(one.x_train, other.x_train)


def test_mnist_reads_a_folder(tmp_path):
    arrays = small()
    write(tmp_path / RAW, arrays)
    tasks = mnist(10, 8, seed=3, path=tmp_path, download=False)
    x = np.concatenate([arrays["train", "x"], arrays["test", "x"]]).reshape(-1, 784)
    dealt = []
    for k, task in enumerate(tasks):
        assert (task.name, len(task.x_train), len(task.x_test)) == (f"user {k}: digit {k}", 6, 2)
        for row, y in zip(torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test]), strict=True):
            i = round(float(row[0]) * 255)
            assert torch.equal(row, torch.from_numpy(x[i] / 255.0))
            assert y == (1 if i % 10 == k else -1)
            dealt.append(i)
    assert sorted(dealt) == list(range(80))  # training and test images pooled, each used once


def test_mnist_is_downloaded_once_to_the_cache(tmp_path, monkeypatch):
    def fetch(files):
        write(Path(files.raw_folder), small())

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fetch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(mnist(10, 8)) == 10
    assert (tmp_path / "hmtl" / RAW).is_dir()
    assert len(mnist(10, 8, download=False)) == 10


def test_mnist_missing(tmp_path, monkeypatch):
    write(tmp_path / RAW, small())
    (tmp_path / RAW / NAMES["test", "y"]).unlink()  # three of four files are not enough
    with pytest.raises(DataError, match=f"{tmp_path}.*mnist5k"):
        mnist(10, path=tmp_path, download=False)

    def fails(files):
        raise RuntimeError("Error downloading x:\nTried a mirror")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fails)
    with pytest.raises(DataError, match=r"Error downloading x: Tried a mirror"):
        mnist(10, path=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b"",
        lambda b: b"\1" + b[1:],
        lambda b: idx(np.ones((60, 27, 28))),
    ],
    ids=["cut", "empty", "magic", "27 × 28"],
)
def test_damaged_files_are_refused(tmp_path, damage):
    write(tmp_path / RAW, small())
    file = tmp_path / RAW / NAMES["train", "x"]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=str(tmp_path)):
        mnist(10, 8, path=tmp_path)


def test_labels_of_other_images(tmp_path):
    arrays = small()
    arrays["train", "y"], arrays["test", "y"] = arrays["test", "y"], arrays["train", "y"]
    write(tmp_path / RAW, arrays)
    with pytest.raises(DataError, match="images"):
        mnist(10, 8, path=tmp_path)
