"""Hypothesis strategies that draw networks."""

import numpy as np
from hypothesis import strategies as st

from hmtl.topology import Contacts, Topology


@st.composite
def topologies(draw: st.DrawFn, max_H: int = 8, max_K: int = 40) -> Topology:
    """Draw any network: mixed degrees, sometimes a relay that hears all or nobody."""
    H = draw(st.integers(1, max_H))
    K = draw(st.integers(1, max_K))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    alike = draw(st.booleans())
    degrees = np.full(K, draw(st.integers(1, H))) if alike else rng.integers(1, H + 1, K)
    G = np.zeros((H, K), np.uint8)
    for k, degree in enumerate(degrees):
        G[rng.choice(H, degree, replace=False), k] = 1
    if draw(st.integers(0, 9)) == 0:
        G[draw(st.integers(0, H - 1))] = 1
    if H > 1 and draw(st.integers(0, 9)) == 0:
        G[0] = 0
        G[1, G.sum(0) == 0] = 1
    return Topology(G)


@st.composite
def moving(draw: st.DrawFn, rounds: int = 4) -> Contacts:
    """Draw contacts that change and may recur; users and relays may lose all contacts."""
    first = draw(topologies(max_H=6, max_K=25))
    rng, gone = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.sampled_from((0, 0.3)))
    starts = [0, *sorted(draw(st.sets(st.integers(1, rounds - 1), min_size=1)))]
    tables = [first.G]
    for _ in starts[1:]:
        shuffled = first.G[:, rng.permutation(first.K)] * (rng.random(first.K) >= gone)
        shuffled *= (rng.random((first.H, 1)) >= gone).astype(np.uint8)
        tables.append(tables[rng.integers(len(tables))] if rng.random() < 0.3 else shuffled)
    return Contacts(starts, tables)


@st.composite
def restricted(draw: st.DrawFn, topology: st.SearchStrategy[Topology] | None = None) -> Topology:
    """Draw what remains of a network in a round without some users, relays and links."""
    t = draw(topologies() if topology is None else topology)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    users, relays, links = (
        rng.random(shape) >= draw(st.sampled_from((0, 0.1, 0.5, 1))) for shape in (t.K, t.H, (t.H, t.K))
    )
    return t.restricted(users.nonzero()[0], relays.nonzero()[0], links)
