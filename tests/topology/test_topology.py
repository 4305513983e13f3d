"""Topologies against plain loops over the matrix, and their errors."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.errors import TopologyError
from hmtl.testing.topologies import restricted
from hmtl.topology import Topology, any_r, geometric


@st.composite
def matrices(draw, most_relays=6, most_users=30):
    """Rows of 0/1 in which every column has a 1."""
    H, K = draw(st.integers(1, most_relays)), draw(st.integers(1, most_users))
    columns = draw(st.lists(st.integers(1, 2**H - 1), min_size=K, max_size=K))
    return [[column >> i & 1 for column in columns] for i in range(H)]


@given(matrices())
@settings(deadline=None)
def test_everything_follows_from_the_matrix(G):
    t, H, K = Topology(G), len(G), len(G[0])
    hears = [[k for k in range(K) if G[i][k]] for i in range(H)]
    heard = [tuple(i for i in range(H) if G[i][k]) for k in range(K)]
    assert (t.H, t.K) == (H, K)
    assert t.r == pytest.approx(sum(map(sum, G)) / K)
    assert [list(t.N(i)) for i in range(H)] == hears
    assert [t.relays_of(k) for k in range(K)] == heard
    assert t.degrees.tolist() == [len(relays) for relays in heard]
    for z in range(H + 2):
        assert t.I(z) == tuple(k for k in range(K) if len(heard[k]) == z)
    assert t.active == tuple(i for i in range(H) if hears[i])
    assert dict(t.types) == {relays: tuple(k for k in range(K) if heard[k] == relays) for relays in set(heard)}
    assert t.present == tuple(range(K))


@given(t=restricted(), more=st.data())
@settings(deadline=None)
def test_restricted_topologies(t, more):
    """Users, relays and links are removed, as loops over the matrix say; absent users are not counted."""
    users = more.draw(st.sets(st.integers(0, t.K - 1)))
    relays = more.draw(st.sets(st.integers(0, t.H - 1)))
    links = np.array(more.draw(st.lists(st.booleans(), min_size=t.G.size, max_size=t.G.size))).reshape(t.G.shape)
    cut = t.restricted(sorted(users), relays, links)
    G = [[int(t.G[i, k] and links[i, k] and i in relays and k in users) for k in range(t.K)] for i in range(t.H)]
    assert cut.G.tolist() == G
    assert (cut.H, cut.K, cut.layout) == (t.H, t.K, t.layout)
    heard = [tuple(i for i in range(t.H) if G[i][k]) for k in range(t.K)]
    there = [k for k in range(t.K) if heard[k]]
    assert cut.present == tuple(there)
    assert cut.active == tuple(i for i in range(t.H) if any(G[i]))
    assert cut.core.tolist() == [[G[i][k] for k in there] for i in cut.active]
    assert cut.I(0) == tuple(k for k in range(t.K) if not heard[k])
    assert cut.r == (pytest.approx(sum(map(sum, G)) / len(there)) if there else 0)
    assert dict(cut.types) == {heard[k]: tuple(j for j in there if heard[j] == heard[k]) for k in there}
    alone = Topology(cut.core).serving if there else []
    assert cut.serving.tolist() == [cut.active[alone[there.index(k)]] if k in there else -1 for k in range(t.K)]
    assert cut == t.restricted(links=links).restricted(users).restricted(relays=relays)
    assert cut == t or hash(cut) != hash(t)
    assert t.restricted() is t
    assert pickle.loads(pickle.dumps(t)) == t


@pytest.mark.parametrize("links", [[[1, 1]], [[1, 1], [0, 2], [1, 1]]])
def test_links_are_a_table_of_0_and_1(links):
    with pytest.raises(TopologyError, match="links"):
        Topology([[1, 0], [1, 1], [0, 1]]).restricted(links=links)


def test_large_networks_are_cheap():
    for t in (any_r(20_000, 20, 10), geometric(20_000, 20, 0.3)):
        assert sum(map(len, t.types.values())) == sum(len(t.I(z)) for z in range(21)) == t.K
        assert t.G[t.serving, np.arange(t.K)].all()
        assert np.bincount(t.serving).max() >= t.K / t.H


def test_equal_by_content_and_frozen():
    G = np.array([[1, 0], [1, 1]])
    t = Topology(G)
    G[0, 1] = 1
    assert t.G.tolist() == [[1, 0], [1, 1]]
    assert t == Topology([[True, False], [True, True]]) == Topology(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert len({t, Topology([[1, 0], [1, 1]]), Topology(t.G, layout=([[0, 0], [1, 1]], [[0, 1], [1, 0]]))}) == 1
    assert t != Topology(G)
    assert t != Topology([[1, 0, 1], [1, 1, 1]])
    assert t != "G"
    assert repr(t) == "Topology(K=2, H=2, r=1.5)"
    assert pickle.loads(pickle.dumps(t)) == t
    for array in (t.G, t.degrees, t.serving):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(TypeError):
        t.types[0,] = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        t.G = G


@pytest.mark.parametrize(
    ("G", "message"),
    [
        ([], "shape"),
        ([[], []], "shape"),
        ([1, 0], "shape"),
        ([[1, 0], [1]], "ragged"),
        ([[1, 0], [0, 2]], r"G\[1, 1\] is 2"),
        ([[1, 0.5], [0, 1]], r"G\[0, 1\] is 0.5"),
        ([[1, 0], [0, float("nan")]], r"G\[1, 1\] is nan"),
        ([["1", "0"], ["0", "1"]], r"G\[0, 0\] is '1'"),
        ([[1, 0, 0, 1], [1, 0, 1, 0]], "user 1,"),
        ([[1] + [0] * 12] * 2, "users 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more"),
    ],
)
def test_errors_name_the_entry(G, message):
    with pytest.raises(TopologyError, match=message):
        Topology(G)
