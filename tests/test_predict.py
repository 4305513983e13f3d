"""`python -m hmtl.predict`: a stranger's way from a table of rows to labels for new ones."""

import re
from functools import partial
from io import StringIO
from pathlib import Path

import commands
import numpy as np
import pandas as pd
import pytest
from mixed_tables import SETTINGS, USERS, mixed_table

import hmtl
from hmtl.errors import DataError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, its training data of three users, and `new.csv` of rows without labels."""
    folder, rng, parts = tmp_path_factory.mktemp("own"), np.random.default_rng(0), []
    for who in ("north", "south", "7"):
        x = rng.normal(size=(24, 2))
        parts.append(pd.DataFrame(x, columns=["a", "b"]).assign(who=who, kind=np.digitize(x[:, 0], [-0.5, 0.5])))
    table = pd.concat(parts, ignore_index=True)
    table["kind"] = np.array(["cat", "dog", "fox"])[table["kind"]]
    table.to_csv(folder / "own.csv", index=False)
    table[["b", "who", "a"]].sample(10, random_state=0).to_csv(folder / "new.csv", index=False)
    words = (
        f"dataset.path={folder}/own.csv",
        "dataset.task=who",
        "dataset.target=kind",
        "algorithm=fedavg",
        "r=2",
        "H=3",
    )
    network = ("loss=cross_entropy", "algorithm.model._target_=hmtl.mtl.mlp", "+algorithm.model.hidden=5")
    run = ("topology=any_r", "r=2", "H=3", "rounds=2", "logger=none", f"hydra.run.dir={folder}/run")
    done = commands.here("hmtl.train", "dataset=files", *words, *network, *run)
    assert done.returncode == 0, done.stderr
    return folder


def test_rows_of_several_users_in_any_order(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by its user's own model, a network that the run's configuration names; columns by their names."""
    output = trained / "predicted.csv"
    words = (f"run={trained}/run", f"data={trained}/new.csv", "task=who")
    monkeypatch.chdir(trained)
    done = commands.here("hmtl.predict", *words, f"output={output}")
    assert (done.returncode, done.stdout) == (0, f"Predictions: {output}\n")
    table, models = pd.read_csv(output, dtype={"who": str}), hmtl.load_run(trained / "run")
    new = pd.read_csv(trained / "new.csv", dtype={"who": str})
    pd.testing.assert_frame_equal(table.drop(columns="predicted"), new)
    for who, x, label in zip(new["who"], new[["a", "b"]].to_numpy(), table["predicted"], strict=True):
        assert models.predict(who, x[None])[0] == label
    assert commands.here("hmtl.predict", *words).stdout == output.read_text()
    assert not [path for path in trained.iterdir() if path.name in (".hydra", "outputs")]


def test_rows_of_one_user(trained: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(5, 2))
    np.savez(trained / "south.npz", x=rows)
    pd.DataFrame(rows, columns=["a", "b"]).to_csv(trained / "south.csv", index=False)
    want = hmtl.load_run(trained / "run").predict("south", rows).tolist()
    for words in ((f"data={trained}/south.npz",), (f"data={trained}/south.csv", "user=south")):
        done = commands.here("hmtl.predict", f"run={trained}/run", *words)
        assert [line.split(",")[-1] for line in done.stdout.splitlines()] == ["predicted", *want]


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("data={}/new.csv", "{}/new.csv is not known. Set user, .* 7, north, south"),
        ("data={}/new.csv user=nort", "Did you mean 'north'"),
        ("data={}/new.csv user=north task=who", "user=north and task=who"),
        slow("data={}/new.csv task=whom", "no column whom \\(it has .*who"),
        slow("data={}/new.csv task=a", "in column a, but the run's users are 7, north, south"),
        slow("data={}/none.csv user=north", "none.csv cannot be read: No such file or directory"),
        ("data={}/own.csv run={} user=north", "does not hold the models of a run"),
        ("data={}/bad.csv user=north", "bad.csv has \\? in column b, row 1 .* finite number"),
        ("data={}/few.csv user=north", "few.csv has no column b, which the models were trained on"),
        slow("data={}/twice.csv user=north", "twice.csv already has a column predicted"),
        slow("data={}/new.csv user=north output={}/none/x.csv", "none/x.csv: No such file.* output"),
        ("user=north", "data"),
        slow("data={}/new.csv user=north output=", "output= is not a file name"),
        ("data={}/new.csv usr=north", "usr"),
    ],
)
def test_mistakes_in_one_line(trained: Path, words: str, says: str) -> None:
    (trained / "bad.csv").write_text("a,b\n1,2\n3,?\n")
    (trained / "few.csv").write_text("a\n1\n")
    (trained / "twice.csv").write_text("a,b,predicted\n1,2,cat\n")
    given = words.replace("{}", str(trained)).split()
    run = () if "run=" in words else (f"run={trained}/run",)
    done = commands.here("hmtl.predict", *run, *given)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.search(says.replace("{}", str(trained)), done.stderr)


