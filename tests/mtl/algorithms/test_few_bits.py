"""Learners whose IVs and models travel in few bits, over links that lose messages."""

from functools import partial

import numpy as np
import pytest
import torch
from adding import left_over
from changed import Change, Changed, losing
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from learners import LEARNERS
from problems import make
from torch import nn

from hmtl.communication import CodedHierarchical, Communicator, LinkLedger, Sums, Uncoded
from hmtl.communication.codecs.few_bit_blocks import Blocks, QuantizedUserCoder
from hmtl.errors import RangeError
from hmtl.mtl import (
    MOCHA,
    SDCA,
    CoCoA,
    Hinge,
    LocalSGD,
    Logistic,
    Mean,
    NetworkAlgorithm,
    Participation,
    Ridge,
    SmoothHinge,
    Squared,
    TaskRelationship,
)
from hmtl.testing import topologies
from hmtl.topology import Topology, symmetric

slow = partial(pytest.param, marks=pytest.mark.slow)  # of paths that other cases walk, too
WIRES = ("int8", "int4", "int3", "int2")


def over(t: Topology, wire: str, change: Change, coded: bool) -> Communicator:
    """Return a communicator whose links apply `change`."""

    def links(ledger: LinkLedger) -> Changed:
        made = Changed(ledger)
        made.change = change
        return made

    return CodedHierarchical(t, wire=wire, links=links) if coded else Uncoded(t, wire=wire, links=links)


@given(
    t=topologies(max_H=5, max_K=7),
    wire=st.sampled_from(WIRES),
    loss=st.sampled_from((Hinge, SmoothHinge, Logistic, Squared)),
    regularizer=st.sampled_from((TaskRelationship, Mean, Ridge, "cocoa", "averaging")),
    omega_every=st.sampled_from((0, 3)),
    gone=st.sampled_from((0.0, 0.1, 0.4)),
    lost=st.sampled_from((0.0, 0.1, 0.4)),
    coded=st.booleans(),
    seed=st.integers(0, 10**6),
)
@pytest.mark.slow
def test_what_rounding_leaves_out_is_known(t, wire, loss, regularizer, omega_every, gone, lost, coded, seed) -> None:
    cocoa = isinstance(regularizer, str)
    case = make(seed, K=t.K, d=70, loss=loss(), regularizer=None if cocoa else regularizer(0.1))
    how = {"seed": seed, "participation": Participation(low=0.3, dropout=gone, relays=gone)}
    if cocoa:
        learner = CoCoA(case.problem, SDCA(), 0.1, adding=regularizer == "cocoa", **how)
    else:
        learner = MOCHA(case.problem, SDCA(), omega_every=omega_every, **how)
    communicator = over(t, wire, losing(lost, seed), coded)
    for round in range(8):
        away = learner.participation.absent_relays(seed, round, t.H)
        communicator.round(round, learner.users, learner.aggregator, away)
        host = communicator.nodes.hosts[0]
        settled = ~(host.pending | host.waiting)  # others may not know that Ω, and with it V, has changed
        V = np.stack([s * a @ x for s, a, x in zip(case.s, case.by_user(learner.a), case.X, strict=True)])
        by_sums = learner.aggregator.meaning
        known = (by_sums.sent if by_sums else learner.aggregator.V) - learner.users.settings.gamma * host.coder.held
        np.testing.assert_allclose(known.numpy()[settled], V[settled], rtol=0, atol=1e-12)


