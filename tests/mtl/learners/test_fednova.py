"""FedNova: a loop of torch over modules, and its optimum if users differ in their numbers of steps."""

import numpy as np
import pytest
import torch
from adding import adding
from hypothesis import given
from hypothesis import strategies as st
from layers import COUNTS, C, D, K, batches, deep, descend, several_classes
from quadratics import P, learn, quadratics, shared
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hmtl.mtl import FedAvg, FedNova, LocalSGD, NetworkAlgorithm, Participation


@given(
    seed=st.integers(0, 10**6),
    adds=st.booleans(),
    part=st.sampled_from([Participation(low=0.3), Participation(0.3, dropout=0.3), Participation(fraction=0.5)]),
)
def test_every_round_is_that_of_a_loop(seed, adds, part):
    """Minibatches, stragglers and absent users; τ is the mean over those who took part."""
    of, solver = several_classes(seed), LocalSGD(0.3, 2, 4, 0.5)
    algorithm = NetworkAlgorithm(FedNova(), of, solver, deep, seed, part)
    if adds:
        adding(algorithm)
    w = algorithm.model.start
    for round in range(3):
        each, n, tau = [], [], []
        budgets = part.budgets(solver.steps(COUNTS), seed, round).tolist()
        for k, steps in enumerate(budgets):
            module = deep(D, C)
            vector_to_parameters(w.clone(), module.parameters())
            for rows in batches(solver, seed, round, k)[:steps]:
                descend(module, of.tasks[k], dict(module.named_parameters()), 1, 0.3 / (1 + 0.5 * round), rows)
            if steps:
                each.append((parameters_to_vector(module.parameters()).detach() - w) / steps)
                n.append(float(COUNTS[k]))
                tau.append(float(steps))
        p = torch.tensor(n).double() / sum(n)
        w = w + (p @ torch.tensor(tau).double()) * (p @ torch.stack(each)) if n else w
        algorithm.step(round)
        torch.testing.assert_close(algorithm.W, w[:, None].expand(-1, K), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_users_who_take_more_steps_do_not_weigh_more():
    """On quadratics with short steps, FedNova comes to rest near the optimum of all rows; FedAvg does not."""
    H, b = quadratics()
    optimum, slow = np.linalg.solve(np.tensordot(P, H, 1), P @ b), Participation(speeds=[0.05, 1.0, 0.1, 1.0])
    apart = [
        abs(shared(learn(learner, 0.01, 20, participation=slow, rounds=100))[: len(optimum)] - optimum).max()
        for learner in (FedNova(), FedAvg())
    ]
    assert apart[0] < 0.3 * apart[1]
