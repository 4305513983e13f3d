"""Written networks are read back; other content is refused, and the error names file and line."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmtl.errors import TopologyError
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, from_file

FIG2 = Path(__file__).parents[2] / "experiments" / "network" / "fig2.csv"


def write(folder, text, name="network.csv"):
    path = Path(folder) / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@given(
    topologies(max_H=6, max_K=12),
    st.sampled_from([",", ";", " ", "\t", ", ", " ; "]),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_matrix_round_trip(t, comma, newline):
    with tempfile.TemporaryDirectory() as folder:
        assert from_file(write(folder, newline.join(comma.join(map(str, row)) for row in t.G))) == t
        np.savetxt(Path(folder) / "numpy.txt", t.G)  # as 1.000000000000000000e+00
        assert from_file(str(Path(folder) / "numpy.txt")) == t
        np.savez(Path(folder) / "named.npz", other=np.zeros(3), G=t.G)
        np.savez(Path(folder) / "only.npz", t.G.astype(float))
        np.savez_compressed(Path(folder) / "UPPER.NPZ", t.G.astype(bool))
        Path(folder, "UPPER.NPZ.npz").rename(Path(folder, "UPPER.NPZ"))
        assert from_file(Path(folder) / "named.npz") == from_file(Path(folder) / "only.npz") == t
        assert from_file(Path(folder) / "UPPER.NPZ") == t


@given(
    topologies(max_H=6, max_K=12), st.randoms(), st.integers(0, 1), st.sampled_from(["", "relay,user", "User; Relay"])
)
def test_links_round_trip(t, random, start, header):
    if not t.G[-1].any() or (start and not t.G[0].any()):
        return  # the numbers of links do not tell of a last relay that hears nobody, nor, from 1, of a first
    links = [(i + start, k + start) for i in range(t.H) for k in t.N(i)]
    random.shuffle(links)
    lines = [f"{k},{i}" if header.startswith("User") else f"{i},{k}" for i, k in links]
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join([header, *lines])
        assert from_file(write(folder, text, "network.edges")) == t
        assert from_file(write(folder, text.replace(",", " "), "network.edgelist")) == t
        if header or max(map(max, links)) > 1:
            assert from_file(write(folder, text)) == t
            assert from_file(write(folder, b"\xef\xbb\xbf" + text.encode())) == t


def test_two_columns_without_a_number_above_1_are_a_matrix(tmp_path):
    assert from_file(write(tmp_path, "0,1\n1,0\n1,1")) == Topology([[0, 1], [1, 0], [1, 1]])
    assert from_file(write(tmp_path, "0,1\n1,0\n1,1", "a.edges")) == Topology([[0, 1], [1, 1]])
    assert from_file(write(tmp_path, "relay,user\n0,1\n1,0\n1,1")) == Topology([[0, 1], [1, 1]])


def test_repeated_links_count_once_and_relays_may_hear_nobody(tmp_path):
    t = from_file(write(tmp_path, "0,0\n0,0\n3,1\n"))
    assert t == Topology([[1, 0], [0, 0], [0, 0], [0, 1]])
    assert t.active == (0, 3)


def test_figure_2_of_the_paper():
    t = from_file(FIG2)
    rows = [{1, 3, 5, 6, 8, 9, 10}, {1, 2, 3, 4, 10}, {2, 4, 5}, {6, 7, 9, 10}, {1, 2, 6, 7, 8}]
    assert [{k + 1 for k in t.N(i)} for i in range(5)] == rows
    assert (t.K, t.H) == (10, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("relay,user\n", "empty"),
        ("1,0,1\n0,1,1\n\n1,1\n", "Line 4 .* line 1"),
        ("1,0,1\n0,1,2\n", "Line 2, entry 3 is '2'"),
        ("1,0,1\n\n0,nan,1\n", "Line 3, entry 2 is 'nan'"),
        ("1,0,1\n0,,1\n", "Line 2, entry 2 is ''"),
        ("1 0 1\n0 0 1", "user 1, counted from 0"),
        ("0,0\n1,1\n1,x\n0,5\n", "Line 3 is '1 x'"),
        ("0,0\n1,-1\n0,5\n", "Line 2 is '1 -1'"),
        ("0,0\n1,99999999\n", "Line 2"),
        ("0,0\n1,3\n", "users 1, 2, counted from 0"),
        ("1,1\n2,3\n", "user 2, counted from 1"),
        (b"\xff\xfe1\x00,\x000\x00", "UTF-8"),
    ],
)
def test_errors_of_text(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(TopologyError, match=f"network.csv: .*{message}"):
        from_file(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.eye(2), "b": np.eye(2)}, "array named G"),
        ({}, "array named G"),
        ({"G": np.array([[1, None]], dtype=object)}, ""),
        ({"G": np.array([[1, 2], [0, 1]])}, r"G\[0, 1\] is 2"),
    ],
)
def test_errors_of_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "network.npz", **arrays)
    with pytest.raises(TopologyError, match=f"network.npz: .*{message}"):
        from_file(tmp_path / "network.npz")


def test_text_is_not_npz(tmp_path):
    with pytest.raises(TopologyError, match=r"text.npz: "):
        from_file(write(tmp_path, "1,0\n0,1", "text.npz"))


@pytest.mark.parametrize("name", ["missing.csv", "missing.npz", "."])
def test_errors_of_paths(tmp_path, name):
    with pytest.raises(TopologyError, match="cannot be read"):
        from_file(tmp_path / name)


def names(count):
    letters = st.text("abcXYZ_é -", min_size=1, max_size=8).map(str.strip)
    kept = letters.filter(lambda name: name and name.lower() not in ("nan", "relay", "user"))
    return st.lists(kept, min_size=count, max_size=count, unique=True)


@given(topologies(max_H=5, max_K=8), st.data())
def test_names_round_trip(t, data):
    """Matrices either way round, links and npz, with names at one side or both."""
    if min(t.H, t.K) == 1:
        return  # a line of one name may have spaces in it
    relays, users = (tuple(data.draw(names(count))) for count in (t.H, t.K))
    table = [[relay, *map(str, row)] for relay, row in zip(relays, t.G, strict=True)]
    columns = [[user, *map(str, column)] for user, column in zip(users, t.G.T, strict=True)]
    with tempfile.TemporaryDirectory() as folder:

        def read(rows):
            return from_file(write(folder, "\n".join(",".join(row) for row in rows)))

        def same(found, *given):
            return found == t and (found.names.relays, found.names.users) == given

        for corner in (["relay"], ["Relays"], [""], ["site"], []):
            assert same(read([[*corner, *users], *table]), relays, users)
        assert same(read([["user", *relays], *columns]), relays, users)
        assert same(read(table), relays, ())
        assert same(read([users, *t.G.astype(str)]), (), users)
        np.savez(Path(folder) / "named.npz", G=t.G, relays=np.array(relays), users=list(users))
        assert same(from_file(Path(folder) / "named.npz"), relays, users)
        links = [(i, k) for k in range(t.K) for i in t.relays_of(k)]
        found = read([["user", "relay"], *([users[k], relays[i]] for i, k in links)])
        assert found.names.users == users
        at = [found.names.relays.index(relays[i]) for i in t.active]
        assert np.array_equal(found.G[at], t.G[list(t.active)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("relay,a,a\nx,1,1\n", "'a' of a user"),
        ("relay,a,b\nx,1,1\nx,1,1\n", "'x' of a relay"),
        ("relay,a,b\nx,1,0\ny,1,0\n", "user b\\."),
        ("relay,a,b\nx,1,0\ny,1\n", "Line 3"),
        ("relay,a,b\n", "Line 1"),
        ("relay,user\nx,a\n1,b\n", "whole numbers"),
    ],
)
def test_errors_of_names(tmp_path, text, message):
    with pytest.raises(TopologyError, match=message):
        from_file(write(tmp_path, text))
