"""What `plan` prints: verdicts that weigh all choices, claims of optimality only if proven, 80 columns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hmtl.communication import Network
from hmtl.communication.prices.comparison import Comparison, LinkUse, Timetable, comparison
from hmtl.reporting.console import MIN_SAVED, Console, saved
from hmtl.reporting.plan_report import (
    WAYS,
    choices_table,
    failures_of,
    failures_picture,
    failures_table,
    links_table,
    plan_files,
    plan_table,
    remarks,
    round_tables,
    time_remarks,
    time_table,
    verdict,
)
from hmtl.topology import Names, Topology, any_r, heterogeneous, symmetric

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


LINK = "{up_bps: 1e7, down_bps: 2e7, latency_s: 0.01"
FAST = "{up_bps: 1e9, down_bps: 1e9, latency_s: 0"


@pytest.fixture
def sites(tmp_path: Path) -> Timetable:
    """A fast server with a price, and three relays with long names: one hears a user alone, one no user alone."""
    names = ("Nordhausen an der langen Strasse", "Mitte", "Sued")
    links = "\n".join(f"  {name}: {LINK}}}" for name in names)
    (tmp_path / "links.yaml").write_text(f"server: {FAST}, price_per_gb: [0.1, 0]}}\nrelays:\n{links}")
    t = Topology([[1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]], names=Names(names, tuple("abcde")))
    return comparison(t, Network(links=str(tmp_path / "links.yaml")), 2_400_000_000, fail="each")


def test_coded_is_a_choice_of_relays_even_if_the_server_is_faster(sites: Timetable) -> None:
    assert sites.choices[0][0] == "server"
    seconds = {str(setting): seconds for setting, seconds in sites.choices}
    assert sites.coded != "server"
    assert sites.failures[0].seconds["coded"] == seconds[str(sites.coded)] > sites.uncoded
    assert [link.sent for link in sites.links["coded"]] != [link.sent for link in sites.links["uncoded"]]
    assert "coded: with" in " ".join(time_remarks(sites))
    alone = comparison(symmetric(20, 5, 1), Network(medium="unicast"), 1000, fail="0")
    assert (alone.aggregators["unicast"].relays, alone.coded) == ([], [0, 1, 2, 3, 4])
    assert alone.failures[0].seconds["coded"] > alone.failures[0].seconds["uncoded"]


def test_the_last_row_of_links_says_which_seconds_it_has(sites: Timetable) -> None:
    *_, last = zip(*(column.cells for column in links_table(sites).columns), strict=True)
    cells = [str(cell) for cell in last]
    assert cells[0] == "all; s: busiest"
    assert float(cells[3]) == pytest.approx(max(link.seconds for link in sites.links["uncoded"]), rel=0.01)
    assert cells[1] == f"{sum(link.sent for link in sites.links['uncoded']) / 1e6:,.0f}"


def test_what_is_nothing_beside_others_is_0_and_large_numbers_have_no_exponent() -> None:
    use = [LinkUse("server", 16e6, 0.0, 8.0, 3.6e-15), LinkUse("relay 0", 3.6e9, 16.0, 288.0, 5.0)]
    times = Timetable(**dict.fromkeys(Timetable.__dataclass_fields__))
    times = replace(
        times, H=1, names=Names(), costs=[5.0], choices=[("server", 8.0)], links={"uncoded": use, "sums": use}
    )
    cells = [[str(cell) for cell in column.cells] for column in links_table(times).columns]
    assert [column[:2] for column in cells[1:5]] == [["16", "3,600"], ["0", "1.6e-05"], ["8", "288"], ["0", "5"]]


def test_shares_saved_are_percent_in_one_column(sites: Timetable) -> None:
    (column,) = (column for column in time_table(sites).columns if column.header == "saved")
    slow = replace(sites, choices=[*sites.choices, (["server", 0, 1, 2], 30 * sites.uncoded)])
    (slower,) = (column for column in time_table(slow).columns if column.header == "saved")
    assert all(str(cell).endswith("%") for cell in (*column.cells, *slower.cells))


def test_files_have_what_tables_have(sites: Timetable) -> None:
    files = plan_files(sites)
    assert list(files) == ["failures", "links", "choices"]
    assert files["links"].groupby("travels")["cost"].sum().to_dict() == pytest.approx(
        {name: sites.failures[0].cost[way] for way, name in WAYS.items() if way in sites.links}
    )
    assert files["links"]["node"].tolist()[:2] == ["server", "Nordhausen an der langen Strasse"]
    assert files["choices"]["seconds"].tolist() == [seconds for _, seconds in sites.choices]
    assert files["failures"]["relay"].tolist() == ["none", *sites.names.relays]
    assert files["failures"]["users_cut_off"].tolist() == [0, 2, 0, 1]
    assert list(plan_files(comparison(symmetric(4, 2, 1), Network(), 1000))) == ["costs"]


def test_the_picture_of_failures_shows_seconds_and_money(sites: Timetable) -> None:
    figure = failures_picture(failures_of(sites))
    seconds, cost = figure.axes
    assert (seconds.get_xlabel(), cost.get_xlabel()) == ("seconds of a round", "cost of a round")
    assert cost.lines[0].get_xdata().tolist() == [failure.cost["uncoded"] for failure in sites.failures]
    assert [text.get_text() for text in cost.texts] == ["cuts off 2 users", "cuts off 1 user"]
    free = replace(sites, failures=[replace(failure, cost={}) for failure in sites.failures])
    assert len(failures_picture(failures_of(free)).axes) == 1
    alone = comparison(Topology([[1, 1]]), Network(), 1000, fail="each")  # nobody is left
    assert [text.get_text() for text in failures_picture(failures_of(alone)).axes[0].texts] == ["the run waits"]
    assert "waits" in [str(cell) for cell in failures_table(failures_of(alone)).columns[-1].cells]


def test_tables_of_links_fit_80_columns(
    sites: Timetable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for table in (time_table(sites), links_table(sites), failures_table(failures_of(sites))):
        Console().table(table)
    printed = capsys.readouterr().out
    assert "1,5" in printed, "MB beyond 1,000"
    assert max(map(len, printed.splitlines())) <= 80


def test_the_text_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for topology in (heterogeneous(20, 4, 2, 0.2), any_r(100, 12, 4, 0)):
        assert max(len(line) for line in text(comparison(topology, Network(), 50_176), capsys).splitlines()) <= 80
