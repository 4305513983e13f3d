"""Rows of users: proposed ones count or do not, equal ones are shared, and none is written into."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.mtl.algorithms.held_rows import UserRows

N = 3


@given(K=st.integers(1, 6), data=st.data(), seed=st.integers(0, 1000))
def test_rows_are_those_of_a_dictionary(K, data, seed):
    """After any proposals, commits, roll-backs and replacements, of which some name users with nothing pending."""
    rng, start = torch.Generator().manual_seed(seed), torch.zeros(N)
    rows, held, pending, given_out = UserRows(start, K), dict.fromkeys(range(K), start), {}, []
    some = st.lists(st.integers(0, K - 1), unique=True).map(sorted)
    for _ in range(8):
        users = np.array(data.draw(some), dtype=np.int64)
        new = torch.randn(len(users), N, generator=rng)
        if data.draw(st.booleans()):
            new = new[:1].expand(len(users), -1)
        match data.draw(st.sampled_from(["propose", "commit", "roll_back", "put"])):
            case "propose":
                rows.propose(users, new)
                pending |= dict(zip(users.tolist(), new.clone(), strict=True))
            case "put":
                rows.put(users, new)
                held |= dict(zip(users.tolist(), new.clone(), strict=True))
            case "commit":
                rows.commit(users)
                held |= {k: pending.pop(k) for k in users.tolist() if k in pending}
            case "roll_back":
                rows.roll_back(users)
                pending = {k: row for k, row in pending.items() if k not in users}
        want = torch.stack([held[k] for k in range(K)])
        assert torch.equal(rows.all(), want)
        assert torch.equal(rows.of(users), want[users])
        assert K > 1 or rows.alike()
        given_out.append((rows.all(), want))
    for got, want in given_out:
        assert torch.equal(got, want), "a row was written into"
    assert not start.any()


def test_equal_rows_share_memory():
    """Users who never took part cost nothing, nor does a model that all have; a row keeps no larger tensor alive."""
    start = torch.zeros(N)
    rows = UserRows(start, 1000)
    assert rows.alike()
    assert rows.all().shape == (1000, N)
    assert rows.all().data_ptr() == start.data_ptr()
    new = torch.randn(2, N)
    rows.put(np.array([3, 5]), new)
    assert not rows.alike()
    assert rows.of(np.array([0, 999])).data_ptr() == start.data_ptr()
    assert rows.of(np.array([3])).untyped_storage().nbytes() == start.nbytes
    new.zero_()
    assert rows.of(np.array([3, 5])).all(), "what was put changed with its source"
    rows.put(np.arange(1000), torch.ones(1, N).expand(1000, -1))
    assert rows.alike()
    assert rows.all().untyped_storage().nbytes() == start.nbytes
    rows.propose(np.array([7]), torch.ones(1, N))
    assert rows.alike(), "a proposal does not count yet"


def test_no_users():
    nobody = np.empty(0, dtype=np.int64)
    for rows in (UserRows(torch.zeros(N), 2), UserRows(torch.zeros(N), 0)):
        rows.propose(nobody, torch.empty(0, N))
        rows.commit(nobody)
        rows.roll_back(nobody)
        rows.put(nobody, torch.empty(0, N))
        assert rows.of(nobody).shape == (0, N)
    assert UserRows(torch.zeros(N), 0).all().shape == (0, N)
    assert UserRows(torch.zeros(N), 0).alike()
