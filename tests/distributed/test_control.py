"""Values beside messages: what processes know of tasks whose rows live in others, and a server that says nothing."""

import io
import os
import pickle
from collections.abc import Callable
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import threads
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.data import Preprocessing, Task, prepare
from hmtl.distributed.connections import Connection, Stream
from hmtl.distributed.control import Control, from_bytes, to_bytes
from hmtl.distributed.exchange import for_report
from hmtl.distributed.frames import CONTROL, MAY_SEND, Frame
from hmtl.distributed.peers import BEFORE, Peers
from hmtl.distributed.placement import Placement, names_of
from hmtl.errors import EngineError
from hmtl.mtl import Mean, Problem, Squared, preprocessing_setups

K, D = 7, 5
NAMES = names_of(4, 1)
HOMES = [range(3), range(3, 5), range(5, K)]


def prepared_tasks() -> tuple[Task, ...]:
    """Tasks of very different sizes, preprocessed together."""
    rng, raw = np.random.default_rng(3), []
    for k in range(K):
        x = rng.normal(2, 3, size=(3 + 4 * k, D))
        y = x @ rng.normal(size=D)
        raw.append(Task(f"user {k}", *map(torch.from_numpy, (x, y, x[: k % 3], y[: k % 3]))))
    return tuple(prepare(raw, Preprocessing(intercept=True, standardize="all", center="task")))


def test_figures_need_no_rows() -> None:
    """Scaling and the targets for R² come from the hosts."""
    tasks = prepared_tasks()
    sent = to_bytes({"tasks": [for_report(task, targets=True) for task in tasks]})
    with_rows, without_rows = (Problem(each, Squared(), Mean(0.1)) for each in (tasks, from_bytes(sent)["tasks"]))
    errors = torch.linspace(0, 1, K, dtype=torch.float64)
    for split in ("train", "test"):
        measured = {f"{split}_error": errors}
        figures = with_rows.figures(split, measured)
        assert f"{split}_r2" in figures
        assert without_rows.figures(split, measured) == figures
    for ours, theirs in zip(without_rows.everybody, with_rows.everybody, strict=True):
        assert (ours.name, ours.scaling.target_mean) == (theirs.name, theirs.scaling.target_mean)
        assert torch.equal(ours.scaling.mean, theirs.scaling.mean)
        assert torch.equal(ours.scaling.scale, theirs.scaling.scale)
        assert not ours.is_local


def test_a_preprocessing_setup_gathers_the_same_facts_from_hosts() -> None:
    tasks = prepared_tasks()
    known = from_bytes(to_bytes({"tasks": [task.without_rows() for task in tasks]}))["tasks"]

    def facts(local: range) -> torch.Tensor:
        ((users, _),) = preprocessing_setups(tuple(task if k in local else known[k] for k, task in enumerate(tasks)))
        return users.local_update(-1)[1]

    whole = facts(range(K))
    assert torch.equal(torch.cat([facts(home) for home in HOMES]), whole)
    assert facts(range(0)).shape == (0, whole.shape[1])


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("exit 1",)


GOOD = bytes(to_bytes({"notices": [], "x": torch.arange(5)}))


def deflated(content: bytes) -> bytes:
    """A small archive with large values."""
    archive = io.BytesIO()
    with ZipFile(io.BytesIO(content)) as plain, ZipFile(archive, "w", ZIP_DEFLATED) as small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    return archive.getvalue()


UNREADABLE = st.one_of(
    st.binary(max_size=99),
    st.integers(0, len(GOOD) - 1).map(lambda end: GOOD[:end]),
    st.just(bytes(to_bytes({"x": Harmful()}))),
    st.just(pickle.dumps({"x": 1}, protocol=2)),
    st.just(deflated(bytes(to_bytes({"x": torch.zeros(10**6)})))),
)


@given(UNREADABLE)
def test_a_node_whose_values_cannot_be_read_is_lost_alone(content: bytes) -> None:
    connections = {name: Connection(name, 1, MAY_SEND["host", "server"]) for name in ("host 0", "host 1")}
    for name, values in zip(connections, (content, GOOD), strict=True):
        connections[name].attach(stream := Stream(connections[name]))
        stream.inbox.put(Frame(CONTROL, BEFORE, torch.tensor([[*values]], dtype=torch.uint8)))
    peers = Peers("server", connections, seconds=10)
    assert list(Control(peers).receive(["host 0", "host 1"])) == ["host 1"]
    assert list(peers.lost) == ["host 0"]
    assert "cannot be read" in peers.lost["host 0"]
    connections["host 0"].attach(again := Stream(connections["host 0"]))
    assert again.ended.is_set()


@pytest.mark.parametrize(
    ("having", "said"),
    [([], ""), (["host 1"], "host 1: wrong"), (["host 0", "host 1"], "host 0, host 1: wrong"), (NAMES, "wrong")],
)
def test_an_error_is_known_to_all_and_says_whose_it_is(having: list[str], said: str) -> None:
    def node(placement: Placement, peers: Peers) -> str:
        return Control(peers).agree("wrong" if placement.name in having else "")

    placements = [Placement(rank, len(NAMES), 2, len(NAMES) - 3) for rank in range(len(NAMES))]
    assert threads.play(placements, node) == dict.fromkeys(NAMES, said)


def test_a_server_that_stays_silent_is_lost() -> None:
    silent = Connection("server", 0, MAY_SEND["server", "host"])
    silent.attach(Stream(silent))
    with pytest.raises(EngineError, match="the server is lost"):
        Control(Peers("host 0", {"server": silent}, seconds=0.01)).receive_from_leader()
