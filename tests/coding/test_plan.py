"""Plans carried out by schoolbook products: every relay decodes, and the loads are those of the formulas."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from coding_oracles import execute, theorem_1
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl import rng
from hmtl.coding import Loads, Scheme, Uplinks, block_of, codes, loads, make_plan
from hmtl.errors import CodingError
from hmtl.gf256 import cauchy, products, simd
from hmtl.testing.topologies import restricted, topologies
from hmtl.topology import Topology, any_r, symmetric

both_schemes = pytest.mark.parametrize("scheme", ["paper", "equal"])


def pieces_of(positions, c):
    return [p * c + s for p in positions for s in range(c)]


def check(made):
    """Carry out a plan for all relays, and return the IVs sent up and down."""
    t = made.topology
    sent, down, _, knows = execute(made)
    assert knows[list(t.active)][:, list(t.present)].all()
    carried = sorted(k for block in made.blocks for k in block.users)
    assert carried == np.flatnonzero((t.degrees > 0) & (t.degrees < len(t.active))).tolist()
    return sent.sum(), down


@both_schemes
@given(t=topologies() | restricted())
def test_every_relay_decodes_with_the_loads_of_theorem_1(scheme, t):
    made = make_plan(t, scheme, seed=1)
    assert check(made) == pytest.approx(theorem_1(t.G, scheme), abs=1e-6)
    assert made.loads == loads(t, scheme)
    assert made.loads.by_relay == loads(t, scheme).by_relay


@given(
    t=topologies() | restricted(), max_pieces=st.integers(1, 8), generation=st.integers(3, 60), seed=st.integers(0, 9)
)
def test_optimal_plans_decode_in_generations_too(t, max_pieces, generation, seed):
    made = make_plan(t, "optimal", seed, max_pieces=max_pieces, generation=generation)
    up, down = check(made)
    assert (up, down) == pytest.approx((made.loads.uplink, made.loads.downlink))
    assert all(block.pieces <= max_pieces for block in made.blocks)
    best = loads(t, "optimal")
    assert up >= best.uplink - 1e-9
    assert down >= best.downlink - 1e-9
    if len(made.blocks) == 1:
        assert down == pytest.approx(best.downlink)
        assert up < best.uplink + 1 / max_pieces
        if max_pieces >= len(t.active) - 1:
            assert up == pytest.approx(best.uplink)


@examples(20)
@given(t=topologies() | restricted(), seed=st.integers(0, 9), parallel=st.booleans())
def test_plans_for_unequal_links_decode(t, seed, parallel):
    bandwidths = np.random.default_rng(seed).integers(1, 9, len(t.active))
    made = make_plan(t, seed=seed, max_pieces=3, uplinks=Uplinks(tuple(map(float, bandwidths)), parallel))
    assert check(made) == pytest.approx((made.loads.uplink, loads(t).downlink))


@pytest.mark.parametrize("scheme", ["optimal", "paper"])
@examples(20)
@given(t=restricted())
def test_absent_users_and_inactive_relays_do_not_count(scheme, t):
    """The plan is that of the network without them, with the same numbers of the other users and relays."""
    made = make_plan(t, scheme, seed=2)
    if not t.G.any():
        assert made.blocks == ()
        assert made.loads == loads(t, scheme) == Loads(0, 0)
        return
    relays, users = np.flatnonzero(t.G.any(axis=1)), np.flatnonzero(t.G.any(axis=0))
    alone = make_plan(Topology(t.G[np.ix_(relays, users)]), scheme, seed=2)
    for block, other in zip(made.blocks, alone.blocks, strict=True):
        assert block.users == tuple(users[list(other.users)].tolist())
        assert (block.pieces, block.heard) == (other.pieces, other.heard)
        for mine, its in zip(matrices(block), matrices(other), strict=True):
            assert torch.equal(mine, its)
    assert made.loads == alone.loads


def matrices(block):
    return [*block.uplink, block.downlink, *block.decoders]


def test_plans_do_not_depend_on_the_processor(monkeypatch):
    t = any_r(K=30, H=5, r=3)
    made = make_plan(t)
    monkeypatch.setattr(products.instructions, "usable", lambda: ())
    for block, other in zip(made.blocks, make_plan(t).blocks, strict=True):
        assert all(map(torch.equal, matrices(block), matrices(other)))


@pytest.mark.parametrize("scheme", ["uncoded", "best"])
def test_schemes_without_a_plan(scheme):
    with pytest.raises(CodingError, match=f"scheme={scheme}"):
        make_plan(symmetric(K=10, H=5, r=2), scheme)


def test_many_users_cost_at_most_one_percent():
    t = any_r(K=600, H=10, r=3)
    made, best = make_plan(t), loads(t)
    assert len(made.blocks) == 3
    assert made.loads.uplink <= 1.01 * best.uplink
    assert made.loads.downlink <= 1.01 * best.downlink


@examples(200)
@given(
    t=topologies(max_H=5, max_K=12),
    copies=st.integers(2, 6),
    max_pieces=st.integers(1, 4),
    aggregators=st.sampled_from(("all", "auto")),
    bandwidths=st.none() | st.lists(st.integers(1, 9), min_size=5, max_size=5),
    parallel=st.booleans(),
)
@pytest.mark.slow
def test_repeated_types_are_coded_in_uniform_parts(t, copies, max_pieces, aggregators, bandwidths, parallel):
    """The load is that of one code for all users, and all parts have the same code."""
    t = Topology(np.tile(t.G, copies))
    uplinks = bandwidths and Uplinks(tuple(map(float, bandwidths[: len(t.active)])), parallel)
    how = {"max_pieces": max_pieces, "aggregators": aggregators, "uplinks": uplinks}
    made = make_plan(t, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes, "uniform_parts", lambda G, acceptable: np.arange(G.shape[1])[None])
        whole = make_plan(t, **how)
    assert all(block.downlink is made.blocks[0].downlink for block in made.blocks)
    assert sorted(k for block in made.blocks for k in block.users) == sorted(k for b in whole.blocks for k in b.users)
    cost = lambda loads: uplinks.seconds(np.array([loads.by_relay[i] for i in t.active])) if uplinks else loads.uplink  # noqa: E731
    assert cost(made.loads) <= cost(whole.loads) * (1 + 1e-9)
    assert made.loads.downlink == pytest.approx(whole.loads.downlink)
    if aggregators == "all":
        check(made)
    if made.blocks:
        assert made.blocks[0].pieces * len(made.blocks[0].users) <= whole.blocks[0].pieces * len(whole.blocks[0].users)
    if max_pieces == 4 and aggregators == "all" and not bandwidths and made.blocks:
        assert len(made.blocks) >= copies  # four pieces reach the optimum of a part, too


def test_uniform_parts_may_have_several_pieces():
    made = make_plan(symmetric(K=30, H=5, r=2))
    assert [(len(block.users), block.pieces) for block in made.blocks] == [(10, 2)] * 3
    assert made.loads.uplink == loads(made.topology).uplink == 22.5


@pytest.mark.parametrize("setting", ["max_pieces", "generation"])
def test_settings_are_positive(setting):
    with pytest.raises(CodingError, match=f"{setting}=0"):
        make_plan(symmetric(K=10, H=5, r=2), **{setting: 0})


@pytest.mark.parametrize(("most", "pieces"), [(5, 1), (19, 1), (20, 2)])
def test_a_large_generation_has_fewer_pieces(monkeypatch, most, pieces):
    """A code of 10 users has at most `most` pieces in total, but at least one for each user."""
    monkeypatch.setattr(codes, "MAX_PIECES", most)
    (block,) = make_plan(symmetric(K=10, H=5, r=2)).blocks
    assert block.pieces == pieces


def test_no_piece_is_sent_twice():
    """If the shares of a user's relays add up to more than 1, each piece has one relay, and the last gets fewer."""
    partly = 0
    for seed in range(6):
        made = make_plan(any_r(K=10, H=8, r=5, seed=seed), "paper")
        check(made)
        for block in made.blocks:
            relays_of_piece = np.zeros(len(block.users) * block.pieces, dtype=int)
            for heard, rows in zip(block.heard, block.uplink, strict=True):
                used = rows.numpy().any(axis=0)
                relays_of_piece[pieces_of(heard, block.pieces)] += used
                dealt = used.reshape(len(heard), block.pieces).sum(axis=1)
                partly += int(((dealt > 0) & (dealt < max(dealt, default=0))).sum())
            assert (relays_of_piece == 1).all()
    assert partly > 0


