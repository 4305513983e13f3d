"""Own files: tasks from every layout, their order and labels, and each bad file with what its error names."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.data import Dirichlet, Quantity
from hmtl.data import files as prepared_files
from hmtl.errors import ConfigError, DataError

files = partial(prepared_files, intercept=False, standardize="none", center="none")  # rows as they stand in the files


def frame(n=12, seed=0, labels=("no", "yes")):
    """Column a numbers the rows, b tells the frames apart, y goes round the labels."""
    return pd.DataFrame({"a": np.arange(n) / 4, "y": [labels[i % len(labels)] for i in range(n)], "b": float(seed)})


def rows(task):
    """The task's rows in their first order: x [n, d], y [n]."""
    x, y = torch.cat([task.x_train, task.x_test]), torch.cat([task.y_train, task.y_test])
    order = x[:, 0].argsort()
    return x[order], y[order]


def save(table, file):
    if file.suffix == ".npz":
        np.savez(file, x=table.drop(columns="y").to_numpy(), y=table["y"].to_numpy(str))
    else:
        table.to_csv(file, index=False) if file.suffix.lower() == ".csv" else table.to_parquet(file)


FORMATS = ["csv", "npz", "parquet", "table csv", "table parquet"]


@pytest.mark.parametrize("labels", [("no", "yes"), ("blue", "green", "red")])
@pytest.mark.parametrize("task", [None, "who"])
def test_a_partition_deals_all_rows(tmp_path, task, labels):
    """From a table with or without a task column, and from a folder; whose rows they were plays no part."""
    table = frame(90, labels=labels)
    whole = table if task is None else table.assign(who=np.arange(90) % 4)
    save(whole, tmp_path / "all.csv")
    (tmp_path / "parts").mkdir()
    for k in range(2):
        save(table[45 * k : 45 * k + 45], tmp_path / "parts" / f"{k}.csv")
    for path, column in ((tmp_path / "all.csv", task), (tmp_path / "parts", None)):
        tasks, seen = files(path, 3, task=column, partition=Dirichlet(5)), []
        assert len({len(each.y_train) for each in tasks}) > 1
        for each in tasks:
            assert (each.classes, each.labels) == (3 if len(labels) == 3 else None, labels)
            x, y = rows(each)
            seen += (4 * x[:, 0]).tolist()
            number = [round(4 * a) % len(labels) for a in x[:, 0].tolist()]
            assert y.tolist() == (number if len(labels) == 3 else [2 * c - 1 for c in number])
        assert sorted(seen) == list(range(90))


@pytest.mark.parametrize("partition", [None, Dirichlet(5)])
def test_features_are_called_as_the_file_has_it(tmp_path, partition):
    """An npz has no names for them."""
    for kind, names in (("csv", ("a", "b")), ("npz", None)):
        (tmp_path / kind).mkdir()
        for k in range(2):
            save(frame(45), tmp_path / kind / f"{k}.{kind}")
        assert {task.columns for task in files(tmp_path / kind, 2, partition=partition)} == {names}


def test_many_whole_numbers_are_ambiguous(tmp_path):
    save(frame(63, labels=range(1, 22)), tmp_path / "u1.csv")
    with pytest.raises(ConfigError, match=r"'y' has 21 whole numbers.*kind=classification"):
        files(tmp_path)
    assert files(tmp_path, kind="classification")[0].classes == 21
    assert files(tmp_path, kind="regression")[0].classes is None
    for few in (range(20), [f"label {n}" for n in range(21)]):
        save(frame(63, labels=few), tmp_path / "u1.csv")
        assert files(tmp_path)[0].classes == len(few)


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_gives_the_same_tasks(tmp_path, form):
    if "parquet" in form:
        pytest.importorskip("pyarrow")
    tables = {name: frame(8 + seed, seed) for seed, name in enumerate(("user 10", "user 2", "user 1"))}
    path, extra = tmp_path, {}
    if "table" in form:
        whole = pd.concat([table.assign(who=name) for name, table in tables.items()]).sample(frac=1, random_state=0)
        path, extra = tmp_path / f"all.{form.split()[1]}", {"task": "who"}
        save(whole, path)
    else:
        for name, table in tables.items():
            save(table, tmp_path / f"{name}.{form}")
    for tasks in (files(path, **extra), files(str(path), 3, **extra)):
        assert [task.name for task in tasks] == ["user 1", "user 2", "user 10"]
        for task in tasks:
            x, y = rows(task)
            table = tables[task.name]
            assert x.tolist() == table[["a", "b"]].to_numpy().tolist()
            assert y.tolist() == [-1.0 if label == "no" else 1.0 for label in table["y"]]
            assert (x.dtype, y.dtype, task.classes) == (torch.float64, torch.float64, None)
    assert len(files(path, test_fraction=0.5, **extra)[0].x_test) == 5


