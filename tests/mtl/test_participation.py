"""Amounts of local work: ranges, frequencies, names of the draws; schedules; refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.errors import ConfigError
from hmtl.mtl import MOCHA, SDCA, CoCoA, Participation


@given(seed=st.integers(0, 10**6), low=st.floats(0.01, 1), data=st.data())
@settings(deadline=None, max_examples=20)
def test_shares(seed, low, data):
    high = data.draw(st.floats(low, 1))
    speeds = data.draw(st.one_of(st.none(), st.lists(st.floats(0.1, 1), min_size=400, max_size=400)))
    work = Participation(low, high, speeds, dropout=0.25)
    shares = work.shares(seed, 3, 400).numpy()
    present = shares > 0
    assert 0.15 < 1 - present.mean() < 0.35
    drawn = (shares / (1 if speeds is None else np.array(speeds)))[present]
    assert drawn.min() >= low * (1 - 1e-12)
    assert drawn.max() <= high * (1 + 1e-12)
    assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.2 * (high - low) + 1e-9)
    assert torch.equal(work.shares(seed, 3, 400), torch.from_numpy(shares))  # whatever was drawn before
    assert not torch.equal(work.shares(seed, 4, 400), torch.from_numpy(shares))
    assert not torch.equal(work.shares(seed + 1, 3, 400), torch.from_numpy(shares))


def test_budgets():
    usual = torch.tensor([100, 10, 1, 50])
    assert Participation().budgets(usual, 0, 0).tolist() == [100, 10, 1, 50]
    slow = Participation(speeds=[0.25, 0.01, 0.5, 1.0], schedule=[(2, 3)])
    assert slow.budgets(usual, 0, 0).tolist() == [25, 1, 1, 50]  # who takes part does a step
    assert slow.budgets(usual, 0, 2).tolist() == [25, 1, 1, 0]


def test_schedule_from_a_file(tmp_path):
    path = tmp_path / "absent.csv"
    path.write_text("0,1\n0,2\n5,0\n")
    work = Participation(schedule=path)
    assert [(work.shares(0, round, 3) == 0).tolist() for round in (0, 1, 5)] == [
        [False, True, True],
        [False, False, False],
        [True, False, False],
    ]
    path.write_text("0;1\n")
    with pytest.raises(ConfigError, match="pairs"):
        Participation(schedule=str(path))
    with pytest.raises(ConfigError, match="pairs"):
        Participation(schedule=tmp_path / "none.csv")


@pytest.mark.parametrize("algorithm", [MOCHA, lambda *a, **b: CoCoA(*a, lam=0.1, **b)])
def test_who_drops_out_sends_zeros_and_is_named(random_problem, algorithm):
    case = random_problem(1, K=4)
    mocha = algorithm(case.problem, SDCA(), seed=5, participation=Participation(schedule=[(1, 0), (1, 2)]))
    for round in range(3):
        ivs, a = mocha.local_update(round), mocha.a
        silent = (ivs == 0).all(1)
        assert mocha.absent(round) == ((0, 2) if round == 1 else ())
        assert silent[list(mocha.absent(round))].all()
        assert round != 1 or (not silent[1] and not silent[3])
        mocha.receive(mocha.global_update(ivs))
        assert torch.equal(mocha.a, a)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"low": 0.0}, "low=0.0"),
        ({"low": 0.8, "high": 0.5}, "low ≤ high"),
        ({"high": 1.5}, "high=1.5"),
        ({"speeds": [1.0, 0.0]}, "user 1 has 0.0"),
        ({"dropout": 1.0}, "for ever"),
        ({"schedule": [3]}, "pairs"),
        ({"schedule": [(1, 2, 3)]}, "pairs"),
    ],
)
def test_refusals(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Participation(**wrong)


def test_refusals_of_users(random_problem):
    problem = random_problem(0, K=4).problem
    with pytest.raises(ConfigError, match="2 numbers for K=4"):
        MOCHA(problem, SDCA(), participation=Participation(speeds=[1.0, 0.5]))
    with pytest.raises(ConfigError, match="no user 4, users are numbered 0 to 3"):
        MOCHA(problem, SDCA(), participation=Participation(schedule=[(0, 4)]))
