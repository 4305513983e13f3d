"""Pieces of IVs, whatever their length, and fingerprints that tell sets of rows apart."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import Aggregators, make_plan
from hmtl.communication.flows.pieces import View, segments
from hmtl.gf256 import matmul
from hmtl.topology import Topology, any_r


@examples(20)
@given(
    payload=st.integers(0, 70),
    overhead=st.integers(0, 20),
    max_pieces=st.integers(1, 5),
    working_set=st.sampled_from((1, 3000, 1 << 20)),
    together=st.sampled_from((1, 20, 1000)),
    copies=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_cut_and_put(
    payload: int, overhead: int, max_pieces: int, working_set: int, together: int, copies: int, seed: int
) -> None:
    """Every byte of every coded IV is cut once, and put back where it was; a piece is as long as the next."""
    plan = make_plan(repeated(copies, seed), max_pieces=max_pieces, generation=6)
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmtl.communication.flows.pieces.WORKING_SET", working_set)
        patch.setattr("hmtl.communication.flows.pieces.MAX_TOGETHER", together)
        steps = list(segments(plan, payload, overhead))
    for part, L in (("payload", payload), ("overhead", overhead)):
        ivs = torch.from_numpy(rng.integers(0, 256, (12 * copies, L), np.uint8))
        back, cut = torch.zeros_like(ivs), 0
        for step in steps:
            if step.part == part:
                at = torch.from_numpy(step.users)
                pieces = step.cut(ivs, at)
                assert pieces.shape == (len(at) * step.block.pieces, len(step.blocks) * step.width)
                step.put(pieces, back, at)
                cut += pieces.numel()
        assert torch.equal(back, ivs)
        assert cut == sum(len(block.users) * block.pieces * -(-L // block.pieces) for block in plan.blocks)


def repeated(copies: int, seed: int) -> Topology:
    """A network with so many users where one would be, in any order."""
    G = np.tile(any_r(K=12, H=4, r=2, seed=seed).G, copies)
    return Topology(np.random.default_rng(seed).permutation(G, axis=1))


@examples(20)
@given(
    copies=st.integers(2, 4),
    max_pieces=st.integers(1, 4),
    aggregators=st.sampled_from(("all", [1, 2])),
    together=st.sampled_from((20, 1000)),
    seed=st.integers(0, 99),
)
def test_blocks_with_one_code_are_decoded_at_once(
    copies: int, max_pieces: int, aggregators: Aggregators, together: int, seed: int
) -> None:
    """Each aggregator comes to the IVs that it missed, and to one fingerprint, as the other ones do."""
    t, L = repeated(copies, seed), 61
    plan = make_plan(t, max_pieces=max_pieces, aggregators=aggregators)
    assert sum(len(block.users) for block in plan.blocks) == len(plan.blocks) * len(plan.blocks[0].users)
    ivs = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (t.K, L), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmtl.communication.flows.pieces.MAX_TOGETHER", together)
        steps = list(segments(plan, L, 0))
    if together == 1000:
        assert len(steps) == 1
    decoded = {i: torch.where(torch.from_numpy(t.G[i] == 1)[:, None], ivs, 0) for i in plan.aggregators}
    for step in steps:
        views = [View(step.block, n) for n in range(4)]
        heard = [step.cut(ivs, torch.from_numpy(step.users[view.heard])) for view in views]
        sent = step.recoded(torch.cat([matmul(view.encoder, rows) for view, rows in zip(views, heard, strict=True)]))
        checks = []
        for i, rows in decoded.items():
            pieces = views[i].decode(sent[: views[i].need], heard[i])
            checks.append(views[i].check(heard[i], pieces, len(step.blocks)))
            step.put(pieces, rows, torch.from_numpy(step.users[views[i].missing]))
        assert all(torch.equal(check, checks[0]) for check in checks)
        if len(other := heard[i].clone()):  # a relay may hear none of these users
            other[-1, -1] ^= 1
            assert not torch.equal(views[i].check(other, pieces, len(step.blocks)), checks[0])
    for rows in decoded.values():
        coded = torch.tensor([k for block in plan.blocks for k in block.users])
        assert torch.equal(rows[coded], ivs[coded])


def test_views_split_what_the_plan_says() -> None:
    for aggregators in ("all", [1, 2]):
        (block,) = make_plan(any_r(K=12, H=4, r=2, seed=1), aggregators=aggregators).blocks
        for n, heard in enumerate(block.heard):
            view = View(block, n)
            assert view.heard.tolist() == list(heard)
            assert sorted([*view.heard, *view.missing]) == list(range(len(block.users)))
            assert torch.equal(view.encoder, block.uplink[n])
            decodes = aggregators == "all" or n in aggregators
            assert view.need == (block.pieces * len(view.missing) if decodes else 0), "a helper has no decoder"
