import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.distributed.frames import DTYPES, HEADER, KINDS, MAGIC, Frame, Header
from hmtl.errors import CodingError


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    rows, L, e = draw(st.integers(0, 5)), draw(st.integers(0, 9)), draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    bytes_ = [torch.from_numpy(rng.integers(0, 256, (rows, n), np.uint8)) for n in (L, e)]
    users = draw(st.sampled_from((None, np.sort(rng.choice(100_000, rows, replace=False)))))
    kind, dtype = draw(st.sampled_from(KINDS)), draw(st.sampled_from(DTYPES))
    return Frame(kind, draw(st.integers(-1, 10**6)), *bytes_, users, dtype, draw(st.booleans()), draw(st.booleans()))


@given(frames(), st.integers(0, 60_000), st.integers(0, 60_000), st.integers(0, 2**32 - 1))
def test_what_arrives_is_what_was_sent(frame: Frame, sender: int, receiver: int, sequence: int) -> None:
    header, body = frame.to_bytes(sender, receiver, sequence)
    content = header.to_bytes()
    assert len(content) == HEADER
    read = Header.from_bytes(content)
    assert read == header
    assert (read.sender, read.receiver, read.sequence, read.body) == (sender, receiver, sequence, len(body))
    again = Frame.from_bytes(read, body)
    assert torch.equal(again.payload, frame.payload)
    assert torch.equal(again.overhead, frame.overhead)
    assert (again.users is None) == (frame.users is None)
    assert again.users is None or again.users.tolist() == frame.users.tolist()
    same = ("kind", "round", "dtype", "last", "empty")
    assert [getattr(again, name) for name in same] == [getattr(frame, name) for name in same]


@given(frames(), st.data())
def test_one_flipped_bit_is_found_wherever_it_is(frame: Frame, data: st.DataObject) -> None:
    header, body = frame.to_bytes(0, 1, 2)
    content = torch.frombuffer(bytearray(header.to_bytes()), dtype=torch.uint8)
    whole = torch.cat([content, body])
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    if bit // 8 < HEADER:
        with pytest.raises(CodingError, match="damaged"):
            Header.from_bytes(whole[:HEADER].numpy().tobytes())
    else:
        assert Frame.from_bytes(header, whole[HEADER:]).damaged


def test_a_header_of_another_version_is_refused() -> None:
    header, _ = Frame(KINDS[2], 3).to_bytes(0, 1, 2)
    content = header.to_bytes().replace(MAGIC, b"hmt0")[:-4]
    with pytest.raises(CodingError, match="version"):
        Header.from_bytes(content + zlib.crc32(content).to_bytes(4, "little"))
