"""The protocol without a network: what is unmasked is the sum of the terms that counted, or nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from masked_round import MaskedRound

from hmtl.communication.secure.crypto import expand
from hmtl.communication.secure.masking import MaskingUser, UnmaskingError
from hmtl.communication.secure.neighbors import Degree, degree

ALL = np.ones(3, bool)  # neighbors hold shares


@st.composite
def degrees(draw: st.DrawFn) -> tuple[int, Degree]:
    """Draw n, and k and t, those of the package or any."""
    n = draw(st.integers(2, 14))
    if draw(st.booleans()):
        chosen = degree(n, draw(st.integers(0, n // 3)))
        assert chosen is not None
        return n, chosen
    k = draw(st.sampled_from([*range(2, n - 1, 2), n - 1]))
    return n, Degree(k, draw(st.integers(1, k)))


@given(degrees(), st.lists(st.sampled_from((1, 5, 8, 14, 16, 31, 64)), min_size=1, max_size=3), st.data())
def test_the_sum_is_that_of_the_terms_that_counted(
    n_and_degree: tuple[int, Degree], bits: list[int], data: st.DataObject
) -> None:
    """Users are silent, send no term, or do not answer; a sum of which too few shares are known is refused."""
    (n, chosen), rng = n_and_degree, np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    gone = [data.draw(st.sampled_from((0.0, 0.2, 0.5))) for _ in range(3)]
    played = MaskedRound(n, chosen, np.flatnonzero(rng.random(n) < gone[0]).tolist(), rng.permutation(n))
    parts = [(int(rng.integers(0, 20)), w) for w in bits]
    masks = played.masks(parts)
    counted = [place for place in played.sharing if rng.random() >= gone[1]]
    answering = [place for place in played.sharing if rng.random() >= gone[2]]
    terms = {place: [rng.integers(0, 2**63, L) for L, _ in parts] for place in counted}
    place_of = {number: place for place, number in enumerate(played.numbers.tolist())}
    around = [{place_of[number] for number in row} for row in played.neighbors.tolist()]
    assert all(place in around[other] for place in range(n) for other in around[place])
    assert all(len(set(neighbors)) == chosen.neighbors for neighbors in around)
    needed = [place for place in played.sharing if place in counted or around[place] & set(counted)]
    if any(len(around[place] & set(answering)) < chosen.threshold for place in needed):
        with pytest.raises(UnmaskingError):
            played.unmask(counted, answering, parts)
        return
    unmasked = played.unmask(counted, answering, parts)
    for part, (L, w) in enumerate(parts):
        for at in range(L):
            total = sum(int(terms[k][part][at]) + int(masks[k][part][at]) for k in counted) - int(unmasked[part][at])
            assert total % 2**w == sum(int(terms[k][part][at]) for k in counted) % 2**w


def test_a_user_without_a_neighbor_that_counted_is_not_needed() -> None:
    """Of six users on a circle, 0 and 1 count; no mask of user 3 is in their sum, and nobody reveals shares of it."""
    played, parts = MaskedRound(6, Degree(2, 1)), [(4, 64)]
    masks = played.masks(parts)
    (unmasked,) = played.unmask([0, 1], [0, 1, 5], parts)
    assert (sum(masks[place][0] for place in (0, 1)) == unmasked).all()


def test_a_user_shares_its_seeds_once() -> None:
    """And with each neighbor once: one that is there twice would have two shares."""
    user, others = MaskingUser(3), [MaskingUser(number) for number in (1, 2, 5)]
    keys = np.stack([other.advertised for other in others])
    for wrong in ([1, 1], [1, 3]):
        assert user.share(np.array(wrong), keys[:2], 2, ALL[:2]) is None
    assert user.share(np.array([1, 2]), keys[:2], 2, ALL[:2]) is not None
    for again in ([0, 1], [1, 2]):
        assert user.share(np.array([1, 2, 5])[again], keys[again], 1, ALL[:2]) is None


def test_nothing_is_sealed_for_neighbors_that_hold_no_shares() -> None:
    users = [MaskingUser(number) for number in range(4)]
    keys, holds = np.stack([user.advertised for user in users]), np.array([True, False, True])
    sealed = users[0].share(np.arange(1, 4), keys[1:], 2, holds)
    assert sealed is not None
    assert sealed.any(axis=1).tolist() == holds.tolist()
    assert users[0].can_mask(ALL), "it has masks in common with all"


@pytest.mark.parametrize("part", [slice(0, 32), slice(32, 64), slice(0, 64)], ids=["sealing", "masking", "both"])
def test_a_neighbor_with_keys_that_are_none_did_not_share(part: slice) -> None:
    """Everybody agrees on zeros with a point of small order."""
    users = [MaskingUser(number) for number in range(4)]
    keys = np.stack([user.advertised for user in users])
    keys[3, part] = 0
    around = [[other for other in range(4) if other != k] for k in range(4)]
    sealed = [user.share(np.array(near), keys[near], 2, ALL) for user, near in zip(users, around, strict=True)]
    for k in range(3):
        rows = np.stack([sealed[other][around[other].index(k)] for other in around[k]])
        assert users[k].take(rows).tolist() == [True, True, False]
        rows[0, 5] ^= 1
        assert users[k].take(rows).tolist()[0], "what it has read, it keeps"
        bits = [[True, True, False], [True, False, False], [True, True, True]]
        assert [users[k].can_mask(np.array(shared)) for shared in bits] == [True, False, False]


def test_a_user_reveals_one_share_of_each_neighbor_and_once() -> None:
    """For a second set of users that counted, it would reveal the other seed."""
    played = MaskedRound(5, Degree(4, 2), silent=[4])
    first = played.users[0].reveal(np.array([True, False, True, False]))
    assert first is not None
    assert first.any(axis=1).tolist() == [True, True, True, False]
    assert played.users[0].reveal(np.array([True, True, True, False])) is None


def test_masks_of_all_parts_seeds_and_rounds_differ_everywhere() -> None:
    """Wherever two masks had eight bytes in common, the masked terms would tell the difference of terms."""
    streams = [expand(bytes([s]) * 16, part, 1000, 64).tobytes() for s in range(6) for part in (0, 1, 2, 255, 256)]
    for _ in range(2):
        streams += [
            m.tobytes() for masks in MaskedRound(4, Degree(3, 2)).masks([(500, 64)] * 2).values() for m in masks
        ]
    windows = [np.lib.stride_tricks.sliding_window_view(np.frombuffer(s, np.uint8), 8) for s in streams]
    numbers = np.concatenate([np.ascontiguousarray(each).view(np.uint64).ravel() for each in windows])
    assert len(np.unique(numbers)) == len(numbers)
