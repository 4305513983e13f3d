"""Images through torchvision: files in its formats, written here, and its own fakes."""

import pickle

import numpy as np
import pytest
import torch
from idx_files import small, write
from PIL import Image
from torch import nn

import hmtl
from hmtl.config.build import build_algorithm, build_problem, build_tasks
from hmtl.data import Dirichlet, Quantity
from hmtl.data import torchvision as images
from hmtl.errors import ConfigError, DataError
from hmtl.inference.models import models_of
from hmtl.mtl import SDCA, CoCoA, CrossEntropy, FedAvg, LocalSGD, Logistic, NetworkAlgorithm, Problem, Ridge, cnn, mlp

FAKE = {"size": 120, "image_size": (3, 8, 10), "num_classes": 4}


def all_rows(tasks):
    x = torch.cat([part for task in tasks for part in (task.x_train, task.x_test)])
    return x, torch.cat([part for task in tasks for part in (task.y_train, task.y_test)])


def cifar(folder, monkeypatch, train=40, test=20):
    """Batches as CIFAR10 has them; pixel (0, 0, 0) of image i is i, its class i mod 10."""
    from torchvision.datasets import CIFAR10 as data  # late: it loads for a second

    x = np.random.default_rng(0).integers(0, 256, (train + test, 3072), np.uint8)
    x[:, 0] = np.arange(train + test)
    place = folder / data.base_folder
    place.mkdir()
    parts = {
        "data_batch_1": slice(0, train // 2),
        "data_batch_2": slice(train // 2, train),
        "test_batch": slice(train, None),
    }
    for name, part in parts.items():
        content = {"data": x[part], "labels": (np.arange(len(x))[part] % 10).tolist()}
        (place / name).write_bytes(pickle.dumps(content))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(c) for c in range(10)]}))
    monkeypatch.setattr(data, "train_list", [["data_batch_1", None], ["data_batch_2", None]])
    monkeypatch.setattr(data, "test_list", [["test_batch", None]])
    monkeypatch.setattr(data, "meta", data.meta | {"md5": None})
    return x.reshape(-1, 3, 32, 32)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist_s_files_keep_their_shape(tmp_path, name):
    arrays = small()
    write(tmp_path / name / "raw", arrays)
    tasks = images(name, 4, Quantity(min_rows=8), path=tmp_path, download=False)
    x, y = all_rows(tasks)
    assert x.shape == (80, 1, 28, 28)
    assert x.dtype == torch.float32
    given = np.concatenate([arrays["train", "x"], arrays["test", "x"]]).astype(np.float32) / np.float32(255)
    number = (x[:, 0, 0, 0] * 255).round().long()
    assert sorted(number.tolist()) == list(range(80))  # training and test images pooled, each once
    assert torch.equal(x[:, 0], torch.from_numpy(given)[number])
    assert torch.equal(y, number % 10)
    assert {task.classes for task in tasks} == {10}


def test_cifar_s_files_keep_colors(tmp_path, monkeypatch):
    given = cifar(tmp_path, monkeypatch)
    x, y = all_rows(images("CIFAR10", 3, Quantity(min_rows=15), path=tmp_path, download=True))  # nothing to fetch
    number = (x[:, 0, 0, 0] * 255).round().long()
    assert torch.equal((x * 255).round().to(torch.uint8), torch.from_numpy(given)[number])
    assert torch.equal(y, number % 10)


def test_a_folder_of_ones_own_images(tmp_path):
    for c, color in (("bad", (250, 0, 0)), ("good", (0, 200, 0))):
        (tmp_path / c).mkdir()
        for i in range(12):
            Image.new("RGB", (8 + i, 9), color).save(tmp_path / c / f"{i}.png")
    with pytest.raises(DataError, match=r"images of \(3, 9, 8\) and \(3, 9, 9\)\. Set size"):
        images("ImageFolder", 2, Quantity(), path=tmp_path)
    x, y = all_rows(images("ImageFolder", 2, Quantity(), path=tmp_path, size=6))
    assert x.shape == (24, 3, 6, 6)
    assert torch.equal(y, torch.where(x[:, 1, 0, 0] > 0.5, 1.0, -1.0).double())


def test_some_rows_of_a_fake_and_the_seed_alone_decides():
    def found(seed, rows=90):
        return images("FakeData", 3, Dirichlet(2.0), rows, seed=seed, options=FAKE)

    once, again, other = found(1), found(1), found(2)
    assert all(torch.equal(a.x_train, b.x_train) for a, b in zip(once, again, strict=True))
    assert not all(
        a.x_train.shape == b.x_train.shape and torch.equal(a.x_train, b.x_train)
        for a, b in zip(once, other, strict=True)
    )
    assert len(all_rows(once)[0]) == 90
    assert once[0].x_train.shape[1:] == (3, 8, 10)
    with pytest.raises(ConfigError, match="rows=121, but FakeData has 120 images"):
        found(1, 121)


@pytest.mark.parametrize(
    "make", [nn.Linear, mlp, pytest.param(cnn, marks=pytest.mark.slow)], ids=["linear", "mlp", "cnn"]
)
def test_networks_for_vectors_and_for_images(make):
    """Those with an argument `shape` see images, others vectors; whatever they see, they learn."""
    problem = Problem(images("FakeData", 3, Quantity(5.0), options=FAKE), CrossEntropy(), Ridge(1.0))
    assert (problem.shape, problem.d) == ((3, 8, 10), 240)
    learner = NetworkAlgorithm(FedAvg(), problem, LocalSGD(0.05, 8), make)
    before = learner.metrics()["primal"]
    for round in range(4):
        learner.step(round)
    assert learner.metrics()["primal"] < before


