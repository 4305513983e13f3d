"""Sums of the ledger against a plain dictionary."""

import pickle
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication import SETUP, TIERS, LinkLedger

entries = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(TIERS),
        st.sampled_from(["IVs", "models"]),
        st.integers(0, 2),
        st.integers(0, 10**6),
        st.integers(0, 10**3),
    ),
    max_size=40,
)


@given(entries)
def test_counts_add_up(entries: list[tuple[int, str, str, int, int, int]]) -> None:
    """Entries of round 0 are the set-up's; at the end of each round, of that one, of the set-up and of all so far."""
    ledger = LinkLedger(K=3, H=3)
    payload, overhead = Counter[tuple[str, str, int, int]](), Counter[tuple[str, str, int, int]]()

    def total(counter: Counter[tuple[str, str, int, int]], *want: object) -> int:
        return sum(
            n for key, n in counter.items() if all(w is None or w == part for w, part in zip(want, key, strict=True))
        )

    for round in range(4):
        if round == 3:  # the last one goes on from what the others left
            again = LinkLedger(K=3, H=3)
            again.load_state_dict(ledger.state_dict())
            ledger = again
        if round:
            ledger.begin_round()
        for _, tier, kind, link, p, o in (entry for entry in entries if entry[0] == round):
            ledger.add(tier, kind, link, p, o)
            payload[tier, kind, link, round] += p
            overhead[tier, kind, link, round] += o
        assert ledger.rounds == round
        latest = [(-1, round), (round - 1, round)] if round else []
        for asked, counted in [(None, None), (SETUP, 0), *latest]:
            for tier in TIERS:
                for link, kind in product((None, 0, 2), (None, "models")):
                    expected = total(payload, tier, kind, link, counted), total(overhead, tier, kind, link, counted)
                    assert ledger.bits(tier, link, asked, kind) == expected
    rows = [tuple(row) for row in ledger.table().itertuples(index=False)]
    assert rows == [
        (tier, ledger.links[tier][link], kind, *both)
        for tier, kind, link in product(TIERS, ("IVs", "models"), range(3))
        if any(both := (total(payload, tier, kind, link, None), total(overhead, tier, kind, link, None)))
    ]


def test_an_earlier_round_is_refused() -> None:
    ledger = LinkLedger(K=2, H=3)
    for asked in (0, -1):
        with pytest.raises(ValueError, match="round"):
            ledger.bits(TIERS[0], round=asked)
    for _ in range(2):
        ledger.begin_round()
    for asked in (0, 2, -2):
        with pytest.raises(ValueError, match="round"):
            ledger.bits(TIERS[0], round=asked)


def test_its_size_does_not_depend_on_the_number_of_rounds() -> None:
    ledger = LinkLedger(K=100, H=3)
    sizes = []
    for rounds in (2, 1000):
        for _ in range(rounds):
            ledger.begin_round()
            ledger.add(TIERS[0], "IVs", np.arange(100), 64)
        sizes.append(len(pickle.dumps(ledger.state_dict())))
    assert abs(sizes[1] - sizes[0]) < 10
    assert ledger.bits(TIERS[0]) == (1002 * 64 * 100, 0)


def test_a_link_named_twice_counts_twice() -> None:
    ledger = LinkLedger(K=2, H=3)
    ledger.begin_round()
    ledger.add("relays_to_server", "IVs", [1, 1, 2], 10, 1)
    assert ledger.per_link("relays_to_server").tolist() == [[0, 0], [20, 2], [10, 1]]
    assert list(ledger.links["server_to_relays"]) == ["relay 0", "relay 1", "relay 2", "all relays"]
