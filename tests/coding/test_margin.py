"""Further messages make up for any that are lost: every choice by rank, the check itself against all minors."""

from itertools import combinations

import galois
import numpy as np
import pytest
import torch
from coding_oracles import TABLE, product
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl import rng
from hmtl.coding import make_plan, margin, plan
from hmtl.errors import CodingError
from hmtl.testing.networks import restricted, topologies
from hmtl.topology import any_r, symmetric

SEEDS = st.integers(0, 2**32 - 1)
GF = galois.GF(2**8, irreducible_poly=0x11D)


def invertible(A):
    """Which of these matrices [B, n, n] over GF(2^8) are, by schoolbook elimination of all at once."""
    A, every = A.copy(), np.arange(len(A))
    good = np.ones(len(A), dtype=bool)
    inverse = (TABLE == 1).argmax(axis=1)
    for column in range(A.shape[1]):
        pivot = column + (A[:, column:, column] != 0).argmax(axis=1)
        A[every, pivot], A[:, column] = A[:, column].copy(), A[every, pivot]
        good &= A[:, column, column] != 0
        row = TABLE[A[:, column], inverse[A[:, column, column]][:, None]]
        A[:, column + 1 :] ^= TABLE[A[:, column + 1 :, column, None], row[:, None]]
    return good


def test_the_elimination_of_this_test():
    A = np.random.default_rng(0).integers(0, 3, (200, 4, 4)).astype(np.uint8)
    assert invertible(A).tolist() == [np.linalg.matrix_rank(GF(a)) == 4 for a in A]
    assert 20 < invertible(A).sum() < 180


def on_pieces(block):
    """The server's messages part by part, on the pieces of the block part by part: [messages, s, pieces, s]."""
    c, s, n = block.pieces, block.parts, len(block.users) * block.pieces
    sent = []
    for heard, rows in zip(block.heard, block.uplink, strict=True):
        wide = np.zeros((len(rows), n), np.uint8)
        wide[:, [p * c + piece for p in heard for piece in range(c)]] = rows
        sent.append(wide)
    uplink = np.kron(np.concatenate(sent), np.eye(s, dtype=np.uint8))
    recoding = np.concatenate([np.kron(block.downlink, np.eye(s, dtype=np.uint8)), block.further.numpy()])
    return product(recoding, uplink).reshape(-1, s, n, s)


@pytest.mark.parametrize("scheme", ["optimal", "paper", "equal"])
@settings(max_examples=25)
@given(
    t=topologies(max_H=5, max_K=14) | restricted(topologies(max_H=5, max_K=14)),
    e=st.integers(1, 2),
    aggregators=st.sampled_from(("all", "auto")),
    max_pieces=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_messages_may_be_lost(scheme, t, e, aggregators, max_pieces, seed):
    how = {"seed": seed, "aggregators": aggregators, "max_pieces": max_pieces, "generation": 8}
    made, draws = make_plan(t, scheme, margin=e, **how), rng.generator(seed)
    with pytest.MonkeyPatch.context() as patch:  # each code has a margin of its own, so that there are no more of them
        patch.setattr(plan, "alike", lambda G, enough: np.arange(G.shape[1])[None])
        without = make_plan(t, scheme, **how)
    assert len(made.blocks) == len(without.blocks)
    for block, plain in zip(made.blocks, without.blocks, strict=True):
        assert (block.margin, plain.margin) == (e, 0)
        assert torch.equal(block.downlink, plain.downlink)
        assert all(map(torch.equal, block.decoders, plain.decoders))
        sent, m = on_pieces(block), len(block.downlink)
        for i in block.aggregators:
            known = {p * block.pieces + piece for p in block.heard[i] for piece in range(block.pieces)}
            missing = [piece for piece in range(sent.shape[2]) if piece not in known]
            rows = [*range(len(missing)), *range(m, m + e)]
            kept = [np.delete(rows, lost) for lost in combinations(range(len(rows)), e)]
            kept = [kept[n] for n in draws.permutation(len(kept))[:60]]
            size = len(missing) * block.parts
            matrices = np.stack([sent[few][:, :, missing].reshape(size, size) for few in kept])
            assert invertible(matrices).all()
    more = sum(e / block.pieces for block in made.blocks)
    assert made.loads.downlink == pytest.approx(without.loads.downlink + more)
    assert made.loads.uplink == without.loads.uplink
    copies = sum(e / b.pieces * sum(b.need(i) > 0 for i in b.aggregators) for b in made.blocks)
    assert made.loads.unicast == pytest.approx(without.loads.unicast + copies)


@given(e=st.integers(1, 4), n=st.integers(1, 6), s=st.sampled_from((1, 2)), values=st.integers(2, 4), seed=SEEDS)
def test_the_check_finds_every_dependence(e, n, s, values, seed):
    """Of columns with few values, so that many depend; by all sets of e, each a matrix over GF(2^8)."""
    columns = np.random.default_rng(seed).integers(0, values, (n, e, s)).astype(np.uint8)
    acts = np.stack([margin._on_parts(column[:, None]) for column in columns])  # each [e·s, s]
    sets = [np.concatenate(acts[list(few)], axis=1) for few in combinations(range(n), e)]
    independent = all(np.linalg.matrix_rank(GF(A)) == e * s for A in sets)
    if n >= e:
        assert margin._independent(columns) == independent


@pytest.mark.parametrize("s", [1, 2, 4])
def test_parts_are_numbers_of_a_larger_field(s):
    """Sums and products of numbers are those of their matrices; none but 0 is without an inverse."""
    a, b = np.random.default_rng(s).integers(0, 256, (2, 50, 1, s), np.uint8)
    for x, y in zip(a, b, strict=True):
        A, B, AB = (margin._on_parts(number[None]) for number in (x, y, margin._product(x, y)))
        np.testing.assert_array_equal(product(A, B), AB)
        np.testing.assert_array_equal(margin._on_parts((x ^ y)[None]), A ^ B)
    np.testing.assert_array_equal(margin._product(a, margin._inverse(a))[:, 0], np.eye(s, dtype=np.uint8)[[0] * 50])
    assert not margin._inverse(np.zeros(s, np.uint8)).any()
    if s == 2:
        every = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=-1).reshape(-1, 1, 2).astype(np.uint8)
        unit = margin._product(every[1:], margin._inverse(every[1:]))
        assert (unit == [1, 0]).all()


