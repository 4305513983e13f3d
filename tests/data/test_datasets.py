"""Tasks from torch Datasets: kinds of targets, transforms that are kept, and how one Dataset is dealt to users."""

import math
import sys
from functools import partial
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from hmtl.config.build import build
from hmtl.data import Dirichlet, Task, deal, from_datasets
from hmtl.errors import ConfigError, DataError
from hmtl.tuning.cross_validation import _folds

X = torch.arange(24.0).view(6, 2, 2)


class Listed(Dataset):
    """Pairs of an array and a Python number, with a random number added to each row that is read."""

    def __init__(self, y, x=None, noise=0.0):
        self.y, self.noise = y, noise
        self.x = X.numpy()[: len(y)] if x is None else x

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i] + np.float32(self.noise * float(torch.rand(()))), self.y[i]


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, range(6), strict=True)


def test_targets_say_what_is_learned():
    """Integers are classes, of all users together; −1 and 1 are two classes; floats are numbers."""
    first, second = from_datasets(
        [Listed([0, 3, 1]), (DataLoader(TensorDataset(X, torch.tensor([4] * 6))), Listed([2]))]
    )
    assert (first.classes, second.classes) == (5, 5)
    assert (len(first.y_test), second.y_test.tolist(), second.x_train.shape) == (0, [2], X.shape)
    assert first.x_train.dtype == torch.float32
    assert from_datasets([Listed([0, 1])], classes=9)[0].classes == 9
    for y in ([-1, 1, 1], [0.5, 1.0, 3.0]):
        (task,) = from_datasets([Listed(y)])
        assert task.classes is None
        assert task.y_train.tolist() == y
    task = Task("own", X, [1.0] * 6, X, [1.0] * 6)
    assert from_datasets([task]) == (task,)


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_pair_of_datasets_are_training_and_test_rows(kind):
    (task,) = from_datasets([kind([Listed([0, 3, 1]), DataLoader(Listed([2]))])])
    assert (task.y_train.tolist(), task.y_test.tolist()) == ([0, 3, 1], [2])
    with pytest.raises(DataError, match="User 0 has 3 Datasets"):
        from_datasets([kind([Listed([0, 3, 1])] * 3)])


def test_datasets_are_read_reproducibly_and_kept():
    rows, state = Listed([0, 1], noise=1.0), torch.get_rng_state()
    (once,) = from_datasets([rows])
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    (again,) = from_datasets([rows])
    assert torch.equal(once.x_train, again.x_train)
    assert once.dataset is rows


