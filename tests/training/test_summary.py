"""The summary of a run, as a record and as a file."""

import json

import pytest

from hmtl.training.summary import Summary, Time, user_error

TIERS = {"relays_to_server": 4.0, "server_to_relays": 4.0}
SUMMARY = Summary(
    K=2,
    H=1,
    r=1.0,
    communicator="coded",
    scheme="optimal",
    aggregators=[0],
    medium="broadcast",
    V_bits=64,
    loads=TIERS,
    loads_theory=TIERS,
    bounds=TIERS,
    algorithm="fedprox",
    loss="hinge",
    error_measure="share misclassified",
    dataset="files",
    seed=0,
    rounds=3,
    time=Time(1.0, 2.0, 3.0, 5.0, 6.0, 4.0, 0.0, 0),
    mu=0.1,
    test_error=0.2,
    bits_total=2**60,
    worst_users=[
        {"user": "a", "train_rows": 3, "test_rows": 0, "train_error": 0.5, "test_error": None},
        {"user": "b", "train_rows": 3, "test_rows": 1, "train_error": 0.0, "test_error": 0.2},
    ],
)


def test_a_summary_is_read_as_it_was_written() -> None:
    content = json.loads(json.dumps(SUMMARY.to_dict()))
    assert Summary.model_validate(content) == SUMMARY
    assert SUMMARY.figures == {"mu": 0.1, "test_error": 0.2, "bits_total": 2**60}
    assert content["mu"] == 0.1
    assert content["time"]["total_s"] == 5
    assert not {"figures", "lam", "note"} & content.keys()


@pytest.mark.parametrize("key", ["V_bits", "time", "worst_users"])
def test_a_missing_key_is_named(key: str) -> None:
    content = SUMMARY.to_dict()
    del content[key]
    with pytest.raises(ValueError, match=key):
        Summary.model_validate(content)


def test_users_are_ranked_by_their_test_error_if_they_have_one() -> None:
    assert [*map(user_error, SUMMARY.worst_users)] == [0.5, 0.2]
    assert user_error({"user": "c", "train_error": None, "test_error": None}) == 0
