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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 1.5}, "step=1.5 is no way within the square. Take one from 0 to 1"),
        ({"step": -0.1}, "step=-0.1"),
        ({"every": 0}, "every=0 is no number of rounds between changes. Take a whole number from 1"),
        ({"radius": 0}, "radius=0"),
        ({"K": None}, "K=None is no number of users"),
    ],
)
def test_walks_that_cannot_be(settings: dict[str, float], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        moving(**{"K": 5, "H": 2} | settings)


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
    ("starts", "tables", "message"),
    [
        ([1], [np.ones((2, 3))], r"starts=\(1,\) for 1 tables: contacts begin in round 0"),
        ([0, 5, 5], [np.ones((2, 3))] * 3, "ascending. Give a start for each table"),
        ([0, 5], [np.ones((2, 3))], "for 1 tables"),
        ([], [], "for 0 tables"),
        ([0], [np.eye(3)[:2]], "No relay hears user 2, counted from 0"),
        ([0, 1], [np.ones((2, 3)), np.ones((3, 2))], r"shape \(3, 2\)"),
    ],
)
def test_contacts_that_cannot_be(starts: list[int], tables: list[np.ndarray], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        Contacts(starts, tables)


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
        ("", "has no contacts below a first line round,relay,user. Write this line"),
        ("round,relay,user\n", "has no contacts"),
        ("0,1,2\n0,1,2\n", "has no contacts below a first line"),
        ("round,relay,relay\n0,1,2\n", "has no contacts below a first line"),
        ("round,relay,user\n0,1\n", "Line 2 is '0 1', but a contact is three whole numbers"),
        ("round,user,relay\n0,1,1\n\n0,x,2\n", "Line 4 is '0 x 2', .*, round, user, relay. Write one contact a line"),
        ("round,relay,user\n0,-1,2\n", "Line 2 is '0 -1 2'"),
        ("round,relay,user\n0,1,12345678\n", "at most 7 digits"),
        ("round,relay,user\n1,0,0\n7,0,0\n", "first contacts are of round 1, .* write down those of round 0"),
        ("round,relay,user\n0,0,0\n3,0,2\n", "No relay hears users 1, 2, counted from 0 as in the file, in round 0"),
        ("round,relay,user\n0,0,0\n3,99999,99999\n", "No relay hears users 1, 2, .* more, counted from 0"),
        ("round,relay,user\n0,1,1\n3,1,2\n", "No relay hears user 2, counted from 1 as in the file, in round 0"),
    ],
)
def test_files_that_hold_no_contacts(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "contacts.csv"
    path.write_text(text)
    with pytest.raises(TopologyError, match=rf"^{path}: .*{message}") as told:
        from_contacts(path)
    assert "\n" not in str(told.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"none.csv cannot be read: No such file"):
        from_contacts(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match=r"bytes.csv: It is not UTF-8"):
        from_contacts(tmp_path / "bytes.csv")