@pytest.mark.parametrize(
    ("users", "says"),
    [
        ([Stream()], "length"),
        ([Listed([])], "User 0 has no training rows"),
        ([Listed([0]), (TensorDataset(X[:0], X[:0, 0]), Listed([0]))], "User 1 has no training rows"),
        ([(X.numpy(), X[:, 0].numpy())], "TensorDataset"),
        ([(X, X[:, 0])], "TensorDataset"),
        ([[X.numpy(), X[:, 0].numpy()]], "TensorDataset"),
        ([((X, X[:, 0]), (X, X[:, 0]))], "TensorDataset"),
        ([pd.DataFrame(X.flatten(1))], "TensorDataset"),
        ([[1, 2]], "pairs"),
        ([TensorDataset(X)], "pairs"),
        ([Listed(["a", "b"])], "target"),
        ([Listed([0, 1], x=[object(), object()])], "tensor"),
        ([Listed([0, 1]), Listed([0.5, 1.5])], "integers"),
        (TensorDataset(X, torch.ones(len(X))), "each user"),
        ({0: Listed([0, 1])}, "each user"),
        ([(Listed([0, 1]), None)], "None"),
        ([(Listed([0, 1]), Listed([0, 1]), Listed([0, 1]))], "3 Datasets"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(users, says):
    with pytest.raises(DataError, match=says) as error:
        from_datasets(users)
    assert "\n" not in str(error.value)


def test_a_dataset_and_the_rows_that_were_read_have_to_match():
    with pytest.raises(DataError, match="dataset"):
        Task("a", X, [1.0] * 6, X, [1.0] * 6, dataset=Listed([1, 1]))


def test_each_row_is_dealt_once():
    y = np.arange(300) % 3
    source = TensorDataset(torch.arange(300.0)[:, None], torch.from_numpy(y))
    dealt = partial(deal, source, Dirichlet(0.5), K=4, seed=1, test_fraction=0.25)
    users = dealt()
    rows = [[sorted(int(x) for x, _ in part) for part in user] for user in users]
    assert sorted(i for user in rows for part in user for i in part) == list(range(300))
    assert all(len(test) == -(-(len(train) + len(test)) // 4) for train, test in rows)
    source.targets = y.tolist()  # as the Datasets of torchvision have them
    again = [part.indices for user in dealt() for part in user]
    assert again == [part.indices for user in users for part in user]
    assert all(len(test) == 0 for _, test in deal(source, Dirichlet(0.5), K=4))


def test_folds_train_on_their_own_part_of_a_dataset():
    tasks = from_datasets([Listed([0, 1, 0, 1, 0, 1]), Listed([1, 0, 1])])
    for fold in _folds(tasks, 3, seed=0):
        for task in fold:
            rows = torch.stack([torch.from_numpy(x) for x, _ in task.dataset])
            assert torch.equal(rows, task.x_train)
            assert [y for _, y in task.dataset] == task.y_train.tolist()


@pytest.fixture
def own(monkeypatch):
    """A module of a user's own."""
    module = ModuleType("own_data")
    monkeypatch.setitem(sys.modules, "own_data", module)
    return module


def drawn(n=12):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(3, size=n).tolist(), rng.normal(size=(n, 4)).astype(np.float32)) for _ in range(5)]
    return [(Listed(*each), Listed(*each)) for each in rows]


OWN = ("dataset=own", "topology=any_r", "logger=none", "algorithm=fedavg", "loss=cross_entropy", "solver=torch")


def test_a_function_of_a_configuration_gets_what_it_takes(configure, own):
    own.alone, own.some = lambda: drawn(), lambda K, rows=12: drawn(rows)[:K]
    own.alone.__module__ = own.some.__module__ = "own_data"
    assert build(configure(*OWN, "dataset._target_=own_data.alone")).algorithm.problem.K == 5
    run = build(configure(*OWN, "dataset._target_=own_data.some", "+dataset.rows=20", "K=4"))
    assert run.algorithm.problem.counts == (20,) * 4
    assert run.algorithm.problem.outputs == 3
    run.algorithm.step(0)
    own.usual = lambda K=3: drawn()[:K]
    own.usual.__module__ = "own_data"
    assert build(configure(*OWN, "dataset._target_=own_data.usual")).algorithm.problem.K == 3
    own.held = lambda wanted: [drawn()[k] for k in wanted(4)]
    own.held.__module__ = "own_data"
    assert build(configure(*OWN, "dataset._target_=own_data.held")).algorithm.problem.K == 4


def test_a_function_that_needs_what_is_not_set_is_refused_in_one_line(configure, own):
    own.some, own.dealt = lambda K: drawn()[:K], lambda partition: drawn()
    own.some.__module__ = own.dealt.__module__ = "own_data"
    for name, setting in (("some", "K"), ("dealt", "partition")):
        with pytest.raises(ConfigError, match=f"^{setting} is not set.*own_data.{name} needs it"):
            build(configure(*OWN, f"dataset._target_=own_data.{name}"))


def test_integers_of_own_tasks_are_classes(configure, own):
    own.users = lambda: [Task(str(k), torch.zeros(6, 2), [0, 1, 2] * 2, torch.zeros(1, 2), [0]) for k in range(5)]
    run = build(configure(*OWN[:4], "loss=cross_entropy", "dataset._target_=own_data.users"))
    assert run.algorithm.problem.outputs == 3


def listed(x, y):
    return list(zip(x, y, strict=True))


class Lazy(Dataset):
    """Reads a row when it is asked for, and counts."""

    def __init__(self, x, y, wrap=lambda x, y: (x, y)):
        self.x, self.y, self.wrap, self.reads = x, y, wrap, 0

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        self.reads += 1
        return self.wrap(self.x[row], self.y[row])


AS_READ = {
    "list": listed,
    "integers": lambda x, y: [(row, int(label)) for row, label in zip(x, y, strict=True)],
    "lazy": Lazy,
    "subset": lambda x, y: Subset(Lazy(torch.cat([x, x]), torch.cat([y, y])), range(len(x), 2 * len(x))),
    "dictionaries": lambda x, y: Lazy(x, y, lambda x, y: {"x": x, "labels": y}),
    "several inputs": lambda x, y: Lazy(x, y, lambda x, y: (y, x, x[0], y)),
    "an array": lambda x, y: Lazy(x.numpy(), y),
    "loader": lambda x, y: DataLoader(listed(x, y)),
}


@pytest.mark.parametrize("kind", AS_READ)
@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
@pytest.mark.parametrize(("row", "k"), [(0, 2), (255, 0), (256, 1), (299, 2)])
def test_rows_that_are_not_finite_are_named_when_they_are_first_read(kind, bad, row, k):
    if bad == math.inf and kind in ("dictionaries", "several inputs"):
        return  # they may have masks
    users = [(torch.zeros(300, 4), torch.arange(300) % 3) for _ in range(3)]
    if bad is not None:
        users[k][0][row, row % 4] = bad
    data = [AS_READ[kind](*each) for each in users]
    if bad is None:
        from_datasets(data, networks=True)
        reads = [each.reads for each in data if isinstance(each, Lazy)]
        assert all(300 <= n <= 302 for n in reads)  # once, and two rows as an example
        return
    with pytest.raises(DataError, match=rf"user {k}\b.*[Rr]ow {row} ") as refused:
        from_datasets(data, networks=True)
    assert "\n" not in str(refused.value)


def test_masks_may_be_infinite():
    mask = torch.tensor([[0.0, -math.inf]] * 5)
    data = [Lazy(mask, torch.arange(5) % 2, lambda x, y: {"mask": x, "labels": y})]
    assert len(from_datasets(data, networks=True)) == 1