def test_relay_that_hears_all_and_relay_that_hears_none():
    t = Topology([[1] * 5, [0] * 5, [1, 1, 0, 0, 1], [0, 0, 1, 0, 1]])
    made = make_plan(t)
    assert all(len(block.decoders) == 3 and len(block.decoders[0]) == 0 for block in made.blocks)
    check(made)


def test_nothing_to_do_when_all_relays_hear_all():
    assert make_plan(Topology(np.ones((3, 4)))).blocks == ()
    assert make_plan(Topology([[1, 1], [0, 0]])).blocks == ()


def test_coefficients_drawn_where_mds_exceed_the_field():
    made = make_plan(symmetric(K=300, H=3, r=2), "equal")
    assert check(made) == (150, 100)


def test_equal_arguments_give_equal_plans_and_seeds_differ():
    t = any_r(K=15, H=5, r=3, seed=0)
    one, same, other = (make_plan(t, "paper", seed).blocks[0] for seed in (3, 3, 4))
    assert torch.equal(one.downlink, same.downlink)
    assert all(map(torch.equal, one.decoders, same.decoders))
    assert not torch.equal(one.downlink, other.downlink)


class Zeros:
    def integers(self, low, high, size, dtype):
        return np.zeros(size, dtype)


def test_a_draw_that_does_not_decode_is_drawn_again(monkeypatch):
    """Attempts have separate random streams, and their number is limited."""
    t = symmetric(K=10, H=5, r=2)
    monkeypatch.setattr(
        "hmtl.coding.plan.generator", lambda seed, *name: rng.generator(seed, *name) if name[-1] == 2 else Zeros()
    )
    drawn = make_plan(t)
    assert check(drawn) == pytest.approx((7.5, 6))
    monkeypatch.setattr("hmtl.coding.plan.generator", lambda *name: Zeros())
    with pytest.raises(CodingError, match="seed"):
        make_plan(t)


