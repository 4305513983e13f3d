"""Reports and attendance as bytes, who aggregates, and by whom models come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication.accounting.network import Network
from hmtl.communication.attendance import ATTEMPT_BYTES, Attempt, Attendance, Report, decide, untagged
from hmtl.communication.codecs.formats import FORMATS
from hmtl.communication.flows.planner import Planner
from hmtl.errors import CodingError
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology


@st.composite
def reports(draw: st.DrawFn) -> tuple[Topology, dict[int, Report], int]:
    """A network, reports of some of its relays, and the number of rounds so far."""
    t, version = draw(topologies()), draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gone = draw(st.sampled_from((0.0, 0.4, 1.0)))
    made, row_format = {}, draw(st.sampled_from(FORMATS))
    for i in range(t.H):
        if rng.random() >= gone:
            heard = np.array([k for k in t.N(i) if rng.random() >= gone], dtype=np.int64)
            further, requested = int(rng.integers(0, 99)), bool(rng.integers(2))
            held, prepared = int(rng.integers(0, version + 1)), int(rng.integers(0, version + 2))
            made[i] = Report(heard, held, 6272, further, requested, row_format, prepared)
    return t, made, version


@given(reports())
def test_reports_as_bytes(case: tuple[Topology, dict[int, Report], int]) -> None:
    t, made, _ = case
    for i, report in made.items():
        content = report.to_bytes(t, i)
        assert len(content) == Report.nbytes(t, i)
        again = Report.from_bytes(content, t, i)
        np.testing.assert_array_equal(again.heard, report.heard)
        assert (again.version, again.payload, again.overhead) == (report.version, report.payload, report.overhead)
        assert (again.requested, again.format, again.prepared) == (report.requested, report.format, report.prepared)


@given(reports(), st.sets(st.integers(0, 7)), st.booleans())
def test_all_nodes_read_what_the_server_decided(
    case: tuple[Topology, dict[int, Report], int], home: set[int], server: bool
) -> None:
    t, made, version = case
    decided = decide(t, made, version, home, server)
    content = decided.to_bytes()
    assert len(content) == Attendance.nbytes(t)
    read = Attendance.from_bytes(content.tobytes(), t)
    for found in (decided, read):
        assert found.heard.G.tolist() == [
            [int(i in made and k in made[i].heard) for k in range(t.K)] for i in range(t.H)
        ]
        assert np.flatnonzero(found.reporting).tolist() == sorted(made)
        current = [i for i in sorted(made) if version in (made[i].version, made[i].prepared)]
        hearing = [i for i in sorted(made) if len(made[i].heard)]
        aggregating = ([i for i in hearing if i in home] or hearing or current) if home and current else []
        if server:
            aggregating = [i for i in hearing if i in home]
        assert list(found.aggregators) == aggregating
        behind = [i for i in aggregating if i not in current]
        assert np.flatnonzero(found.behind).tolist() == behind
        assert found.source == (current[0] if behind and not server else -1)
        assert found.requested == any(report.requested for report in made.values())
        assert not hearing or found.format == made[hearing[0]].format


@given(reports(), st.sets(st.integers(0, 7)))
def test_each_model_comes_by_an_aggregator_where_one_hears_the_user(
    case: tuple[Topology, dict[int, Report], int], home: set[int]
) -> None:
    t, made, version = case
    decided = decide(t, made, version, home)
    serving, by_way = Planner(t, Network(), tuple(home)).routes(decided)
    for k in range(t.K):
        there = set(t.relays_of(k)) & set(made)
        near = there & set(decided.aggregators)
        assert (serving[k] in (near or there)) if there else serving[k] == -1
        assert by_way[k] == bool(there and not near)


@given(
    st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.binary(min_size=4, max_size=4)
)
def test_attempts_as_bytes(number: int, agreed: int, since: int, digest: bytes) -> None:
    attempt = Attempt(number, agreed, since, digest)
    assert len(attempt.to_bytes()) == ATTEMPT_BYTES
    assert Attempt.from_bytes(attempt.to_bytes()) == attempt


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(CodingError, match=str(len(FORMATS))):
        untagged(len(FORMATS) << 1)