def test_other_columns_stay_what_they_were(trained: Path) -> None:
    """Letter by letter, for one joins by them."""
    text = 'id,a,note,price,b\n007,1,NA,1.50,2\n008,1e0,"x, y",1e5,-2\n'
    (trained / "notes.csv").write_text(text)
    done = commands.here("hmtl.predict", f"run={trained}/run", f"data={trained}/notes.csv", "user=south")
    labels = hmtl.load_run(trained / "run").predict("south", [[1, 2], [1, -2]])
    header, *rows = text.splitlines()
    assert done.stdout.splitlines() == [f"{header},predicted", *map("{},{}".format, rows, labels)]


@pytest.mark.slow
def test_raw_tables_with_categories_gaps_and_odd_names(tmp_path: Path) -> None:
    """From a file to predictions; on training rows, these have the run's errors."""
    table = mixed_table(0)
    table.to_csv(tmp_path / "own.csv", index=False)
    words = (f"dataset.path={tmp_path}/own.csv", *SETTINGS, "dataset.test_fraction=0", "topology=any_r", "r=2", "H=3")
    run = tmp_path / "run"
    done = commands.here(
        "hmtl.train", "dataset=files", *words, "rounds=3", "logger=none", f"hydra.run.dir={run}", f"output_dir={run}"
    )
    assert done.returncode == 0, done.stderr
    done = commands.here("hmtl.predict", f"run={run}", f"data={tmp_path}/own.csv", "task=who")
    assert done.returncode == 0, done.stderr
    predicted = pd.read_csv(StringIO(done.stdout), dtype=str, keep_default_na=False)
    assert predicted["who"].tolist() == table["who"].tolist()
    wrong = (predicted["predicted"] != predicted["mood"]).groupby(predicted["who"]).mean()
    errors = pd.read_csv(run / "users.csv", dtype={"user": str}, keep_default_na=False).set_index("user")["train_error"]
    assert set(wrong.index) == set(errors.index) == set(USERS)
    np.testing.assert_allclose(wrong[errors.index], errors.astype(float), atol=1e-9)
    assert wrong.mean() < 0.6

    models = hmtl.load_run(run)
    for who, rows in table.groupby("who"):
        own = predicted.loc[rows.index, "predicted"].tolist()
        assert models.predict(who, rows).tolist() == own
        assert models.predict(who, rows[list(models.columns)].to_numpy(object)).tolist() == own
    new = table[:3].assign(city=["Utopia", None, "Berlin"])
    assert set(models.predict("007", new)) <= set(table["mood"])
    with pytest.raises(DataError, match="x has no column plan"):
        models.predict("007", new.drop(columns="plan"))
    new.assign(height=["tall", 1, 2]).to_csv(tmp_path / "text.csv", index=False)
    done = commands.here("hmtl.predict", f"run={run}", f"data={tmp_path}/text.csv", "task=who")
    assert re.search("text.csv has tall in column height, row 0", done.stderr)
