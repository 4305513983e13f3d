"""One-hot categories and means against pandas and numpy, and fits that see only what users tell."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixed_tables import mixed_table

from hmtl.data.sources.files import files
from hmtl.data.table_features import TableFeatures, category_names, fit
from hmtl.errors import ConfigError, DataError

WORDS = st.one_of(st.sampled_from(["red", "Grün", "a,b", "'", "🦊", "x=y", '"', "\\"]), st.none())
NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")))
ROWS = st.lists(st.tuples(NUMBERS, WORDS, st.integers(0, 3), NUMBERS), min_size=1, max_size=12)


def frame(rows):
    return pd.DataFrame(rows, columns=["a", "color", "code", "b"]).astype({"color": object})


def by_pandas(train, table, categorical):
    """Each value beside the name of its feature."""
    columns = {name: table[name].fillna(np.nanmean(train[name])) for name in ("a", "b")}
    if "code" not in categorical:
        columns["code"] = table["code"].astype(float)
    for name in categorical:
        known = pd.get_dummies(train[name].astype(object).fillna("").astype(str))
        dummies = pd.get_dummies(table[name].astype(object).fillna("").astype(str)).reindex(
            columns=known.columns, fill_value=False
        )
        columns |= {f"{name}={each}": dummies[each].astype(float) for each in known}
    return pd.DataFrame(columns)


@given(users=st.lists(ROWS, min_size=1, max_size=5), new=ROWS, named=st.sampled_from([["color", "code"], "auto"]))
def test_against_pandas(users, new, named):
    """Over the rows of all users, and on new rows with categories that nobody has."""
    tables = [frame(rows) for rows in users]
    train = pd.concat(tables, ignore_index=True)
    if train[["a", "b"]].isna().all().any():
        with pytest.raises(DataError, match="no value in any training row"):
            fit(tables, named, "mean")
        return
    fitted = fit(tables, named, "mean")
    features = fitted[0].features
    categorical = named if named != "auto" else ["color"] if train["color"].notna().any() else []
    if named == "auto" and not categorical:
        return  # a column without any cell is numeric, and has no mean
    for table in (train, frame(new)):
        made = pd.DataFrame(features.features(table), columns=features.names)
        expected = by_pandas(train, table, categorical)
        assert set(made) == set(expected)
        pd.testing.assert_frame_equal(made[list(expected)], expected, check_dtype=False, rtol=1e-9, atol=1e-6)
    twice = pd.concat([frame(new), frame(new)])  # names of rows need not be unique
    np.testing.assert_array_equal(features.features(twice), np.tile(features.features(frame(new)), (2, 1)))
    again = TableFeatures.from_json(features.to_json())
    assert again == features
    assert {tuple(map(len, each.told)) for each in fitted} == {tuple(map(len, fitted[0].told))}


def read(row):
    return json.loads(row.numpy().tobytes())


def test_the_fit_follows_from_what_users_tell():
    """A user's facts depend on its own rows alone, and what all receive is what the features have."""
    table = mixed_table(0, n=12).drop(columns="mood")
    tables = [rows.drop(columns="who") for _, rows in table.groupby("who")]
    fitted = fit(tables, "auto", "mean")
    features, told = fitted[0].features, [[read(row) for row in each.told] for each in fitted]
    assert features.categories == {"city": tuple(sorted(set(table["city"]))), "plan": ("", "free", "pro")}
    for own, rows in zip(told, tables, strict=True):
        assert own == [read(row) for row in fit([rows], "auto", "mean")[0].told]
    _, facts = zip(*told, strict=True)
    counts, sums, known = zip(*facts, strict=True)
    np.testing.assert_allclose(features.means, np.sum(sums, 0) / np.sum(counts, 0), rtol=1e-15)
    assert set(features.categories["city"]) == {name for own in known for name in own["city"]}
    assert read(fitted[3].answers[0]) == ["city", "plan"]
    assert TableFeatures.from_json(json.dumps(read(fitted[3].answers[1]))) == features


def test_numbers_as_categories_are_numbers():
    cells = pd.Series(["01", "1", "1.0", None, "K1A", "1.5", "12345678901234567890", "-0"], dtype=object)
    assert category_names(cells).tolist() == ["1", "1", "1", "", "K1A", "1.5", "12345678901234567890", "0"]
    assert category_names(pd.Series([1.0, np.nan, 2])).tolist() == ["1", "", "2"]
    assert category_names(pd.Series([True, False])).tolist() == ["True", "False"]


def test_an_error_names_all_columns_and_the_settings(tmp_path):
    table = mixed_table(1)
    table.to_csv(tmp_path / "own.csv", index=False)
    given = {"task": "who", "target": "mood"}
    with pytest.raises(DataError) as error:
        files(tmp_path / "own.csv", **given)
    assert all(f"in column {name}, row" in str(error.value) for name in ("age", "weight", "city", "plan"))
    assert not any(f"in column {name}, row" in str(error.value) for name in ("height", "income", "who", "mood"))
    assert "dataset.missing=mean" in str(error.value)
    assert "dataset.categories=auto" in str(error.value)
    with pytest.raises(DataError, match=r"in column plan.*dataset.categories"):
        files(tmp_path / "own.csv", **given, categories=["city"], missing="mean")
    with pytest.raises(DataError, match=r"dataset.categories has town"):
        files(tmp_path / "own.csv", **given, categories=["city", "plan", "town"], missing="mean")
    table.assign(age=np.inf).to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(DataError, match=r"inf in column age, row 0.* Fix or drop"):
        files(tmp_path / "own.csv", **given, categories="auto", missing="mean")
    (tmp_path / "u.svm").write_text("1 1:2\n-1 2:1\n1 1:2\n-1 2:1\n")
    with pytest.raises(ConfigError, match="sparse"):
        files(tmp_path / "*.svm", missing="mean")


@pytest.mark.parametrize("with_tests", [False, True])
def test_only_training_rows_count(tmp_path, with_tests):
    table = mixed_table(2)
    table.to_csv(tmp_path / "own.csv", index=False)
    other = mixed_table(3).assign(city="Utopia", age=np.nan)
    other.to_csv(tmp_path / "test.csv", index=False)
    settings = {"task": "who", "target": "mood", "categories": "auto", "missing": "mean", "standardize": "none"}
    tasks = files(tmp_path / "own.csv", **settings, test_path=tmp_path / "test.csv" if with_tests else None)
    names = tasks[0].table.features.names
    ages = torch.cat([task.x_train[:, names.index("age")] for task in tasks])
    own = table.sort_values("who", kind="stable")
    if with_tests:
        mean = np.nanmean(own["age"])
        assert not any("Utopia" in name for name in names)
        assert all((task.x_test[:, [names.index(f"city={c}") for c in ("Berlin", "1.5")]] == 0).all() for task in tasks)
        assert {round(float(age), 9) for task in tasks for age in task.x_test[:, names.index("age")]} == {
            round(mean, 9)
        }
    else:
        filled = ages[~np.isin(ages.numpy(), table["age"])]
        known = ages[np.isin(ages.numpy(), table["age"])]
        np.testing.assert_allclose(filled, known.mean().item(), rtol=1e-12)
        assert len(filled) > 10
