"""SCAFFOLD beside numpy, on squared losses of which full gradients are affine: ∇_k = H_k w − b_k."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hmtl.communication import Sums, Uncoded
from hmtl.data import Task
from hmtl.mtl import FedAvg, LocalSGD, Participation, Problem, Ridge, Scaffold, Squared
from hmtl.topology import any_r

K, D = 4, 2
COUNTS = np.array([14, 18, 11, 28])
P = COUNTS / COUNTS.sum()
FULL = 100  # rows in a minibatch: all of them


def linear(d, C):
    return nn.Linear(d, C, bias=False).double()


def users(seed):
    """The problem, and H_k [K, D, D] and b_k [K, D] of models that differ from user to user."""
    rng = np.random.default_rng(seed)
    X = [rng.normal(size=(n, D)) for n in COUNTS]
    y = [x @ rng.normal(1, 1, size=D) for x in X]
    tasks = [Task(str(k), *map(torch.from_numpy, (x, t, x, t))) for k, (x, t) in enumerate(zip(X, y, strict=True))]
    H = np.stack([x.T @ x / len(x) for x in X])
    return Problem(tasks, Squared(), Ridge(1.0)), H, np.stack([x.T @ t / len(x) for x, t in zip(X, y, strict=True)])


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    epochs=st.integers(1, 4),
    decay=st.sampled_from([0.0, 0.5]),
    part=st.sampled_from([Participation(), Participation(0.2, dropout=0.4), Participation(fraction=0.5)]),
)
def test_every_round_is_that_of_the_paper(seed, epochs, decay, part):
    """Option II in the paper's own terms, with stragglers, sampled and absent users; c stays the mean of all c_k."""
    problem, H, b = users(seed)
    learner = Scaffold(problem, LocalSGD(0.1, epochs, FULL, decay), linear, seed=seed, participation=part)
    w, c, own = learner.W[:, 0].numpy(), np.zeros(D), np.zeros((K, D))
    for round in range(4):
        rate, moved, changed = 0.1 / (1 + decay * round), np.zeros((K, D)), np.zeros((K, D))
        for k, steps in enumerate(part.budgets(torch.full((K,), epochs), seed, round).tolist()):
            y = w.copy()
            for _ in range(steps):
                y = y - rate * (H[k] @ y - b[k] - own[k] + c)
            if steps:
                new = own[k] - c + (w - y) / (steps * rate)
                moved[k], changed[k], own[k] = y - w, new - own[k], new
        here = moved.any(axis=1)
        w, c = w + P @ moved / max(P[here].sum(), 1e-9), c + P @ changed
        learner.step(round)
        np.testing.assert_allclose(learner.W.T, np.tile(w, (K, 1)), rtol=0, atol=1e-11)
        np.testing.assert_allclose(learner.users.V, own, rtol=0, atol=1e-10)
        np.testing.assert_allclose(c, P @ own, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(Participation(), id="all", marks=pytest.mark.slow),
        pytest.param(Participation(0.3, dropout=0.3), id="some absent"),
    ],
)
def test_it_comes_to_rest_where_the_gradients_of_all_cancel(part):
    """After many local steps in a round, too, which FedAvg does not."""
    problem, H, b = users(0)
    optimum = np.linalg.solve(np.tensordot(P, H, 1), P @ b)
    learners = [kind(problem, LocalSGD(0.1, 15, FULL), linear, participation=part) for kind in (Scaffold, FedAvg)]
    for learner in learners:
        for round in range(250):
            learner.step(round)
    apart = [float(abs(learner.W.T.numpy() - optimum).max()) for learner in learners]
    assert apart[0] < 1e-7
    assert apart[1] > 1e-2


def test_two_numbers_travel_for_each_parameter():
    t = any_r(K=K, H=3, r=2, seed=1)
    for communicator, messages in ((Sums(t), "sums"), (Uncoded(t), "ivs")):
        learner = Scaffold(users(0)[0], LocalSGD(0.1), linear, messages=messages)
        communicator.round(0, learner.users, learner.aggregator)
        assert communicator.V_bits == 64 * 2 * D
        assert learner.W.shape == (D, K)
