"""Networks that were written come back; whatever is no network is refused with file, line and what to do."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.errors import TopologyError
from hmtl.topology import Topology, any_r, from_file

FIG2 = Path(__file__).parents[2] / "experiments" / "network" / "fig2.csv"


def write(folder, text, name="network.csv"):
    path = Path(folder) / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@st.composite
def topologies(draw):
    H, K = draw(st.integers(2, 6)), draw(st.integers(1, 12))
    columns = draw(st.lists(st.integers(1, 2**H - 1), min_size=K, max_size=K))
    return Topology([[column >> i & 1 for column in columns] for i in range(H)])


@given(topologies(), st.sampled_from([",", ";", " ", "\t", ", ", " ; "]), st.sampled_from(["\n", "\r\n", "\n\n"]))
@settings(deadline=None)
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


@given(topologies(), st.randoms(), st.integers(0, 1), st.sampled_from(["", "relay,user", "User; Relay"]))
@settings(deadline=None)
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


def test_large_file(tmp_path):
    t = any_r(20_000, 10, 3)
    np.savetxt(tmp_path / "large.csv", t.G, fmt="%d", delimiter=",")
    assert from_file(tmp_path / "large.csv") == t


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty.*Write"),
        (" \n\n", "empty"),
        ("relay,user\n", "empty"),
        ("1,0,1\n0,1,1\n\n1,1\n", "Line 4 .* line 1: 2 entries, not 3"),
        ("1,0,1\n0,1,2\n", "Line 2, entry 3 is '2'"),
        ("1,0,1\n\n0,nan,1\n", "Line 3, entry 2 is 'nan'"),
        ("1,0,1\n0,,1\n", "Line 2, entry 2 is ''"),
        ("who,hears,whom\n1,0,1\n", "Line 1, entry 1 is 'who'"),
        ("1 0 1\n", "No relay hears user 1"),
        ("1 0 1\n0 0 1", "No relay hears user 1, counted from 0"),
        ("0,0\n1,1\n1,x\n0,5\n", "Line 3 is '1 x'"),
        ("0,0\n1,-1\n0,5\n", "Line 2 is '1 -1'"),
        ("0,0\n1,1.5\n0,5\n", "Line 2 is '1 1.5'"),
        ("0,0\n1,99999999\n", "Line 2 .* at most 7 digits"),
        ("0,0\n1,3\n", "No relay hears users 1, 2, counted from 0 as in the file"),
        ("1,1\n2,3\n", "No relay hears user 2, counted from 1 as in the file"),
        ("user,relay\n0,0\n2,1\n", "No relay hears user 1,"),
        ("relay,user\n0,0\n1,1,1\n", "Line 3 .* line 2: 3 entries, not 2"),
        (b"\xff\xfe1\x00,\x000\x00", "not UTF-8"),
    ],
)
def test_errors_of_text(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(TopologyError, match=f"(?s)network.csv: .*{message}"):
        from_file(path)


def test_errors_of_links_by_extension(tmp_path):
    with pytest.raises(TopologyError, match="Line 1 is '1 0 1', but a link is two"):
        from_file(write(tmp_path, "1,0,1\n0,1,1", "network.edges"))


def test_errors_of_npz(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.eye(2), b=np.eye(2))
    np.savez(tmp_path / "none.npz")
    np.savez(tmp_path / "pickled.npz", G=np.array([[1, None]], dtype=object))
    np.savez(tmp_path / "bad.npz", G=np.array([[1, 2], [0, 1]]))
    np.savez_compressed(tmp_path / "cut.npz", G=np.eye(50))
    whole = (tmp_path / "cut.npz").read_bytes()
    write(tmp_path, whole[: len(whole) // 2], "cut.npz")
    write(tmp_path, whole[:60] + bytes(40) + whole[100:], "damaged.npz")
    write(tmp_path, "1,0\n0,1", "text.npz")
    write(tmp_path, "", "empty.npz")
    with (tmp_path / "npy.npz").open("wb") as file:
        np.save(file, np.eye(2))
    for name, message in [
        ("two", "holds a, b,.*Save it by"),
        ("none", "no array"),
        ("pickled", "Python objects"),
        ("bad", r"G\[0, 1\] is 2"),
        ("cut", "damaged"),
        ("damaged", "damaged"),
        ("text", "damaged"),
        ("empty", "damaged"),
        ("npy", "no npz file"),
    ]:
        with pytest.raises(TopologyError, match=f"{name}.npz: .*{message}"):
            from_file(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("name", ["missing.csv", "missing.npz", "missing.edges", "."])
def test_errors_of_paths(tmp_path, name):
    with pytest.raises(TopologyError, match=r"cannot be read: .*Check the path"):
        from_file(tmp_path / name)
