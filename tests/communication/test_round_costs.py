"""Loads and seconds of every choice of aggregators, against networks computed by hand and against each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import rates
from hmtl.communication import Network
from hmtl.communication.round_costs import compare
from hmtl.topology import Topology, any_r, from_file, heterogeneous, symmetric

FIG2 = Path(__file__).parents[2] / "experiments" / "network" / "fig2.csv"
BROADCAST, UNICAST = Network(2000, 1000), Network(2000, 1000, "unicast")  # with V = 1000: 2 and 1 IVs a second


def test_the_network_of_the_papers_second_figure() -> None:
    comparison = compare(from_file(FIG2), Network(), 1000)
    assert comparison.loads["uncoded"] == {"relays_to_server": 10, "server_to_relays": 10}
    assert comparison.loads["optimal"] == {"relays_to_server": 7, "server_to_relays": 7}
    assert comparison.loads["paper"] == {"relays_to_server": 8.5, "server_to_relays": 7}
    assert comparison.loads["equal"] == {"relays_to_server": pytest.approx(8 + 5 / 6), "server_to_relays": 7}
    assert comparison.bounds == {"relays_to_server": 6.5, "server_to_relays": 7}
    assert comparison.proof == {"relays_to_server": 7, "partition": [[0, 1, 3, 4], [2]]}


def test_seconds_by_hand() -> None:
    comparison = compare(symmetric(20, 5, 3), BROADCAST, 1000)
    assert comparison.seconds["broadcast"]["uncoded"] == pytest.approx(20 + 40)
    assert comparison.seconds["broadcast"]["paper"] == pytest.approx(20 + 10 + 8)
    assert comparison.seconds["unicast"]["paper"] == pytest.approx(20 + 10 + 5 * 8)
    assert comparison.seconds["unicast"]["uncoded"] == pytest.approx(60)
    assert comparison.aggregators["broadcast"].seconds["broadcast"] == pytest.approx(20 + 8 + 8)
    assert comparison.aggregators["unicast"].seconds["unicast"] == pytest.approx(20 + 28)
    sums, rows = comparison.sums, 5 / 3
    assert sums.relays == [0, 1, 2, 3, 4]
    assert (sums.pieces, sums.proven) == (3, True)
    assert sums.cost == pytest.approx(rows)
    assert sums.seconds == pytest.approx(
        {"broadcast": 10 + rows + 1 + rows / 2, "unicast": 10 + rows + rows + rows / 2}
    )


def test_a_unicast_last_hop_carries_a_copy_for_each_user() -> None:
    sums = compare(symmetric(20, 5, 3), Network(2000, 1000, last_hop="unicast"), 1000).sums
    assert sums.seconds == pytest.approx({"broadcast": 10 + 5 / 3 + 1 + 10, "unicast": 10 + 2 * 5 / 3 + 10})


def test_whole_rows_if_shares_gain_nothing() -> None:
    sums = compare(heterogeneous(20, 4, 2, 0.2), Network(), 1000).sums
    assert (sums.relays, sums.pieces, sums.proven) == ([0, 1, 2, 3], 1, True)


def test_formats_by_hand() -> None:
    """Rows of 128 numbers: 8,192 bits in 64 bits each, 2 blocks of 256 + 16 in 4, sums of 20 in 9 each with 4 votes."""
    formats = compare(symmetric(20, 5, 3), Network(1000, 1000), 8192, "int4").formats
    plain, narrow, term, total = 8192, 2 * 272, 132 * 4, 8 * 149
    assert formats["null"]["uncoded"].bits == 40 * plain
    assert formats["int4"]["uncoded"].bits == 40 * narrow
    assert formats["int4"]["coded"].bits == pytest.approx(16 * narrow)
    assert formats["int4"]["coded"].seconds == pytest.approx(56 * narrow / 1000)
    assert formats["null"]["sums"].bits == pytest.approx((5 / 3 + 1) * plain)
    assert formats["int4"]["sums"].bits == pytest.approx((5 / 3 + 1) * total)
    assert formats["int4"]["sums"].seconds == pytest.approx((20 * term + (5 / 3 + 1 + 5 / 3) * total) / 1000)
    assert "sums" not in compare(symmetric(20, 5, 3), Network(), 8192, "float16").formats["float16"]


@pytest.mark.parametrize(
    ("topology", "medium", "relays", "ivs"),
    [
        (symmetric(20, 5, 3), "broadcast", 3, 16),
        (symmetric(20, 5, 3), "unicast", 2, 28),
        (symmetric(20, 5, 2), "unicast", 0, 40),
        (heterogeneous(50, 4, 2, 0.45), "broadcast", 2, 6),
    ],
)
def test_best_aggregators(topology: Topology, medium: str, relays: int, ivs: int) -> None:
    best = compare(topology, Network(medium=medium), 50_176).aggregators[medium]
    assert len(best.relays) == relays
    assert best.relays_to_server + best.downlinks[medium] == pytest.approx(ivs)
    assert best.bound == best.cost == pytest.approx(ivs)
    assert best.proven


@examples(12)
@given(
    st.integers(0, 100),
    st.integers(1, 3),
    st.sampled_from([{"uplink": "parallel"}, {"uplink_bps": (1e8, 2e7, 1e8, 5e7)}]),
)
def test_bounds_hold(seed: int, r: int, links: dict[str, Any]) -> None:
    comparison = compare(any_r(8, 4, r, seed), Network(**links), 1000)
    for best in comparison.aggregators.values():
        assert best.bound <= best.cost * (1 + 1e-9)


def test_unequal_uplinks_by_hand() -> None:
    """Three relays hear one user each, so each relay has to send its own IV, the third at half the speed."""
    topology, slow = symmetric(3, 3, 1), (1000.0, 1000.0, 500.0)
    shared = compare(topology, Network(1e9, 1000, uplink_bps=slow), 1000)
    parallel = compare(topology, Network(1e9, 1000, uplink_bps=slow, uplink="parallel"), 1000)
    for scheme, down in (("uncoded", 3), ("optimal", 2)):
        assert shared.seconds["broadcast"][scheme] == pytest.approx(1 + 1 + 2 + down, rel=1e-5)
        assert parallel.seconds["broadcast"][scheme] == pytest.approx(2 + down, rel=1e-5)


def test_one_relay_needs_no_code() -> None:
    comparison = compare(symmetric(4, 1, 1), Network(), 1000)
    assert comparison.loads["uncoded"] == {"relays_to_server": 4, "server_to_relays": 4}
    for scheme in ("optimal", "paper", "equal"):
        assert comparison.loads[scheme] == {"relays_to_server": 0, "server_to_relays": 0}


def test_schemes_without_a_plan_are_named_with_the_reason() -> None:
    assert compare(symmetric(20, 5, 3), Network(), 1000).not_trainable == {}
    assert compare(any_r(5000, 5, 3, 0), Network(), 1000).not_trainable.keys() == {"paper", "equal"}


@pytest.mark.slow
@pytest.mark.parametrize(("bps", "most"), [(None, 10**6), ([25e6, 50e6, 75e6, 100e6] * 15, 10**7)])
def test_a_large_network_takes_bounded_work(
    monkeypatch: pytest.MonkeyPatch, bps: list[float] | None, most: int
) -> None:
    """Flows, and the entries of programmes times the nodes of their search trees: 1,000 users and 60 or 100 relays."""
    flows, work, flow, solve = 0, 0, rates.maximum_flow, scipy.optimize.milp

    def counted(*arguments: Any) -> Any:
        nonlocal flows
        flows += 1
        return flow(*arguments)

    def worked(c: Any, *, constraints: Any, **options: Any) -> Any:
        nonlocal work
        solution = solve(c, constraints=constraints, **options)
        given = constraints if isinstance(constraints, list) else [constraints]
        work += sum(np.count_nonzero(each.A) if isinstance(each.A, np.ndarray) else each.A.nnz for each in given) * (
            solution.get("mip_node_count") or 1
        )
        return solution

    monkeypatch.setattr(rates, "maximum_flow", counted)
    monkeypatch.setattr(scipy.optimize, "milp", worked)
    comparison = compare(any_r(1000, len(bps or range(100)), 3), Network(uplink_bps=bps), 50_176)
    assert flows <= 10_000
    assert work <= most
    for best in comparison.aggregators.values():
        assert best.bound <= best.cost <= best.bound * (1 + best.excess) + 1e-6
        assert best.excess < 0.05
