"""APFL beside a loop of torch over modules."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from layers import COUNTS, C, D, K, batches, deep, descend, several_classes
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hmtl.mtl import APFL, LocalSGD, NetworkAlgorithm, Participation


@given(
    seed=st.integers(0, 10**6),
    alpha=st.sampled_from([0.2, 0.5, 1.0]),
    part=st.sampled_from([Participation(low=0.3), Participation(0.3, dropout=0.3)]),
)
def test_every_round_is_that_of_a_loop(seed, alpha, part):
    """The mixture α v + (1 − α) w takes steps, whose gradient with respect to v is α times that of the mixture."""
    of, solver = several_classes(seed), LocalSGD(0.3, 2, 4, 0.5)
    algorithm = NetworkAlgorithm(APFL(alpha), of, solver, deep, seed, part)
    w, own = algorithm.model.start, [algorithm.model.start] * K
    for round in range(3):
        budgets, trained = part.budgets(solver.steps(COUNTS), seed, round).tolist(), {}

        def trains(k, start, steps, round=round):
            module = deep(D, C)
            vector_to_parameters(start.clone(), module.parameters())
            for at in batches(solver, seed, round, k)[:steps]:
                descend(module, of.tasks[k], dict(module.named_parameters()), 1, 0.3 / (1 + 0.5 * round), at)
            return parameters_to_vector(module.parameters()).detach()

        for k, steps in enumerate(budgets):
            if steps:
                mixture = alpha * own[k] + (1 - alpha) * w
                own[k] = own[k] + alpha * (trains(k, mixture, steps) - mixture)
                trained[k] = trains(k, w, steps)
        n = sum(COUNTS[k] for k in trained)
        w = w + sum(COUNTS[k] / n * (each - w) for k, each in trained.items())
        algorithm.step(round)
        want = torch.stack([alpha * v + (1 - alpha) * w for v in own], dim=1)
        torch.testing.assert_close(algorithm.W, want, rtol=0, atol=1e-10)
        torch.testing.assert_close(algorithm.users.held["averaged"].all(), w.expand(K, -1), rtol=0, atol=1e-10)