def test_too_many_pieces_are_an_error_at_once():
    t = any_r(K=20, H=20, r=10, seed=3)
    with pytest.raises(CodingError, match="scheme=optimal"):
        make_plan(t, "paper")
    check(make_plan(t))


@examples(20)
@given(t=topologies(max_K=8), seed=st.integers(0, 99))
def test_matrices_of_ones_own_decode_or_say_who_cannot(t, seed):
    """As a schoolbook elimination finds: the pieces that a relay misses follow from its messages, or it is named."""
    rng = np.random.default_rng(seed)
    users = [k for k in t.present if t.degrees[k] < len(t.active)]
    if not users:
        return
    heard = [np.flatnonzero(t.G[i][users]) for i in t.active]
    uplink = [rng.integers(0, 3, (2 * (len(known) > 0), len(known))) for known in heard]
    m = int(rng.integers(1, len(users) + 1))
    downlink = rng.integers(0, 3, (m, sum(map(len, uplink))))
    sent = np.zeros((downlink.shape[1], len(users)), int)
    for rows, known, matrix in zip(np.split(sent, np.cumsum([*map(len, uplink)])), heard, uplink, strict=False):
        rows[:, known] = matrix
    field = pytest.importorskip("galois").GF(2**8, irreducible_poly=simd.POLYNOMIAL)
    received = field(downlink) @ field(sent)
    lacking = []
    for i, known in zip(t.active, heard, strict=True):
        missing = np.setdiff1d(np.arange(len(users)), known)
        if np.linalg.matrix_rank(received[: len(missing)][:, missing]) < len(missing):
            lacking.append(i)
    outcome = pytest.raises(CodingError, match=f"^relay {lacking[0]} cannot decode") if lacking else nullcontext()
    with outcome:
        block_of(t, t.active, users, list(uplink), downlink)


