"""Sums that no users can have: the round counts nobody, and the run goes on. Aggregators are those of learners."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from apart import Apart
from test_lossy import GRID, SETTINGS, M, Sending, dual_aggregator

from hmtl.communication import SumsOfRows
from hmtl.communication.messages import IVS, SERVER, UNMASK, Message
from hmtl.communication.secure.neighbors import Secure
from hmtl.errors import RangeError
from hmtl.mtl.algorithms.averages import Average, AverageAggregator, Weights
from hmtl.mtl.algorithms.coupled_steps import StepsBySums, SummedCoupler
from hmtl.mtl.algorithms.mocha_aggregator import SummedDualAggregator
from hmtl.mtl.learners.base import Section
from hmtl.mtl.learners.fedavg import FedAvg
from hmtl.mtl.regularizers import Mean
from hmtl.mtl.solvers.sgd import LocalSGD
from hmtl.topology import Topology
from hmtl.training.sums_of_figures import FigureAggregator


class Signs(FedAvg):
    """A server that takes steps of one length, however large the sum is."""

    def server(self, state: Any, mean: Any) -> dict[str, torch.Tensor]:
        return {"w": mean.w.sign() / 8}


T = Topology([[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
K = T.K


def averages(learner: Any) -> Callable[[], AverageAggregator]:
    average = Average({"w": Section(torch.zeros(M, dtype=torch.float32))}, GRID)
    weights = torch.arange(1.0, K + 1, dtype=torch.float64)[:, None]
    return lambda: AverageAggregator(average, learner, Weights(weights, float(weights.sum())), None)


def couplers() -> SummedCoupler:
    coupling = Mean(0.1, 0.01)
    steps = StepsBySums(coupling.coupling(coupling.start(K, M)), GRID)
    return SummedCoupler(torch.zeros(K, M, dtype=torch.float64), steps, LocalSGD(0.1))


MAKE: dict[str, Callable[[], Any]] = {
    "fedavg": averages(FedAvg()),
    "signs": averages(Signs()),
    "mocha": lambda: SummedDualAggregator(dual_aggregator(K).coupling, M, SETTINGS, GRID, K),
    "fedu": couplers,
    "figures": lambda: FigureAggregator(M),
}


def garbled(rows: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, rows.shape, np.uint8))


@pytest.mark.parametrize(
    ("learner", "wire", "averaged", "of"),
    [
        ("fedavg", None, False, "host 0"),
        ("fedavg", None, True, "relay 0"),
        ("fedavg", "int4", False, "host 0"),
        ("signs", None, False, "host 0"),
        ("mocha", None, False, "relay 0"),
        ("mocha", "int4", False, "relay 0"),
        ("fedu", None, False, "host 0"),
        ("fedu", "int2", False, "relay 0"),
        ("figures", None, False, "host 0"),
    ],
)
def test_a_sum_out_of_range_counts_nobody_and_ends_no_run(
    learner: str, wire: str | None, averaged: bool, of: str, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(5)
    values = GRID.rounded(torch.from_numpy(rng.normal(size=(5, K, M)) / K))
    side = Sending([*values], [set()] * 5, 0, changes=True)
    side.common = torch.float32 if averaged else None
    apart = Apart(T, [side], SumsOfRows(wire=wire, sums="whole"), make=MAKE[learner])

    def change(node: str, message: Message) -> Message:
        if message.kind != IVS or message.sender != of:
            return message
        payload = message.payload.clone()
        payload[-1:] = garbled(payload[-1:])
        return replace(message, payload=payload)

    for round in range(2):
        apart.play(round)
    before = {name: each.clone() for name, each in apart.total.state_dict().items()}
    apart.play(2, change=change)
    assert apart.server.empty
    assert {(2, k) for k in range(K)} <= set(side.dropped)
    (record,) = caplog.records
    assert "round 2 counts nobody" in record.getMessage()
    if learner in ("fedavg", "mocha"):
        assert all(torch.equal(each, before[name]) for name, each in apart.total.state_dict().items())
    apart.play(3)
    assert not apart.server.empty
    assert {(3, k) for k in range(K)} <= set(side.committed)
    if learner == "figures":
        assert apart.total.total.tolist() == values[3].sum(0).tolist()


@pytest.mark.parametrize("wire", [None, "int4"])
def test_a_sum_that_is_unmasked_wrongly_counts_nobody(wire: str | None, caplog: pytest.LogCaptureFixture) -> None:
    values = GRID.rounded(torch.from_numpy(np.random.default_rng(5).normal(size=(5, K, M)) / K))
    side = Sending([*values], [set()] * 5, 0, changes=True)
    apart, answers = Apart(T, [side], SumsOfRows(wire=wire, secure=Secure(0.15)), make=MAKE["mocha"]), list[Message]()

    def change(node: str, message: Message) -> Message:
        if message.kind == UNMASK and node == SERVER:
            answers.append(message)
            if message.overhead.shape[1] > 20:  # parts of seeds, not bits
                return replace(message, overhead=garbled(message.overhead))
        return message

    for round in range(2):
        apart.play(round)
    apart.play(2, change=change)
    assert answers
    assert apart.server.empty
    assert {(2, k) for k in range(K)} <= set(side.dropped)
    assert len(caplog.records) == 1
    apart.play(3)
    assert {(3, k) for k in range(K)} <= set(side.committed)


def test_numbers_that_do_not_fit_end_the_run_of_who_encodes_them() -> None:
    side = Sending([torch.full((K, M), 2**62)], [set()], 0, changes=True)
    with pytest.raises(RangeError, match="Lower fraction_bits"):
        Apart(T, [side], SumsOfRows(wire="int4", aggregators="server"), make=MAKE["mocha"]).play(0)
