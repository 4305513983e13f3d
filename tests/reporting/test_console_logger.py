"""The end of a run's report: whole time first, without the warm-up, beside users alone, and never a negative saving."""

import re
from typing import Any

import pytest
from rich.table import Table

from hmtl.reporting import console
from hmtl.reporting.console import compared, error_in_words, saved
from hmtl.reporting.console_logger import ConsoleLogger, run_report
from hmtl.training.summary import Summary, Time

LOADS = {"users_to_relays": 4.0, "relays_to_server": 1.0, "server_to_relays": 2.0, "relays_to_users": 4.0}


def summary(time: Time, **changes: Any) -> Summary:
    figures = {"test_error": 0.3, "error_measure": "share misclassified", "rounds": 9, "worst_users": [], "seed": 0}
    loads = {"loads": LOADS, "loads_theory": LOADS, "bounds": LOADS, "V_bits": 64, "medium": "broadcast"}
    network = {"K": 4, "H": 3, "r": 2.0, "communicator": "coded", "scheme": "optimal", "aggregators": [0]}
    about = {"algorithm": "mocha", "loss": "hinge", "dataset": "files", "rates": "10 Mbit/s", "time": time}
    return Summary(**network | loads | about | figures | changes)


def end_of(made: Summary) -> str:
    """The sentences of the report."""
    return " ".join(part for part in run_report(made) if isinstance(part, str))


def seconds(whole: float, forwarding: float, communication: float = 3.0, uncoded: float = 4.0, **warm: float) -> Time:
    return Time(1.0, whole - communication, communication, whole, forwarding, uncoded, 0.0, 0, **warm)


def test_the_whole_time_is_compared_first() -> None:
    text = end_of(summary(seconds(6.0, 8.0)))
    assert "the run took 25% less time with coding; communication took 25% less time." in text
    assert "10 Mbit/s" in text
    assert "alone" not in text


@pytest.mark.parametrize(("whole", "times"), [(16.0, "2.0 times as long"), (11.2, "1.4 times as long")])
def test_a_run_that_took_longer_says_so_and_why(whole: float, times: str) -> None:
    text = end_of(summary(seconds(whole, 8.0)))
    assert times in text
    assert not re.search(r"-\d", text)
    assert f"{whole - 8 + 1:.2g} s longer" in text, "its computing, with the second that coding saves of communication"


def test_the_warm_up_is_left_out_of_table_and_sentence() -> None:
    cold = summary(seconds(16.0, 9.0, warm_up_s=10.0, uncoded_warm_up_s=1.0))
    assert "25% less time" in end_of(cold)
    assert "(10 s) is left out" in end_of(cold)
    table = next(part for part in run_report(cold) if isinstance(part, Table))
    row = [str(cell) for cell in table.columns[0].cells].index("whole time [s]")
    assert [str([*column.cells][row]) for column in table.columns[1:3]] == ["6", "8"]


@pytest.mark.parametrize(
    ("rounds", "best", "title"),
    [
        (9, None, "9 rounds at 10 Mbit/s;"),
        (9, 4, "9 rounds at 10 Mbit/s, models after round 4;"),
        (1, 1, "1 round at 10 Mbit/s;"),
    ],
)
def test_the_title_says_which_round_the_models_are_of(rounds: int, best: int | None, title: str) -> None:
    table = next(iter(run_report(summary(seconds(6.0, 8.0), rounds=rounds, models_after=best))))
    assert isinstance(table, Table)
    assert str(table.title).startswith(title)


def test_one_round_says_nothing_of_the_whole_time() -> None:
    text = end_of(summary(seconds(80.0, 8.0), rounds=1))
    assert "25% less time" in text
    assert "times" not in text


@pytest.mark.parametrize(("alone", "is_named"), [(0.31, False), (0.3, False), (0.29, True)])
def test_a_run_that_is_worse_than_users_alone_is_named(alone: float, is_named: bool) -> None:
    made = summary(seconds(6.0, 8.0), baseline={"lam": 0.1, "test_error": alone, "test_error_worst": 0.5, "gap": 0.0})
    assert ("alone have a smaller" in end_of(made)) == is_named


@pytest.mark.parametrize("communicator", ["coded", "uncoded"])
def test_a_run_without_messages_saves_nothing(communicator: str) -> None:
    assert not end_of(summary(seconds(6.0, 6.0, 0.0, 0.0), communicator=communicator))


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (0.0, "100% less time"),
        (0.0034, "99.7% less time"),
        (0.7, "30% less time"),
        (0.988, "1.2% less time"),
        (0.9996, "about as long"),
        (1.04, "about as long"),
        (1.4, "1.4 times as long"),
        (15.38, "15 times as long"),
        (1538.0, "1538 times as long"),
    ],
)
def test_times_in_words(time: float, words: str) -> None:
    assert compared(time, 1.0) == words
    assert compared(7 * time, 7.0) == words
    assert saved(time, 1.0) == pytest.approx(1 - time)


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"test_error": 0.0738, "test_balanced_error": 0.1, "gap": 0.5}, "duality gap 0.5, test error 7.38 %"),
        ({"test_error": 0.0738}, "test error 0.0738"),  # a mean of squares
    ],
)
def test_progress_has_the_units_of_the_table(
    row: dict[str, float], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    logger = ConsoleLogger(9)
    logger.log({"round": 2} | row)
    logger.log({"round": 3})
    logger.close()
    assert capsys.readouterr().out.splitlines() == [f"round {n} of 9, {shown}" for n in (3, 4)]


def test_errors_in_words() -> None:
    assert error_in_words({"test_error": 0.07384, "train_error": 0.1}, "share misclassified") == "test error 7.38 %"
    assert error_in_words({"train_error": 2.5}, "mean squared error") == "train error 2.5 (mean squared error)"