UNEVEN = Topology([[1, 1, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 0]])  # relay 2 hears nobody
RIGHT = {
    "users": [0, 1, 2, 3, 4],
    "uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int), [[0, 1]]],
    "downlink": cauchy(4, 6).tolist(),
    "pieces": 1,
}
"""A code for relays 0 and 3, which know 3 and 2 of the 5 users."""


def scheme_of(*blocks):
    return Scheme("own", code=lambda t, A, settings: iter(blocks))


def test_a_plan_with_a_code_of_ones_own_decodes():
    t = UNEVEN
    made = make_plan(t, scheme_of(block_of(t, [0, 3], **RIGHT)), aggregators=[0, 3])
    *_, knows = execute(made)
    assert knows[[0, 3]].all()
    wrong = replace(made.blocks[0], decoders=(), users=(0, 1, 2, 4, 3))  # what follows from its matrices is made anew
    execute(make_plan(t, scheme_of(wrong), aggregators=[0, 3]))


@pytest.mark.parametrize(
    "change",
    [
        {"users": [0, 1, 2, 3, 7]},
        {"users": [0, 1, 2, 3, -1]},
        {"users": [0, 1, 2, 3, 3]},
        {"users": [0, 1, 2, 3, 4.0]},
        {"users": ["0", 1, 2, 3, 4]},
        {"users": []},
        {"uplink": [np.eye(3), np.eye(2, dtype=int), [[0, 1]]]},  # floats, although whole
        {"uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int), [[0, 2.5]]]},
        {"uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int), [[0, -1]]]},
        {"uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int), [[0, 256]]]},
        {"uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int), [[0, 2**70]]]},
        {"uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int), [["0", "1"]]]},
        {"uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int), [[0, None]]]},
        {"uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int), [[0, 1], [1]]]},
        {"uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int), [[[0, 1]]]]},
        {"uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int)]},
        {"uplink": [np.eye(3, dtype=int), np.eye(2, dtype=int), [], [[0, 1]]]},  # one too many
        {"downlink": np.eye(4, 5, dtype=int)},
        {"downlink": np.full((4, 6), 0.5)},
        {"pieces": 0},
        {"pieces": 1.5},
        {"pieces": "1"},
    ],
    ids=str,
)
def test_a_code_with_wrong_entries_or_shapes_is_refused(change):
    with pytest.raises(CodingError):
        block_of(UNEVEN, [0, 3], **RIGHT | change)


@pytest.mark.parametrize("aggregators", [[0, 0], [2], [4], [-1], ["0"], []])
def test_a_code_for_aggregators_that_are_not_in_the_network_is_refused(aggregators):
    with pytest.raises(CodingError):
        block_of(UNEVEN, aggregators, **RIGHT)


def test_the_blocks_of_a_scheme_code_each_user_that_an_aggregator_misses_once():
    t = UNEVEN
    whole = block_of(t, [0, 3], **RIGHT)
    alone = block_of(t, [0, 3], [3], [[], [], [1]], [1])
    few = block_of(t, [0, 3], [0, 1, 2, 4], [np.eye(3, dtype=int), [0, 1], [[1]]], cauchy(3, 5).tolist())
    make_plan(t, scheme_of(few, alone), aggregators=[0, 3])
    for blocks in ([], [few], [whole, alone], [whole, whole], [(0, 1)]):
        with pytest.raises(CodingError):
            make_plan(t, scheme_of(*blocks), aggregators=[0, 3])
    with pytest.raises(CodingError):  # its code is for other aggregators, with decoders for those
        make_plan(t, scheme_of(block_of(t, [0], **RIGHT | {"downlink": cauchy(2, 6).tolist()})), aggregators=[0, 3])
    with pytest.raises(CodingError):  # as in a round in which a user is absent
        make_plan(t.restricted(users=[0, 1, 2, 4]), scheme_of(whole), aggregators=[0, 3])
    with pytest.raises(CodingError):
        make_plan(t, Scheme("without a code"))
