from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication.codecs.formats import FORMATS
from hmtl.distributed.frames import DTYPES, HEADER, KINDS, MAGIC, Frame, Header
from hmtl.errors import CodingError


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    rows, L, e = draw(st.integers(0, 5)), draw(st.integers(0, 9)), draw(st.integers(0, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    bytes_ = [torch.from_numpy(rng.integers(0, 256, (rows, n), np.uint8)) for n in (L, e)]
    users = draw(st.sampled_from((None, np.sort(rng.choice(100_000, rows, replace=False)))))
    kind, dtype = draw(st.sampled_from(KINDS)), draw(st.sampled_from(DTYPES))
    row_format = draw(st.sampled_from(FORMATS))
    return Frame(kind, draw(st.integers(-1, 10**6)), *bytes_, users, dtype, row_format, draw(st.integers(0, 2**32 - 1)))


@given(frames())
def test_what_arrives_is_what_was_sent(frame: Frame) -> None:
    header, body = frame.header(), frame.body
    content = header.to_bytes()
    assert len(content) == HEADER
    read = Header.from_bytes(content)
    assert read == header
    assert read.body == len(body)
    again = Frame.from_bytes(read, body)
    assert torch.equal(again.payload, frame.payload)
    assert torch.equal(again.overhead, frame.overhead)
    assert (again.users is None) == (frame.users is None)
    assert again.users is None or again.users.tolist() == frame.users.tolist()
    same = ("kind", "round", "dtype", "number", "format")
    assert [getattr(again, name) for name in same] == [getattr(frame, name) for name in same]


@given(st.binary(max_size=2 * HEADER))
def test_random_bytes_are_no_header(content: bytes) -> None:
    with pytest.raises(CodingError):
        Header.from_bytes(content)


def test_a_header_of_another_version_is_refused() -> None:
    content = Frame(KINDS[2], 3).header().to_bytes()
    with pytest.raises(CodingError, match="version"):
        Header.from_bytes(content.replace(MAGIC, b"hmt1"))


def test_a_header_of_an_unknown_format_is_refused() -> None:
    header = replace(Frame(KINDS[2], 3).header(), format=len(FORMATS))
    with pytest.raises(CodingError, match="unknown"):
        Header.from_bytes(header.to_bytes())
