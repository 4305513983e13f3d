"""Networks whose users move: walks, and contacts from a file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmtl.errors import TopologyError
from hmtl.topology import Contacts, Topology, Walk, from_contacts, geometric, moving


def places(walk: Walk, round: int) -> tuple[np.ndarray, np.ndarray]:
    layout = walk.at(round).layout
    assert layout is not None
    return layout


@given(
    st.integers(1, 30), st.integers(1, 6), st.floats(0.05, 1), st.floats(0, 1), st.integers(1, 4), st.integers(0, 99)
)
def test_users_walk_from_where_geometric_put_them(
    K: int, H: int, radius: float, step: float, every: int, seed: int
) -> None:
    walk = Walk(K, H, radius, seed, step=step, every=every)
    assert walk.at(-1) is walk.at(0) is walk.at(every - 1)
    assert walk.at(0) == geometric(K, H, radius, seed)
    for stretch in range(3):
        t = walk.at(stretch * every)
        assert (t.K, t.H) == (walk.K, walk.H) == (K, H)
        assert len(t.present) == K
        assert t is walk.at(stretch * every + every - 1)
        (before, _), (users, relays) = places(walk, max(0, stretch - 1) * every), places(walk, stretch * every)
        assert 0 <= users.min() <= users.max() <= 1
        np.testing.assert_array_equal(relays, places(walk, 0)[1])
        gone = np.hypot(*(users - before).T)
        assert gone.max() <= step + 1e-12
        inside = ((before > step) & (before < 1 - step)).all(axis=1)
        np.testing.assert_allclose(gone[inside], step if stretch else 0, atol=1e-12)


def test_a_walk_is_the_same_from_wherever_one_looks() -> None:
    forward, backward = Walk(20, 4, 0.4, 7, every=2), Walk(20, 4, 0.4, 7, every=2)
    seen = [forward.at(round) for round in range(12)]
    assert seen == [backward.at(round) for round in reversed(range(12))][::-1]
    assert len(set(seen)) == 6
    assert Walk(20, 4, 0.4, 8, every=2).at(2) != seen[2]


@pytest.mark.parametrize("setting", [{"step": 1.5}, {"step": -0.1}, {"every": 0}, {"radius": 0}, {"K": None}])
def test_errors_of_walks(setting: dict[str, float]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(TopologyError, match=f"{name}={value}"):
        moving(**{"K": 5, "H": 2} | setting)


def test_contacts() -> None:
    first, second = np.array([[1, 1, 0], [0, 1, 1]]), np.array([[0, 1, 0], [0, 1, 0]])
    contacts = Contacts([0, 4], [first, second])
    assert (contacts.K, contacts.H) == (3, 2)
    assert contacts.at(-1) is contacts.at(0) is contacts.at(3)
    assert contacts.at(0) == Topology(first)
    np.testing.assert_array_equal(contacts.at(4).G, second)
    assert contacts.at(4).present == (1,)
    assert contacts.at(4) is contacts.at(10**9)


@pytest.mark.parametrize(
    "text",
    [
        "round,relay,user\n0,0,0\n0,0,1\n0,1,1\n0,1,2\n4,0,1\n4,1,1\n",
        "Round;User;Relay\n4;1;0\n\n0;0;0\n0;1;0\n0;1;1\n0;2;1\n4;1;1\n4;1;1",
        "\ufeffrelay user round\n1 1 0\n1 2 0\n2 2 0\n2 3 0\n1 2 4\n2 2 4",
    ],
)
def test_contacts_from_a_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "contacts.csv"
    path.write_text(text, encoding="utf-8")
    contacts = from_contacts(path)
    assert contacts.starts == (0, 4)
    np.testing.assert_array_equal(contacts.at(3).G, [[1, 1, 0], [0, 1, 1]])
    np.testing.assert_array_equal(contacts.at(4).G, [[0, 1, 0], [0, 1, 0]])
    assert moving(7, 7, path=path).at(4) == contacts.at(4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "round,relay,user"),
        ("round,relay,user\n", "round,relay,user"),
        ("0,1,2\n0,1,2\n", "round,relay,user"),
        ("round,relay,user\n0,1\n", "Line 2"),
        ("round,user,relay\n0,1,1\n\n0,x,2\n", "Line 4"),
        ("round,relay,user\n0,1,12345678\n", "Line 2"),
        ("round,relay,user\n1,0,0\n7,0,0\n", "round 1"),
        ("round,relay,user\n0,0,0\n3,0,2\n", "users 1, 2, counted from 0"),
        ("round,relay,user\n0,1,1\n3,1,2\n", "user 2, counted from 1"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "contacts.csv"
    path.write_text(text)
    with pytest.raises(TopologyError, match=rf"^{path}: .*{message}"):
        from_contacts(path)
