"""What `plan` prints: verdicts that weigh all choices, claims of optimality only if proven, 80 columns."""

import re
from dataclasses import replace

import numpy as np
import pytest

from hmtl.communication import Network
from hmtl.communication.round_costs import Comparison, compare
from hmtl.reporting.console import Console
from hmtl.reporting.plan_report import plan_table, remarks, verdict
from hmtl.topology import Topology, any_r, heterogeneous, symmetric


def text(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> str:
    console = Console()
    console.table(plan_table(comparison))
    for line in remarks(comparison):
        console.print(line)
    return capsys.readouterr().out


@pytest.mark.parametrize("medium", ["broadcast", "unicast"])
@pytest.mark.parametrize("seed", range(6))
def test_the_verdict_weighs_all_choices(seed: int, medium: str) -> None:
    links = {"uplink": "parallel"} if seed % 2 else {"uplink_bps": (1e8, 2e7, 1e8, 5e7)}
    comparison = compare(any_r(8, 4, 1 + seed // 2, seed), Network(medium=medium, **links), 1000)
    times = comparison.seconds[medium]
    best = [each.seconds[medium] for each in comparison.aggregators.values()]
    least = min(*best, *(times[scheme] for scheme in ("optimal", "paper", "equal")))
    pays = least < times["uncoded"] * (1 - 1e-9)
    assert verdict(comparison, medium).startswith("Coding pays here" if pays else "Coding does not pay here")


def test_verdicts_by_hand() -> None:
    broadcast = compare(symmetric(20, 5, 3), Network(2000, 1000), 1000)
    assert "40.0% less" in verdict(broadcast, "broadcast")
    assert "20.0% less" in verdict(broadcast, "unicast")
    alone = compare(symmetric(20, 5, 2), Network(2000, 1000, "unicast"), 1000)
    assert "all relays take 58.3% more" in verdict(alone, "unicast")


def test_the_server_is_named_among_aggregators(capsys: pytest.CaptureFixture[str]) -> None:
    """Four relays hear 8, 8, 2 and 2 users, each user one relay."""
    comparison = compare(Topology(np.repeat(np.eye(4, dtype=int), [8, 8, 2, 2], axis=1)), Network(2000, 1000), 1000)
    printed = " ".join(text(comparison, capsys).split())
    assert "Best for broadcast: the server and relays 0, 1 aggregate. Proven" in printed
    assert "Best for unicast: the server aggregates. Proven" in printed
    assert "with the server and relays 0, 1 as aggregators, a round's communication takes 6.7% less" in printed


def test_a_choice_that_is_not_proven_is_not_called_best(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compare(symmetric(20, 5, 3), Network(), 1000)
    best = replace(comparison.aggregators["broadcast"], cost=20.0, bound=16.0, excess=0.25, proven=False)
    printed = text(replace(comparison, aggregators=comparison.aggregators | {"broadcast": best}), capsys)
    assert "found for broadcast" in printed
    assert "best for broadcast" not in printed
    assert "25.00%" in printed
    sums = replace(comparison.sums, best=False, excess=0.125)
    assert "12.50%" in text(replace(comparison, sums=sums), capsys)


def test_the_proof_names_the_partition(capsys: pytest.CaptureFixture[str]) -> None:
    printed = " ".join(text(compare(symmetric(4, 2, 2), Network(), 1000), capsys).split())
    assert "below 0.00, as the partition {0} {1}" in printed


def test_sums_meet_their_bound_or_whole_rows_do(capsys: pytest.CaptureFixture[str]) -> None:
    shares = " ".join(text(compare(symmetric(20, 5, 3), Network(), 1000), capsys).split())
    assert "shares of 1/3 row, 1.67 rows in all instead of 3 whole ones; no scheme" in shares
    whole = compare(heterogeneous(20, 4, 2, 0.2), Network(), 1000)
    assert "send a whole row each; shares of rows would not be faster" in " ".join(text(whole, capsys).split())
    relays = " ".join(text(compare(symmetric(20, 5, 4), Network(1e10, 1e8), 1000), capsys).split())
    assert re.search(r"sums, learned by relays \d, \d ", relays)
    assert re.search(
        r"Relays (\d, \d) learn them: relay \d sends a whole row with .* not all of relays \1 hear;", relays
    )
    assert "If the server learned them, a round would take" in relays
    many = replace(whole, sums=replace(whole.sums, learning=list(range(7))))
    assert "Relays 0, 1, 2, 3, 4, 5, 6 learn them" in " ".join(text(many, capsys).split())
    worse = replace(whole, sums=replace(whole.sums, pieces=2, cost=4.0, bound=3.0, proven=False))
    assert "up to 25.00% less time" in " ".join(text(worse, capsys).split())


def test_schemes_that_cannot_be_trained_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    printed = text(compare(any_r(5000, 5, 3, 0), Network(), 1000), capsys)
    assert "all relays, paper *" in printed
    assert "* scheme=paper" in printed


def test_the_text_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for topology in (heterogeneous(20, 4, 2, 0.2), any_r(300, 12, 4, 0)):
        assert max(len(line) for line in text(compare(topology, Network(), 50_176), capsys).splitlines()) <= 80
