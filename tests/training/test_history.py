"""Rows that are in a file, not in memory: what they were, after any end of the run, here or in another folder."""

import hashlib
import math
import resource
import tracemalloc

import pytest

from hmtl.errors import CheckpointError
from hmtl.training.history import History, Past

ROWS = [
    {"round": 0, "gap": 0.1 + 0.2, "bits/a b": 2**62, "empty": 0},
    {"round": 1, "gap": -1e-300, "bits/a b": 0, "empty": 1},
    {"round": 2, "gap": math.inf, "bits/a b": 7, "empty": 0},
    {"round": 3, "gap": 5.0, "bits/a b": 8, "empty": 0},
]


def written(path, rows):
    history = History(path)
    for row in rows:
        history.append(row)
    return history


def kinds(rows):
    return [[(name, value, type(value)) for name, value in row.items()] for row in rows]


def test_rows_are_as_they_were(tmp_path):
    path = tmp_path / "metrics.csv"
    history = written(path, ROWS)
    assert (len(history), history.last) == (4, ROWS[3])
    assert kinds(history) == kinds(ROWS)
    assert path.read_text().splitlines() == [
        "round,gap,bits/a b,empty",
        "0,0.30000000000000004,4611686018427387904,0",
        "1,-1e-300,0,1",
        "2,inf,7,0",
        "3,5.0,8,0",
    ]
    past = history.past()
    assert past.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert b"".join(past.blocks()) == path.read_bytes()


@pytest.mark.parametrize("folder", ["same", "other", "other, with a longer run in it"])
@pytest.mark.parametrize("done", range(5))
def test_a_run_goes_on_after_the_rows_of_its_checkpoint(tmp_path, folder, done):
    """Rows that came after the checkpoint, and whatever else is in the file, are dropped."""
    path = tmp_path / "metrics.csv"
    history = written(path, ROWS[:done])
    past = history.past()
    history.append({**ROWS[0], "round": 99})
    place = path if folder == "same" else tmp_path / "other" / "metrics.csv"
    place.parent.mkdir(exist_ok=True)
    if folder.endswith("it"):
        written(place, ROWS + ROWS)
    then = History(place)
    then.go_on(past)
    assert (len(then), then.last) == (done, ROWS[done - 1] if done else {})
    assert kinds(then) == kinds(past) == kinds(ROWS[:done])
    for row in ROWS[done:]:
        then.append(row)
    assert kinds(then) == kinds(ROWS)
    whole = written(tmp_path / "whole.csv", ROWS)
    assert place.read_bytes() == whole.path.read_bytes()
    assert then.past().state_dict() == whole.past().state_dict()


def test_other_rows_are_refused_and_left_alone(tmp_path):
    path, place = tmp_path / "metrics.csv", tmp_path / "other.csv"
    past = written(path, ROWS).past()
    whole = path.read_bytes()
    found = {
        "cut off": whole[:-1],
        "changed": whole.replace(b"inf", b"1.0"),
        "saved by others": whole.replace(b"\r\n", b"\n"),
        "empty": b"",
    }
    for content in found.values():
        path.write_bytes(content)
        for where in (path, place):
            with pytest.raises(CheckpointError, match=r"metrics\.csv does not begin with the 4 rounds that it had"):
                History(where).go_on(past)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.csv cannot be read \(No such file or directory\) when"):
        History(place).go_on(past)


def test_a_wrong_number_of_rows_is_refused(tmp_path):
    past = written(tmp_path / "metrics.csv", ROWS).past()
    for rows in (0, 3, 5):
        with pytest.raises(CheckpointError, match=f"the {rows} rounds"):
            list(Past(past.path, rows, past.nbytes, past.sha256).blocks())


def test_a_row_that_does_not_fit_on_the_disk_is_not_half_there(tmp_path):
    path = tmp_path / "metrics.csv"
    history = written(path, ROWS[:2])
    whole, before = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 3, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            history.append(ROWS[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.filename == str(path)
    assert path.read_bytes() == whole


def test_without_a_file_rows_are_counted(tmp_path):
    history = written(None, [{}, {}])
    assert (len(history), list(history)) == (2, [])
    then = History(None)
    then.go_on(written(tmp_path / "metrics.csv", ROWS).past())
    assert len(then) == 4


@pytest.mark.parametrize("goes_on", [False, True])
def test_files_of_others_stay(tmp_path, goes_on):
    """Of a folder where no run was, nothing is removed."""
    past = written(tmp_path / "metrics.csv", ROWS[:2]).past()
    place = tmp_path / "own"
    place.mkdir()
    (place / "users.csv").touch()
    history = History(place / "metrics.csv")
    if goes_on:
        history.go_on(past)
    else:
        history.append(ROWS[0])
    assert (place / "users.csv").exists()


@pytest.mark.parametrize("goes_on", [False, True])
def test_results_of_an_earlier_run_go_with_the_first_row(tmp_path, goes_on):
    """They would not be of the rows beside them; as long as nothing is written, they are."""
    path = tmp_path / "metrics.csv"
    past = written(path, ROWS[:2]).past()
    results = [tmp_path / name for name in ("summary.json", "users.csv", "models.npz", "checkpoint.pt")]
    for file in results:
        file.touch()
    history = History(path)
    assert all(file.exists() for file in results)
    if goes_on:
        history.go_on(past)
    else:
        history.append(ROWS[0])
    assert [file.name for file in results if file.exists()] == ["checkpoint.pt"]


def test_memory_does_not_grow(tmp_path):
    history = written(tmp_path / "metrics.csv", ROWS)
    tracemalloc.start()
    for round in range(4, 3000):
        history.append({**ROWS[0], "round": round})
    history.past()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10_000
    assert sum(row["round"] for row in history) == sum(range(3000))
