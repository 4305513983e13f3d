"""Sums of the ledger against a plain dictionary."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication import TIERS, LinkLedger

entries = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from(TIERS), st.integers(0, 2), st.integers(0, 10**6), st.integers(0, 10**3)
    ),
    max_size=40,
)


@given(entries)
def test_counts_add_up(entries: list[tuple[int, str, int, int, int]]) -> None:
    ledger = LinkLedger(K=3, H=3)
    payload, overhead = Counter[tuple[str, int, int]](), Counter[tuple[str, int, int]]()
    for round in range(4):
        ledger.begin_round()
        for _, tier, link, p, o in (entry for entry in entries if entry[0] == round):
            ledger.add(tier, link, p, o)
            payload[tier, link, round] += p
            overhead[tier, link, round] += o

    def total(counter: Counter[tuple[str, int, int]], *want: object) -> int:
        return sum(
            n for key, n in counter.items() if all(w is None or w == part for w, part in zip(want, key, strict=True))
        )

    for tier in TIERS:
        for link in (None, 0, 2):
            for round in (None, 0, 3):
                expected = total(payload, tier, link, round), total(overhead, tier, link, round)
                assert ledger.bits(tier, link, round) == expected
        assert ledger.bits(tier).total == total(payload, tier, None, None) + total(overhead, tier, None, None)
        assert ledger.loads(7)[tier] == pytest.approx(total(payload, tier, None, None) / 28)

    again = LinkLedger(K=3, H=3)
    again.load_state_dict(ledger.state_dict())
    assert again.rounds == 4
    for tier in TIERS:
        np.testing.assert_array_equal(again.per_link(tier), ledger.per_link(tier))
    again.begin_round()
    assert ledger.rounds == 4


def test_a_link_named_twice_counts_twice() -> None:
    ledger = LinkLedger(K=2, H=3)
    ledger.begin_round()
    ledger.add("relays_to_server", [1, 1, 2], 10, 1)
    assert ledger.per_link("relays_to_server").tolist() == [[0, 0], [20, 2], [10, 1]]
    assert list(ledger.links["server_to_relays"]) == ["relay 0", "relay 1", "relay 2", "all relays"]