def test_a_network_that_sees_the_shape_sees_the_image():
    seen = []

    class Watch(nn.Module):
        def __init__(self, d, C, shape):
            super().__init__()
            seen.append((d, C, shape))
            self.linear = nn.Linear(shape[-1], C)

        def forward(self, x):
            if not self.training:
                seen.append(x.clone())
            return self.linear(x.mean(dim=(1, 2)))

    tasks = images("FakeData", 3, Quantity(5.0), options=FAKE)
    learner = NetworkAlgorithm(FedAvg(), Problem(tasks, CrossEntropy(), Ridge(1.0)), LocalSGD(0.05, 1), Watch)
    learner.step(0)
    learner.metrics()
    assert seen[0] == (240, 4, (3, 8, 10))
    rows = tasks[0].x_train
    assert any(torch.equal(x[: len(rows)], rows) for x in seen[1:])


def test_learners_of_vectors_get_vectors(tmp_path):
    for c in "ab":
        (tmp_path / c).mkdir()
        for i in range(20):
            Image.new("L", (5, 5), 10 * i + 120 * (c == "b")).convert("RGB").save(tmp_path / c / f"{i}.png")
    tasks = images("ImageFolder", 2, Quantity(5.0), path=tmp_path)
    learner = CoCoA(Problem(tasks, Logistic(), Ridge(0.1)), SDCA(), 0.1)
    learner.step(0)
    assert learner.W.shape == (75, 2)
    assert learner.metrics()["gap"] >= 0


@pytest.mark.parametrize(
    ("name", "others", "kind", "message"),
    [
        ("MNISTT", {}, ConfigError, "Did you mean MNIST"),
        ("nothing of the kind", {}, ConfigError, "Choose MNIST, FashionMNIST, CIFAR10"),
        ("CIFAR10", {"download": False}, DataError, "CIFAR10 cannot be read from .*nowhere.*download=true"),
        ("ImageFolder", {}, DataError, "nowhere"),
        ("FakeData", {"options": {"color": 3}}, ConfigError, "does not take these options .*color"),
        ("FakeData", {"options": FAKE, "K": 20}, DataError, "need 200 rows, but there are 120"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, name, others, kind, message):
    given = {"K": 3, "path": tmp_path / "nowhere"} | others
    with pytest.raises(kind, match=message):
        images(name, **given)


@pytest.mark.parametrize("make", [mlp, cnn], ids=["mlp", "cnn"])
def test_finished_runs_predict_on_images(tmp_path, make):
    tasks = images("FakeData", 3, Quantity(5.0), options=FAKE)
    learner = NetworkAlgorithm(FedAvg(), Problem(tasks, CrossEntropy(), Ridge(1.0)), LocalSGD(0.05, 2), make)
    learner.step(0)
    models_of(learner).save(tmp_path / "models.npz")
    models = hmtl.load_run(tmp_path, make)
    wrong = [(models.predict(task.name, task.x_test) != task.y_test.numpy()).mean() for task in tasks]
    assert learner.metrics()["test_error"] == pytest.approx(np.mean(wrong))
    with pytest.raises(DataError, match=r"shape \[2, 240\], not \[n, 3, 8, 10\]"):
        models.predict(tasks[0].name, np.ones((2, 240)))


def test_labels_that_are_not_classes(monkeypatch):
    from torchvision.datasets import FakeData  # late: it loads for a second

    class Boxes(FakeData):
        def __getitem__(self, i):
            return super().__getitem__(i)[0], [1, 2]

    monkeypatch.setattr("torchvision.datasets.FakeData", Boxes)
    with pytest.raises(DataError, match="label of image 0"):
        images("FakeData", 3, options=FAKE)


@pytest.mark.slow
def test_through_the_configuration(configure, tmp_path):
    arrays = small(300, 100)
    arrays["train", "x"][:, 0, 0] = arrays["test", "x"][:, 0, 0] = 0
    write(tmp_path / "MNIST" / "raw", arrays)
    place = ("dataset=torchvision", "dataset.name=MNIST", f"dataset.path={tmp_path}", "loss=cross_entropy", "K=4")
    for partition in ("pathological", "shards"):
        cfg = configure("algorithm=ditto", "algorithm.model._target_=hmtl.mtl.cnn", *place, f"partition={partition}")
        problem = build_problem(cfg, build_tasks(cfg)[0])
        learner = build_algorithm(cfg, problem)
        assert learner.model.shape == (1, 28, 28)
        learner.step(0)
        dealt = 320 if partition == "pathological" else 400  # four users of two classes have eight of the ten
        assert sum(problem.rows.counts) == pytest.approx(0.75 * dealt, abs=4)
    cfg = configure(*place[:2], "dataset.name=FakeData", "dataset.options={size: 60, image_size: [1, 5, 5]}", "K=2")
    assert build_tasks(cfg)[0][0].x_train.shape[1:] == (1, 5, 5)
    cfg = configure(
        *place[:1], "dataset.name=x", "partition=dirichlet", "dataset._target_=hmtl.data.partitions.even_sets"
    )
    with pytest.raises(ConfigError, match="even_sets takes none: leave partition out"):
        build_tasks(cfg)
    with pytest.raises(ConfigError, match=r"partition\.alpha=abc"):
        build_tasks(configure("partition=dirichlet", "partition.alpha=abc"))
