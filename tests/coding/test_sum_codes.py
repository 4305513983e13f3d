"""Codes for sums in Python's integers: exact for any terms, as small as brute force, and loads of known networks."""

from itertools import combinations, product

import galois
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import SumCode, Uplinks, cover, sum_bounds, sum_code, sum_loads
from hmtl.coding.sum_codes import product as sum_product
from hmtl.testing.topologies import restricted, topologies
from hmtl.topology import Topology, any_r, geometric, heterogeneous, symmetric

WORD = 2**64


def times(matrix: torch.Tensor, rows: list[list[int]]) -> list[list[int]]:
    """Return matrix · rows modulo 2^64, in Python's integers."""
    columns = list(zip(*rows, strict=True))
    return [
        [sum(a * b for a, b in zip(row, column, strict=True)) % WORD for column in columns] for row in matrix.tolist()
    ]


def added(*rows: list[list[int]]) -> list[list[int]]:
    return [[sum(cells) % WORD for cells in zip(*lines, strict=True)] for lines in zip(*rows, strict=True)]


def padded(row: list[int], code: SumCode) -> list[list[int]]:
    count = code.pieces * code.bits
    length = -(-len(row) // count)
    row = row + [0] * (count * length - len(row))
    return [row[start : start + length] for start in range(0, len(row), length)]


@given(
    t=restricted(topologies(max_H=7, max_K=15)),
    L=st.integers(1, 40),
    most_pieces=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
def test_sums_are_exact_up_and_down(t: Topology, L: int, most_pieces: int, seed: int) -> None:
    """Some users of the code are absent; terms use all 64 bits, so that sums wrap."""
    code, rng = sum_code(t, None, most_pieces), np.random.default_rng(seed)
    there = [k for k in t.present if rng.random() < 0.7]
    terms = {k: rng.integers(-(2**63), 2**63 - 1, L).tolist() for k in there}
    total = [sum(column) % WORD for column in zip(*terms.values(), strict=True)] or [0] * L
    sent: list[list[int]] = []
    for i in range(t.H):
        shares = padded([0] * L, code)[: 0 if not t.G[i].any() else code.bits] * len(code.shares[i])
        for group, matrix in code.terms(i):
            users = np.flatnonzero(code.of_user == group)
            assert t.G[i, users].all(), "a relay needs only terms that it hears"
            mine = [terms[k] for k in users.tolist() if k in terms]
            if mine:
                row = [sum(column) % WORD for column in zip(*mine, strict=True)]
                shares = added(shares, times(matrix, padded(row, code)))
        sent += shares
    if not t.present:
        assert not sent
        return
    lines = times(code.combine, sent)
    assert [word for line in lines for word in line][:L] == total
    signed = torch.tensor(np.array(total, dtype=np.uint64).view(np.int64))
    given_out = torch.tensor(np.array(sent, dtype=np.uint64).view(np.int64))
    cut = torch.zeros(code.pieces * code.bits, code.stretches(L), dtype=torch.int64)
    for i in range(t.H):
        code.add(i, given_out[np.repeat(code.owners == i, code.bits)], cut)
    assert cut.view(-1)[:L].equal(signed)
    for group, shares in enumerate(code.sets):
        relays = set(code.owners[shares].tolist())
        assert all(relays <= set(t.relays_of(k)) for k in np.flatnonzero(code.of_user == group).tolist())
        assert code.join(group, code.split(signed, shares), L).equal(signed)
    assert set(np.flatnonzero(code.of_user >= 0).tolist()) == set(t.present)


@given(
    t=restricted(topologies(max_H=4, max_K=10)),
    speeds=st.lists(st.sampled_from((1.0, 2.0, 5.0)), min_size=4, max_size=4),
    kind=st.sampled_from(("alike", "shared", "parallel")),
)
def test_no_whole_numbers_of_shares_are_faster(t: Topology, speeds: list[float], kind: str) -> None:
    links = Uplinks(tuple(speeds[: len(t.active)]), kind == "parallel") if kind != "alike" and t.active else None
    least = min(speeds[: len(t.active)], default=1)
    seconds = [least / speed if links else 1.0 for speed in speeds[: len(t.active)]]
    code, combine = sum_code(t, links, 4), max if kind == "parallel" else sum
    types = [[t.active.index(i) for i in relays] for relays in t.types]
    times = [
        combine([n * s for n, s in zip(x, seconds, strict=True)] or [0.0]) / c
        for c in (1, 2, 3, 4)
        for x in product(range(c + 1), repeat=len(t.active))
        if all(sum(x[place] for place in relays) >= c for relays in types)
    ]
    assert code.cost == pytest.approx(min(times, default=0.0))
    assert code.bound <= code.cost + 1e-9
    assert code.cost <= cover(t, links).cost + 1e-9
    counts = np.bincount(code.owners, minlength=t.H)[list(t.active)] / code.pieces
    assert code.cost == pytest.approx(combine([*(counts * seconds), 0]))


def each_of(H: int, r: int) -> Topology:
    """Return a network with one user for each r of H relays."""
    return Topology(np.array([[i in relays for relays in combinations(range(H), r)] for i in range(H)]))


@pytest.mark.parametrize(
    ("t", "fraction", "c", "bits", "rows"),
    [
        (symmetric(20, 5, 3), 5 / 3, 3, 3, 3),
        (symmetric(20, 5, 4), 5 / 4, 4, 1, 2),
        (any_r(40, 5, 3), 5 / 3, 3, 3, 3),
        (any_r(40, 10, 3), 10 / 3, 3, 4, 5),
        (any_r(100, 10, 5), 2, 5, 4, 4),
        (each_of(6, 3), 2, 3, 3, 4),
        (any_r(40, 5, 2, seed=1), 5 / 2, 2, 3, 4),
        (heterogeneous(50, 4, 2, 0.2), 4, 1, 1, 4),
        (geometric(40, 5, 0.5), 4, 1, 1, 4),
        (symmetric(3, 3, 2), 3 / 2, 2, 1, 2),
        (symmetric(5, 5, 5), 1, 1, 1, 1),
    ],
)
def test_known_loads(t: Topology, fraction: float, c: int, bits: int, rows: int) -> None:
    code, load, bound = sum_code(t), sum_loads(t), sum_bounds(t)
    assert (code.pieces, code.bits) == (c, bits)
    assert code.load == load.uplink == load.unicast == pytest.approx(fraction)
    assert bound.uplink == bound.unicast == pytest.approx(fraction)
    assert code.proven
    assert sum(load.by_relay) == pytest.approx(fraction)
    assert load.downlink == bound.downlink == 1
    assert sum_loads(t, most_pieces=1).uplink == sum_code(t, None, 1).load == rows


def test_any_pieces_of_a_code_suffice() -> None:
    """With more shares than any topology above has, up to 8 bits: all determinants of a few columns are odd."""
    for H, r, most in ((24, 2, 8), (40, 3, 8), (9, 8, 8)):
        t = any_r(60, H, r, seed=2)
        code = sum_code(t, None, most)
        rng, n, cm = np.random.default_rng(0), len(code.owners), len(code.combine)
        assert 1 < code.pieces < n
        for _ in range(50):
            chosen = rng.choice(n, code.pieces, replace=False)
            block = code.combine.view(cm, n, code.bits)[:, chosen].reshape(cm, cm)
            assert np.linalg.matrix_rank(galois.GF(2)(block.numpy())) == cm


def test_whole_rows_are_the_cover() -> None:
    t = any_r(30, 6, 2, seed=4)
    code, whole = sum_code(t, None, 1), cover(t)
    assert code.relays == whole.relays
    assert (code.combine == 1).all()
    adds = np.array(whole.relays)[t.G[list(whole.relays)].argmax(axis=0)]
    assert code.owners[code.sets[code.of_user, 0]].tolist() == adds.tolist()
    for i in code.relays:
        (group, matrix), *others = code.terms(i)
        assert (np.flatnonzero(code.of_user == group).tolist(), matrix.tolist()) == (
            np.flatnonzero(adds == i).tolist(),
            [[1]],
        )
        assert not others


@pytest.mark.slow
def test_short_rows_are_not_padded_to_more_than_whole_ones() -> None:
    """A row of one word is sent whole; shares pay from a few words on."""
    t = symmetric(20, 5, 3)
    sent = {L: sum_code(t, L=L) for L in range(1, 60)}
    assert sent[1].pieces == 1
    for L, code in sent.items():
        assert len(code.owners) * code.bits * code.stretches(L) <= 3 * L
    assert sent[59].pieces == 3


@given(t=restricted(topologies(max_H=7, max_K=12)))
def test_bounds_of_sums(t: Topology) -> None:
    """By duality, the bound is at least the number of users of whom no relay hears more than one."""
    bound, load = sum_bounds(t), sum_loads(t)
    assert bound.uplink <= load.uplink + 1e-9
    assert bound.unicast <= load.unicast + 1e-9
    assert bound.downlink == load.downlink
    users, apart = list(t.present), 0
    for n in range(1, min(len(users), 4) + 1):
        apart = n if any((t.G[:, list(s)].sum(axis=1) <= 1).all() for s in combinations(users, n)) else apart
    assert bound.uplink >= apart - 1e-9


def test_users_need_fewer_rows_if_all_relays_send_them_shares() -> None:
    t, row = each_of(4, 3), torch.arange(12) ** 9
    code = sum_code(t)
    assert code.load == pytest.approx(4 / 3) == sum_bounds(t).last_hop
    for k in range(t.K):
        shares = code.sets[code.of_user[k]]
        assert set(code.owners[shares].tolist()) <= set(t.relays_of(k))
        assert torch.equal(code.join(int(code.of_user[k]), code.split(row, shares), 12), row)


@pytest.mark.parametrize("pieces", [3, 7, 8])
def test_rows_are_cut_into_as_many_pieces_as_allowed(pieces: int) -> None:
    """If all relays but one hear each user, the bound is (c + 1)/c for c + 1 relays."""
    t = symmetric(K=pieces + 1, H=pieces + 1, r=pieces)
    code = sum_code(t, None, pieces)
    assert code.pieces == pieces
    assert code.load == pytest.approx((pieces + 1) / pieces)
    assert sum_code(t, None, pieces - 1).load > code.load
    assert sum_code(t).pieces == pieces


@pytest.mark.parametrize(("H", "bits"), [(4, 1), (5, 3), (7, 3), (8, 3), (10, 4)])
def test_the_field_has_as_few_elements_as_there_are_shares(H: int, bits: int) -> None:
    """Every 3 of H relays hear somebody."""
    G = np.zeros((H, len(sets := list(combinations(range(H), 3)))), np.uint8)
    for k, heard in enumerate(sets):
        G[list(heard), k] = 1
    code = sum_code(Topology(G))
    assert (code.pieces, len(code.owners), code.bits) == (3, H, bits)


def test_products_are_those_of_torch():
    """Modulo 2^64, with zeros, ones and other factors, in portions of columns, and added to what is there."""
    rng = np.random.default_rng(0)
    A = torch.from_numpy(rng.choice([0, 1, -1, 2**62, 3**30], (4, 5)))
    X = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, (5, 2**14 + 7)))
    assert torch.equal(sum_product(A, X), torch.mm(A, X))
    assert torch.equal(sum_product(A.T[:4], X[:4], to=X[:4].clone()), torch.mm(A.T[:4].contiguous(), X[:4]) + X[:4])