def test_a_name_that_is_not_utf8_can_be_printed(tmp_path):
    save(frame(), tmp_path / "a\udcff.csv")
    save(frame(), tmp_path / "b.csv")
    assert [task.name for task in files(path=tmp_path)] == ["a?", "b"]


def test_a_pattern_takes_what_fits_it_and_formats_mix(tmp_path):
    save(frame(), tmp_path / "u1.CSV")
    save(frame(8, 5), tmp_path / "u2.csv")
    save(frame(), tmp_path / "v3.csv")
    (tmp_path / "._u1.csv").write_bytes(b"\0")
    (tmp_path / "notes.txt").write_text("hello")
    assert [task.name for task in files(tmp_path / "u*")] == ["u1", "u2"]
    assert len(files(tmp_path)) == 3


def test_columns_in_another_order_are_the_same_columns(tmp_path):
    save(frame(), tmp_path / "1.csv")
    save(frame(12, 7)[["y", "b", "a"]], tmp_path / "2.csv")
    assert rows(files(tmp_path)[1])[0].tolist() == frame(12, 7)[["a", "b"]].to_numpy().tolist()


@examples(10)
@given(st.lists(st.one_of(st.integers(-9, 9), st.sampled_from("pqrst")), min_size=2, max_size=5, unique_by=str))
def test_labels_are_numbered_in_sorted_order_over_all_tasks(tmp_path_factory, labels):
    """The first task lacks the last label, so no task's own numbering will do."""
    folder = tmp_path_factory.mktemp("labels")
    numeric = all(isinstance(label, int) for label in labels)
    ordered = sorted(labels) if numeric else sorted(map(str, labels))
    first = labels[:-1] if len(labels) > 2 else labels
    for name, own in (("1", first), ("2", labels)):
        save(frame(len(own) * 8, labels=own), folder / f"{name}.csv")
    for task, own in zip(files(folder, seed=1), (first, labels), strict=True):
        _, y = rows(task)
        place = [ordered.index(own[i % len(own)] if numeric else str(own[i % len(own)])) for i in range(len(y))]
        if len(labels) == 2:
            assert y.tolist() == [2 * p - 1 for p in place]
        else:
            assert (y.tolist(), y.dtype, task.classes) == (place, torch.int64, len(labels))


def test_regression_takes_the_target_as_it_is(tmp_path):
    for k in range(2):
        frame(10, k).assign(cost=np.arange(10) ** 2 / 8).drop(columns="y").to_csv(tmp_path / f"{k}.csv", index=False)
    for task in files(tmp_path, target="cost", kind="regression"):
        x, y = rows(task)
        assert torch.equal(y, (x[:, 0] * 4) ** 2 / 8)
        assert task.classes is None
    with pytest.raises(DataError, match=r"'cost' has 10 values.*kind=regression"):
        files(tmp_path, target="cost")


