"""The summary of a run, as a record and as a file."""

import json
from types import SimpleNamespace

import pytest

from hmtl.training.summary import Summary, Time, summarize, user_error

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


def row(computed: float, learning: float) -> dict[str, float]:
    """A round that sends for 2 s, and would for 3 s uncoded."""
    seconds = {"compute_s": computed, "uncoded_s": learning + 3.0, "uncoded_communication_s": 3.0}
    return {"round": 0, "train_error": 0.5, "empty": 0, "local_s": 0.5, "communication_s": 2.0, **seconds}


@pytest.mark.parametrize(
    ("rounds", "left_out"),
    [
        (
            [(9.0, 4.0), (1.0, 0.5), (1.2, 0.7), (1.1, 0.6), (7.0, 6.0)],
            (9 - 1.15, 4 - 0.65),
        ),  # also with one slow round
        ([(9.0, 0.5), (1.0, 0.5)], (8.0, 0.0)),  # only coding is compiled
        ([(1.9, 0.5), (1.0, 0.5), (1.0, 0.5)], (0.0, 0.0)),  # no more than a busy machine does
        ([(0.5, 0.2), (1.0, 0.5), (1.0, 0.5)], (0.0, 0.0)),
        ([(9.0, 4.0)], (0.0, 0.0)),  # unknown
    ],
)
def test_the_first_round_beyond_the_median_of_the_others_is_the_warm_up(
    rounds: list[tuple[float, float]], left_out: tuple[float, float]
) -> None:
    planning = SimpleNamespace(seconds=0.0, plans=1)
    topology = SimpleNamespace(K=2, H=1)
    ledger = SimpleNamespace(table=list)
    communicator = SimpleNamespace(
        topology=topology, planning=planning, setup_seconds=(1.0, 1.0), describe=dict, ledger=ledger
    )
    made = summarize(SimpleNamespace(describe=dict), communicator, [row(*each) for each in rounds], [])
    time = made.to_dict()["time"]
    assert (time["warm_up_s"], time["uncoded_warm_up_s"]) == pytest.approx(left_out)
    assert time["total_s"] == pytest.approx(1 + sum(computed + 2 for computed, _ in rounds)), "as before"
