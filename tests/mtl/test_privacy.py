"""What users do to their terms: no term exceeds the bound, and the sum has the noise that was asked for."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from adding import terms_of
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from problems import make
from scipy import stats

from hmtl.errors import ConfigError
from hmtl.mtl import (
    APFL,
    Ditto,
    FedAdam,
    FedAvg,
    FedPer,
    FedProx,
    FedRep,
    FedU,
    FedYogi,
    Learner,
    LGFedAvg,
    LocalNetworks,
    LocalSGD,
    Logistic,
    Mean,
    NetworkAlgorithm,
    PFedMe,
    Scaffold,
    TorchTrainer,
    mlp,
)
from hmtl.mtl.privacy import Privacy, clipped
from hmtl.mtl.sums import Grid

LOUD = Privacy(clip=0.01, noise=1.5, least=4, seed=3, randomness="seed")
QUIET = Privacy(clip=1e3, noise=1e-12, least=1, seed=3, randomness="seed")
UNIT = 2.0**37  # steps of the grid that a change of 1 moves a term, where each of 6 users has the weight 1/8


@given(
    rows=st.lists(st.lists(st.integers(-(2**60), 2**60), min_size=3, max_size=3), min_size=1, max_size=4),
    bound=st.one_of(st.integers(1, 2**61), st.integers(1, 50)),
)
def test_no_term_is_longer_than_the_bound(rows: list[list[int]], bound: int) -> None:
    for row, short in zip(rows, clipped(torch.tensor(rows), float(bound)).tolist(), strict=True):
        assert sum(x * x for x in short) <= bound**2  # in whole numbers of any size
        length = sum(x * x for x in row) ** 0.5
        if length < 0.999 * bound:
            assert short == row
        else:  # as long as the bound allows, in the same direction
            factor = min(1.0, bound / length)
            assert np.allclose(short, np.array(row, float) * factor, rtol=1e-5, atol=1.001)


def private(
    privacy: Privacy | None, learner: Learner | None = None, seed: int = 0, solver: Any = None
) -> NetworkAlgorithm:
    problem = make(seed, K=6, d=40, loss=Logistic(), regularizer=Mean(0.1)).problem
    network, solver = partial(mlp, hidden=8), solver or LocalSGD(0.5)
    return NetworkAlgorithm(learner or FedAvg(), problem, solver, network, privacy=privacy)


@examples(5)
@given(seed=st.integers(0, 10**6))
def test_terms_are_those_of_equal_weights_with_noise(seed: int) -> None:
    (users, exact), (_, quiet) = (terms_of(private(each, seed=seed), 0) for each in (None, QUIET))
    counts = make(seed, K=6, d=40).problem.counts
    scale = 2.0 ** (40 - np.ceil(np.log2(sum(counts)))) * torch.tensor(counts)[users, None]
    assert (exact[:] / scale - quiet / UNIT).abs().max() < 1e-7
    learner = private(LOUD, seed=seed)
    _, loud = terms_of(learner, 0)
    noise = (loud - clipped(quiet, LOUD.clip * UNIT)).double() / (UNIT * LOUD.clip)
    assert stats.kstest(noise.flatten() / (1.5 / 2), stats.norm.cdf).pvalue > 1e-5  # σ/√least of each user
    assert torch.equal(terms_of(learner, 0)[1], loud), "the round's noise depends on what was drawn before"
    assert not torch.equal(terms_of(learner, 1)[1], loud)
    assert len({*map(tuple, noise[:, :3].tolist())}) == len(users)
    mean = loud.sum(0) / (len(users) * UNIT)
    before = learner.averages.average.start
    row = learner.aggregator.update(users, loud.sum(0, keepdim=True))
    after = learner.aggregator.hold_meaning().models(users[:1], row)[0]
    torch.testing.assert_close(after - before, mean.to(before), atol=1e-6, rtol=0)
    assert learner.setup() is None, "users would tell how many rows they have"


def test_noise_of_the_system_differs_from_run_to_run() -> None:
    secret = Privacy(clip=0.01, noise=1.5, least=4)
    terms = [terms_of(private(secret), 0)[1] for _ in range(2)]
    assert (terms[0] != terms[1]).all()


@pytest.mark.parametrize("learner", [FedProx(0.1), Ditto(0.1), PFedMe(0.5), APFL(), FedPer(), FedAdam()])
def test_relatives_send_one_clipped_term(learner: Learner) -> None:
    silent = Privacy(clip=0.01, noise=1e-7, least=1, seed=3, randomness="seed")
    users, terms = terms_of(private(silent, learner), 0)
    assert len(users) == 6
    lengths = terms.double().norm(dim=1) / UNIT
    assert (lengths < 0.01 * (1 + 1e-5)).all()
    assert (lengths > 0.0099).all()


@pytest.mark.parametrize(
    ("learner", "remembers"),
    [
        *((each, False) for each in (FedAvg(), FedProx(0.1), Ditto(0.1), PFedMe(0.5), APFL(), FedYogi())),
        *((each, True) for each in (FedPer(), FedRep(), LGFedAvg())),
    ],
)
@pytest.mark.parametrize("solver", [LocalSGD(0.5), TorchTrainer(partial(torch.optim.SGD, lr=0.1, momentum=0.9))])
def test_who_took_part_before_changes_terms_only_if_users_remember(
    learner: Learner, remembers: bool, solver: Any
) -> None:
    """Two users with the same model, one of whom trained in a round before, which counted."""
    silent = Privacy(clip=1.0, noise=1e-7, least=1, seed=3, randomness="seed")
    fresh, veteran = (private(silent, learner, solver=solver) for _ in range(2))
    taking_part, _ = terms_of(veteran, 0)
    veteran.users.commit(taking_part)
    terms = [terms_of(each, 1)[1] for each in (fresh, veteran)]
    assert torch.equal(*terms) != remembers
    assert fresh.remembers == remembers


@pytest.mark.parametrize("learner", [FedU(), Scaffold(), LocalNetworks(), FedPer(coupled=True)])
def test_others_are_refused(learner: Learner) -> None:
    with pytest.raises(ConfigError, match="privacy"):
        private(LOUD, learner)


def test_a_grid_too_coarse_and_sums_too_large() -> None:
    assert Privacy(1.0, 2.0, 4).sigma(Grid(40, 1000)) == 2**30
    for grid in (Grid(3, 1000), Grid(58, 1000)):
        with pytest.raises(ConfigError, match="fraction_bits"):
            Privacy(1.0, 2.0, 4).sigma(grid)