def test_by_default_features_are_scaled_over_all_tasks_and_numbers_centered_in_each(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(3):
        x = rng.normal(k, 2, (20 + k, 2)) * [1, 100]
        pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "same": 7.0, "y": x[:, 0] + 30 * k}).to_csv(
            tmp_path / f"{k}.csv", index=False
        )
    plain, tasks = (make(tmp_path, kind="regression") for make in (files, prepared_files))
    pooled = np.concatenate([task.x_train.numpy() for task in plain])[:, :2]
    for raw, task in zip(plain, tasks, strict=True):
        for part in ("train", "test"):
            x, y = (getattr(raw, f"{name}_{part}").numpy() for name in "xy")
            expected = np.column_stack([(x[:, :2] - pooled.mean(0)) / pooled.std(0), np.full((len(x), 2), [7.0, 1.0])])
            np.testing.assert_allclose(getattr(task, f"x_{part}").numpy(), expected)
            np.testing.assert_allclose(getattr(task, f"y_{part}").numpy(), y - raw.y_train.numpy().mean(), atol=1e-12)


@pytest.mark.parametrize("form", ["csv", "npz", "table csv"])
def test_tests_of_ones_own(tmp_path, form):
    """All rows of `path` are trained on, and one label may be missing among the tests."""
    train = {f"u{k}": frame(9 + k, k, ("no", "yes", "maybe")) for k in range(3)}
    test = {name: frame(4, 50 + k, ("yes", "no")) for k, (name, table) in enumerate(train.items())}
    places = {}
    for what, tables in (("train", train), ("test", test)):
        (tmp_path / what).mkdir()
        places[what] = tmp_path / what
        if form == "table csv":
            places[what] /= "all.csv"
            save(pd.concat([t.assign(who=n) for n, t in reversed(tables.items())]), places[what])
        else:
            for name, table in tables.items():
                save(table, tmp_path / what / f"{name}.{form}")
    tasks = files(places["train"], test_path=places["test"], task="who" if form == "table csv" else None)
    assert [task.name for task in tasks] == list(train)
    for task in tasks:
        for x, y, table in ((task.x_train, task.y_train, train), (task.x_test, task.y_test, test)):
            assert x.tolist() == table[task.name][["a", "b"]].to_numpy().tolist()
            assert [task.labels[int(number)] for number in y] == table[task.name]["y"].tolist()
        assert task.labels == ("maybe", "no", "yes")


def test_tests_may_have_their_columns_in_another_order(tmp_path):
    for what, table in (("train", frame()), ("test", frame(8, 5)[["b", "y", "a"]])):
        (tmp_path / what).mkdir()
        save(table, tmp_path / what / "u.csv")
    (task,) = files(tmp_path / "train", test_path=tmp_path / "test", standardize="all")
    raw = task.raw.x_train[:, 0]
    np.testing.assert_allclose(task.x_test[:, 0], (frame(8)["a"] - raw.mean().item()) / raw.std(correction=0).item())
    assert task.x_test[:, 1].tolist() == [5.0] * 8


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ({"u1": frame()}, "test or {path} lacks u2. Give both the same tasks."),
        ({"u1": frame(), "u2": frame(), "u3": frame()}, "test or {path} lacks u3. Give both the same tasks."),
        ({f"u{k}": frame().drop(columns="b") for k in (1, 2)}, "lacks b. Give both the same columns."),
        ({f"u{k}": frame().assign(c=1) for k in (1, 2)}, "lacks c. Give both the same columns."),
        (
            {"u1": frame(), "u2": frame().assign(c=1)},
            "u2.csv or {test}/u1.csv lacks c. Give all tasks the same columns",
        ),
        (
            {f"u{k}": frame(labels=("no", "perhaps")) for k in (1, 2)},
            "test has perhaps in column y, which no row of {path} has",
        ),
        ({"u1": frame(), "u2": frame()[:0]}, "u2.csv has no rows"),
        ({}, "test has no file of .csv"),
    ],
)
def test_tests_that_do_not_fit(tmp_path, tests, words):
    path, test = tmp_path / "train", tmp_path / "test"
    for folder, tables in ((path, {"u1": frame(), "u2": frame()}), (test, tests)):
        folder.mkdir()
        for name, table in tables.items():
            save(table, folder / f"{name}.csv")
    with pytest.raises(DataError, match=re.escape(words.format(path=path, test=test))) as error:
        files(path, test_path=test)
    assert "\n" not in str(error.value)


def csv(text):
    return lambda folder: (folder / "u2.csv").write_text(text)


