"""Values beside messages: tasks and tensors, of which nothing is executed, and no rows that stay with their host."""

import io
import os
import pickle
from collections.abc import Callable
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmtl.communication.messages import nothing
from hmtl.data import Preprocessing, Task, prepare
from hmtl.distributed.cell import for_report
from hmtl.distributed.frames import CONTROL, Frame
from hmtl.distributed.values import as_frame, from_bytes, of_frame, to_bytes
from hmtl.errors import CodingError
from hmtl.mtl import Mean, Problem, Squared, preprocessing_setups

K, D = 7, 5
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


GOOD = bytes(to_bytes({"answer": {"x": torch.arange(5)}}))


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
    st.just(b""),
)


@given(UNREADABLE)
def test_values_that_cannot_be_read_are_refused(content: bytes) -> None:
    frame = Frame(CONTROL, 0, torch.tensor([[*content]], dtype=torch.uint8), nothing(1))
    with pytest.raises(CodingError, match="cannot be read"):
        of_frame(frame)


def test_values_arrive_as_they_were_sent() -> None:
    frame = as_frame({"answer": [1, "two", None, torch.tensor([True])]}, 7)
    assert (frame.kind, frame.number) == (CONTROL, 7)
    *plain, tensor = of_frame(frame)["answer"]
    assert plain == [1, "two", None]
    assert tensor.tolist() == [True]