@examples(15)
@given(
    t=topologies(max_H=4, max_K=7),
    wire=st.sampled_from(WIRES),
    loss=st.sampled_from((Hinge, SmoothHinge, Logistic, Squared)),
    kind=st.sampled_from((Mean, "cocoa", "averaging")),
    gone=st.sampled_from((0.0, 0.1, 0.4)),
    lost=st.sampled_from((0.0, 0.1, 0.4)),
    seed=st.integers(0, 10**6),
)
def test_what_rounding_leaves_out_of_sums_is_known(t, wire, loss, kind, gone, lost, seed) -> None:
    """Once every user knows which of its updates counted, S and all leftovers add up to the terms of the duals."""
    cocoa = isinstance(kind, str)
    case = make(seed, K=t.K, d=70, loss=loss(), regularizer=None if cocoa else kind(0.1))
    how = {"seed": seed, "participation": Participation(low=0.3, dropout=gone, relays=gone)}
    if cocoa:
        learner = CoCoA(case.problem, SDCA(), 0.1, adding=kind == "cocoa", **how)
    else:
        learner = MOCHA(case.problem, SDCA(), **how)

    def links(ledger: LinkLedger) -> Changed:
        made = Changed(ledger)
        made.change = losing(lost, seed)
        return made

    communicator = Sums(t, wire=wire, links=links)
    for round in range(8):
        away = learner.participation.absent_relays(seed, round, t.H) if round < 6 else ()
        communicator._links.change = losing(lost, seed) if round < 6 else Changed.change
        communicator.round(round, learner.users, learner.aggregator, away)
    B, grid = learner.aggregator.coupling.B, case.problem.grid
    V = np.stack([s * a @ x for s, a, x in zip(case.s, case.by_user(learner.a), case.X, strict=True)])
    np.testing.assert_allclose(learner.users.meaning.sent.numpy(), V, rtol=0, atol=1e-12)
    known = learner.aggregator.S[0] + left_over(communicator.nodes.hosts[0].coder).sum(0)
    assert torch.equal(known, grid.rounded(B.terms(learner.users.meaning.sent)).sum(0))


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_ivs_contain_what_was_left_out_and_all_that_follows_is_of_what_was_sent(gamma: float) -> None:
    """Δv + e is wanted, and what this rounding leaves over is owed once the IV counts."""
    case, rng = make(3, K=4, d=6, regularizer=Mean(0.1)), np.random.default_rng(3)
    users = MOCHA(case.problem, SDCA(), accelerated=gamma == 1, gamma=gamma).users
    coder, own = QuantizedUserCoder(users.row_layout, Blocks(4), np.arange(4)), 8 * (gamma == 1)
    error, step = (torch.from_numpy(rng.normal(size=(4, 6))) for _ in range(2))
    coder.held, users.step, users.beta = -error, step, torch.full((4,), 0.3, dtype=torch.float64)
    ids, rows = users.local_update(0)
    wanted = users.dV + error
    payload, further = coder.encode(ids, rows[:], 0, rows.further(slice(None)))
    sent = torch.empty(4, 6, dtype=torch.float64)
    Blocks(4).decode(payload, sent)
    assert 0 < (sent - wanted).abs().max() < 0.2 * wanted.abs().max()
    assert further.shape == (4, own)
    if gamma == 1:
        r = users.curvature * (0.3 * (step * sent).sum(1) - sent.square().sum(1))
        torch.testing.assert_close(further.view(torch.float64)[:, 0], r)
    assert torch.equal(users.dV, sent)
    assert torch.equal(coder.held, -error)
    coder.commit(ids)
    torch.testing.assert_close(coder.held, sent - wanted)


@pytest.mark.parametrize(("wire", "largest"), [slow("int8", 1e-10), slow("int4", 1e-8), ("int3", 1e-5)])
def test_the_gap_closes_in_few_bits(wire: str, largest: float) -> None:
    """Without feedback of rounding errors, it would stay at their size."""
    learner = MOCHA(make(1, K=6, d=70, n_max=30, regularizer=Mean(0.1)).problem, SDCA())
    communicator = CodedHierarchical(symmetric(K=6, H=3, r=2), wire=wire)
    for round in range(30):
        communicator.round(round, learner.users, learner.aggregator)
    assert learner.metrics()["gap"] <= largest


def learners(kind: str, K: int, **how):
    problem = make(2, K=K, d=70, loss=Logistic(), regularizer=Mean(0.05)).problem
    if kind == "mocha":
        return MOCHA(problem, SDCA(), omega_every=0, **how)
    return NetworkAlgorithm(LEARNERS[kind], problem, LocalSGD(), nn.Linear, **how)


@pytest.mark.parametrize("kind", ["mocha", *map(slow, ("fedavg", "fedadam", "fedu", "ditto"))])
def test_all_transports_and_a_resumed_run_give_the_same_bits(kind: str) -> None:
    """Users and relays that are absent, and models that are lost."""
    t, how = symmetric(K=10, H=5, r=3), {"participation": Participation(dropout=0.2, relays=0.2)}

    def play(learner, communicator, rounds: range) -> None:
        for round in rounds:
            communicator._links.change = losing(0.1, round)
            away = learner.participation.absent_relays(0, round, 5)
            communicator.round(round, learner.users, learner.aggregator, away)

    def fresh(coded: bool):
        return learners(kind, 10, **how), over(t, "int4", Changed.change, coded)

    whole, first, second = fresh(True), fresh(True), fresh(True)
    play(*whole, range(8))
    play(*first, range(5))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    play(*second, range(5, 8))
    assert torch.equal(whole[0].W, second[0].W)
    pair = [fresh(True), fresh(False)]
    for learner, communicator in pair:
        for round in range(6):
            communicator.round(round, learner.users, learner.aggregator)
    assert torch.equal(pair[0][0].W, pair[1][0].W)


@pytest.mark.parametrize("kind", ["fedu", *map(slow, ("fedavg", "ditto"))])
def test_networks_in_few_bits_are_near_those_in_all_bits(kind: str) -> None:
    W = {}
    for wire in (None, "int8", "int4"):
        learner, communicator = learners(kind, 6), CodedHierarchical(symmetric(K=6, H=3, r=2), wire=wire)
        for round in range(10):
            communicator.round(round, learner.users, learner.aggregator)
        W[wire] = learner.W
    size = W[None].norm()
    assert (W["int8"] - W[None]).norm() < 0.01 * size
    assert (W["int4"] - W[None]).norm() < 0.1 * size


def test_an_update_that_is_not_finite_is_one_error() -> None:
    learner = learners("fedavg", 4)
    learner.users.receive(np.arange(4), torch.full((4, learner.users.row_layout.numbers), torch.nan))
    with pytest.raises(RangeError, match="training diverges"):
        CodedHierarchical(symmetric(K=4, H=4, r=2), wire="int4").round(0, learner.users, learner.aggregator)
