"""Pieces of IVs, whatever their length, and fingerprints that tell sets of rows apart."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.coding import make_plan
from hmtl.communication import coder
from hmtl.communication.aggregation import Digest
from hmtl.communication.coder import View, check_rows, segments
from hmtl.topology import any_r


@settings(max_examples=40)
@given(
    payload=st.integers(0, 70),
    overhead=st.integers(0, 20),
    max_pieces=st.integers(1, 5),
    working_set=st.sampled_from((1, 3000, 1 << 20)),
    seed=st.integers(0, 9),
)
def test_cut_and_put(payload: int, overhead: int, max_pieces: int, working_set: int, seed: int) -> None:
    """Every byte of every coded IV is cut once, and put back where it was; a piece is as long as the next."""
    plan = make_plan(any_r(K=12, H=4, r=2, seed=seed), max_pieces=max_pieces, generation=6)
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder, "WORKING_SET", working_set)
        steps = list(segments(plan, payload, overhead))
    for part, L in (("payload", payload), ("overhead", overhead)):
        ivs = torch.from_numpy(rng.integers(0, 256, (12, L), np.uint8))
        back, cut = torch.zeros_like(ivs), 0
        for step in steps:
            if step.part == part:
                at = torch.from_numpy(step.users)
                pieces = step.cut(ivs, at)
                assert pieces.shape == (len(at) * step.block.pieces, step.width)
                step.put(pieces, back, at)
                cut += pieces.numel()
        assert torch.equal(back, ivs)
        assert cut == sum(len(block.users) * block.pieces * -(-L // block.pieces) for block in plan.blocks)


def test_views_split_what_the_plan_says() -> None:
    plan = make_plan(any_r(K=12, H=4, r=2, seed=1), max_pieces=3)
    (block,) = plan.blocks
    for n, heard in enumerate(block.heard):
        view = View.of(block, n)
        assert view.heard.tolist() == list(heard)
        assert sorted([*view.heard, *view.missing]) == list(range(12))
        assert torch.equal(torch.cat([view.from_server, view.from_heard], dim=1), block.decoders[n])
        assert view.need == len(view.from_server) == block.pieces * len(view.missing)
        assert torch.equal(view.encoder, block.uplink[n])
    (block,) = make_plan(any_r(K=12, H=4, r=2, seed=1), aggregators=[1, 2]).blocks
    for n in range(4):
        view = View.of(block, n)
        assert torch.equal(view.encoder, block.uplink[n])
        assert view.need == (block.pieces * len(view.missing) if n in (1, 2) else 0), "a helper has no decoder"
        assert bool(view.from_heard.numel()) == (n in (1, 2))


def test_one_fingerprint_however_the_pieces_came_to_be_known() -> None:
    (block,) = make_plan(any_r(K=12, H=4, r=2, seed=1), max_pieces=3).blocks
    c = block.pieces
    pieces = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12 * c, 50), np.uint8))
    found = []
    for n in range(4):
        view = View.of(block, n)
        rows = [torch.from_numpy((places[:, None] * c + np.arange(c)).ravel()) for places in (view.heard, view.missing)]
        found.append(view.check(pieces[rows[0]], pieces[rows[1]]))
    assert all(torch.equal(check, found[0]) for check in found)
    assert found[0].shape == (coder.CHECK_ROWS, 50)


@given(n=st.integers(1, 60), L=st.integers(1, 200), seed=st.integers(0, 10**6))
def test_any_other_byte_gives_another_digest(n: int, L: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.integers(0, 256, (n, L), np.uint8))
    other = rows.clone()
    other[rng.integers(n), rng.integers(L)] ^= int(rng.integers(1, 256))
    values = []
    for content in (rows, rows.clone(), other):
        digest = Digest()
        digest.add_rows(content)
        values.append(digest.value())
    assert values[0] == values[1] != values[2]


def test_check_rows_are_the_same_everywhere_and_not_empty() -> None:
    assert torch.equal(check_rows(40), check_rows.__wrapped__(40))
    assert (check_rows(1000) != 0).any(dim=0).all()