class Drawn:
    def __init__(self, rows):
        self.rows = rows

    def integers(self, low, high, size, dtype):
        return np.broadcast_to(self.rows(size), size).astype(dtype)


@pytest.mark.parametrize(
    "bad",
    [
        lambda size: 0,
        lambda size: np.eye(*size[:2])[:, :, None],  # of single messages
        lambda size: np.random.default_rng(0).integers(1, 256, (1, *size[1:])),  # the same twice
    ],
)
def test_a_draw_that_is_not_enough_is_drawn_again(monkeypatch, bad):
    t = symmetric(K=10, H=5, r=2)
    real = margin.generator
    monkeypatch.setattr(margin, "generator", lambda *name: real(*name) if name[-1] == 3 else Drawn(bad))
    drawn = make_plan(t, margin=2)
    (block,) = drawn.blocks
    X = real(0, "further", "generation", 0, 3).integers(0, 256, (2, 15, block.parts), np.uint8)
    np.testing.assert_array_equal(block.further.numpy()[:: block.parts, :: block.parts], X[:, :, 0])
    monkeypatch.setattr(margin, "generator", lambda *name: Drawn(bad))
    with pytest.raises(CodingError, match=r"margin=2: in each of 20 draws .* Try another seed"):
        make_plan(t, margin=2)


def test_messages_have_more_parts_the_more_of_them_there_are():
    """With many messages GF(2^8) is too small; and the plan is still found."""
    assert [block.parts for block in make_plan(symmetric(K=10, H=5, r=2), margin=1).blocks] == [1]
    assert {block.parts for block in make_plan(any_r(K=60, H=6, r=3), margin=1).blocks} == {2}
    assert {block.parts for block in make_plan(any_r(K=300, H=10, r=3), margin=2, max_pieces=2).blocks} == {4}


@pytest.mark.parametrize("e", [9, 100])
def test_what_cannot_be_had_is_refused_in_a_line(e):
    with pytest.raises(
        CodingError, match=f"^margin={e} is too much for a code of .* Lower it, max_pieces or gen"
    ) as told:
        make_plan(any_r(K=40, H=5, r=3), margin=e)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("e", "needs", "had"),
    [
        (1, [10**9], True),
        (2, [40_000, 20_000], True),  # 10^9 pairs, of 2^32 slopes
        (2, [60_000, 60_000], False),
        (3, [300], True),
        (3, [50] * 188, True),
        (3, [50] * 189, False),  # columns to go through
        (4, [500], False),
    ],
)
def test_what_can_be_had(e, needs, had):
    assert (margin.obstacle(e, needs) == "") == had


def test_a_margin_is_not_negative():
    with pytest.raises(CodingError, match=r"margin=-1 messages cannot be spare. Set it to 0 or more"):
        make_plan(symmetric(K=10, H=5, r=2), margin=-1)
