"""What `plan` prints: verdicts that weigh all choices, claims of optimality only if proven, 80 columns."""

from dataclasses import replace

import numpy as np
import pytest

from hmtl.communication import Network
from hmtl.communication.prices.comparison import Comparison, comparison
from hmtl.reporting.console import MIN_SAVED, Console, saved
from hmtl.reporting.plan_report import choices_table, plan_table, remarks, round_tables, verdict
from hmtl.topology import Topology, any_r, heterogeneous, symmetric

V = 64_000_000  # bits of an IV, so that overhead is less than a thousandth of the payload


def text(compared: Comparison, capsys: pytest.CaptureFixture[str]) -> str:
    console = Console()
    console.table(plan_table(compared))
    console.table(choices_table(compared))
    for table in round_tables(compared):
        console.table(table)
    for line in remarks(compared):
        console.print(line)
    return capsys.readouterr().out


@pytest.mark.parametrize("medium", ["broadcast", "unicast"])
@pytest.mark.parametrize("seed", range(6))
def test_the_verdict_weighs_all_choices(seed: int, medium: str) -> None:
    links = {"uplink": "parallel"} if seed % 2 else {"uplink_bps": (1e8, 2e7, 1e8, 5e7)}
    compared = comparison(any_r(8, 4, 1 + seed // 2, seed), Network(medium=medium, **links), V)
    times = compared.seconds[medium]
    best = [each.seconds[medium] for each in compared.aggregators.values()]
    least = min(*best, *(times[scheme] for scheme in ("optimal", "paper", "equal")))
    pays = saved(least, times["uncoded"]) >= MIN_SAVED
    assert verdict(compared).startswith("Coding pays" if pays else "Coding does not pay")


def test_verdicts_by_hand() -> None:
    assert "40% less" in verdict(comparison(symmetric(20, 5, 3), Network(2000, 1000), V))
    assert "20% less" in verdict(comparison(symmetric(20, 5, 3), Network(2000, 1000, "unicast"), V))
    alone = comparison(symmetric(20, 5, 2), Network(2000, 1000, "unicast"), V)
    assert verdict(alone).startswith("Coding does not pay")


def row(compared: Comparison, start: str) -> list[str]:
    """The cells of the row of choices that starts so, without the first one."""
    cells = [[str(cell) for cell in column.cells] for column in choices_table(compared).columns]
    (n,) = (n for n, first in enumerate(cells[0]) if first.startswith(start))
    return [column[n] for column in cells[1:]]


def test_the_server_is_named_among_aggregators() -> None:
    """Four relays hear 8, 8, 2 and 2 users, each user one relay."""
    compared = comparison(Topology(np.repeat(np.eye(4, dtype=int), [8, 8, 2, 2], axis=1)), Network(2000, 1000), V)
    assert row(compared, "aggregate, broadcast") == ["server, 0, 1", "proven"]
    assert row(compared, "aggregate, unicast") == ["server", "proven"]
    assert verdict(compared).endswith("6.7% less time with aggregators='[server, 0, 1]'.")


def test_a_choice_that_is_not_proven_is_not_called_best(capsys: pytest.CaptureFixture[str]) -> None:
    compared = comparison(symmetric(20, 5, 3), Network(), 1000)
    best = replace(compared.aggregators["broadcast"], cost=20.0, bound=16.0, excess=0.25, proven=False)
    found = replace(compared, aggregators=compared.aggregators | {"broadcast": best})
    printed = text(found, capsys)
    assert "found for broadcast" in printed
    assert "best for broadcast" not in printed
    assert "25.00%" in row(found, "aggregate, broadcast")[1]


def test_sums_meet_their_bound_or_whole_rows_do() -> None:
    assert row(comparison(symmetric(20, 5, 3), Network(), 1000), "send sums, shares of 1/3 row")[1] == "proven"
    whole = comparison(heterogeneous(20, 4, 2, 0.2), Network(), 1000)
    assert row(whole, "send sums, whole rows") == ["0-3", "proven"]
    worse = replace(whole, sums=replace(whole.sums, pieces=2, excess=0.25, proven=False))
    assert "25.00%" in row(worse, "send sums, shares of 1/2 row")[1]


def test_schemes_that_cannot_be_trained_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    printed = text(comparison(any_r(5000, 5, 3, 0), Network(), 1000), capsys)
    assert "all relays, paper *" in printed
    assert "* scheme=paper" in printed


def test_the_text_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for topology in (heterogeneous(20, 4, 2, 0.2), any_r(100, 12, 4, 0)):
        assert max(len(line) for line in text(comparison(topology, Network(), 50_176), capsys).splitlines()) <= 80