def put(column, row, value):
    def write(folder):
        table = frame().astype({column: object})
        table.loc[row, column] = value
        save(table, folder / "u2.csv")

    return write


ONES, SIGNS = np.ones((6, 2)), np.tile([1, -1], 3)
BAD = {
    "missing column": (lambda f: save(frame().drop(columns="b"), f / "u2.csv"), "u1.csv lacks b"),
    "no target": (lambda f: save(frame().rename(columns={"y": "Y"}), f / "u2.csv"), "no column y (it has a, Y, b)"),
    "nan": (put("a", 3, np.nan), "u2.csv has nan in column a, row 3 (from 0, below the header)"),
    "text": (put("b", 4, "n.a.?"), "u2.csv has n.a.? in column b, row 4"),
    "no label": (put("y", 2, ""), "u2.csv has nan in column y, row 2"),
    "header only": (csv("a,b,y\n"), "u2.csv has no rows"),
    "no features": (csv("y\nyes\nno\n"), "u2.csv has no features, only y"),
    "npz without target": (lambda f: np.savez(f / "u2.npz", x=ONES, Y=SIGNS), "u2.npz has no column y"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(tmp_path, name):
    make, named = BAD[name]
    if "npz" in name:
        np.savez(tmp_path / "u1.npz", x=ONES, y=SIGNS)
    else:
        save(frame(), tmp_path / "u1.csv")
    make(tmp_path)
    with pytest.raises(DataError, match=re.escape(named)):
        files(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(who=t["who"].where(t.index != 4)), "all.csv has nan in column who, row 4"),
        (
            lambda t: t.rename(columns={"who": "whom"}),
            "all.csv has no column who (it has a, y, b, whom)",
        ),
        (lambda t: t.assign(b=t["b"].astype(object).where(t.index != 7, "?")), "all.csv has ? in column b, row 7"),
        (lambda t: t.assign(y="no"), "all.csv: 'y' is no in all rows"),
        (lambda t: t.assign(who=t["who"].where(t.index != 0, "r")), "Task 'r': 1 rows cannot be split"),
        (lambda t: t[["y", "who"]], "all.csv has no features"),
        (lambda t: t[:0], "all.csv has no rows"),
    ],
)
def test_bad_tables_name_row_or_task(tmp_path, change, words):
    table = pd.concat([frame().assign(who=who) for who in "pq"], ignore_index=True)
    change(table).to_csv(tmp_path / "all.csv", index=False)
    with pytest.raises(DataError, match=re.escape(words)):
        files(tmp_path / "all.csv", task="who")


def test_one_task_twice(tmp_path):
    save(frame(), tmp_path / "u1.csv")
    save(frame(), tmp_path / "u1.CSV")
    with pytest.raises(DataError, match="another file is also called u1"):
        files(tmp_path)


@pytest.mark.parametrize("path", ["nowhere", "empty", "nowhere/*.csv", "notes.txt"])
def test_nothing_there(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    what = "does not exist" if path == "nowhere" else "has no file of .csv, .npz, .parquet"
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / path} {what}")):
        files(tmp_path / path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"K": 3}, "K=3, but .* holds 2 tasks"),
        ({"kind": "ranking"}, "kind=ranking"),
        ({"task": "a"}, "task=a, but .* is not one table"),
        ({"test_fraction": 1.0}, "test_fraction=1"),
        ({"standardize": "both"}, "standardize=both"),
        ({"kind": "regression", "center": "yes"}, "center=yes"),
        ({"partition": Quantity()}, "K is not set"),
        ({"partition": Quantity(), "K": 2, "kind": "regression"}, "kind=regression: a partition"),
        ({"partition": Quantity(), "K": 2, "test_path": "t.csv"}, "test_path=t.csv: with a partition"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, arguments, words):
    for k in range(2):
        save(frame(), tmp_path / f"u{k}.csv")
    with pytest.raises(ConfigError, match=words):
        files(tmp_path, **arguments)
    with pytest.raises(ConfigError, match=r"is one table\. Set dataset\.task"):
        files(tmp_path / "u1.csv")
