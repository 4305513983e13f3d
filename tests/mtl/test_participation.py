"""Shares of local work, schedules, absent relays, and settings that are refused."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.errors import ConfigError
from hmtl.mtl import MOCHA, SDCA, CoCoA, Participation


@given(seed=st.integers(0, 10**6), low=st.floats(0.01, 1), data=st.data())
@examples(8)
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
    assert torch.equal(work.shares(seed, 3, 400), torch.from_numpy(shares))  # independent of earlier draws
    assert not torch.equal(work.shares(seed, 4, 400), torch.from_numpy(shares))
    assert not torch.equal(work.shares(seed + 1, 3, 400), torch.from_numpy(shares))


@given(seed=st.integers(0, 10**6), K=st.integers(1, 40), fraction=st.floats(0.001, 1))
def test_sampled_users(seed, K, fraction):
    """So many in each round, whatever their speeds; each user is sampled as often as the others."""
    part = Participation(0.3, fraction=fraction)
    drawn = np.stack([part.shares(seed, round, K).numpy() for round in range(60)]) > 0
    n = max(1, round(fraction * K))
    assert (drawn.sum(axis=1) == n).all()
    p = n / K
    assert abs(drawn.mean(axis=0) - p).max() <= 6 * np.sqrt(p * (1 - p) / 60)


def test_budgets():
    usual = torch.tensor([100, 10, 1, 50])
    assert Participation().budgets(usual, 0, 0).tolist() == [100, 10, 1, 50]
    slow = Participation(speeds=[0.25, 0.01, 0.5, 1.0], schedule=[(2, 3)])
    assert slow.budgets(usual, 0, 0).tolist() == [25, 1, 1, 50]  # at least one step
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
    with pytest.raises(ConfigError, match="schedule="):
        Participation(schedule=str(path))
    with pytest.raises(ConfigError, match="schedule="):
        Participation(schedule=tmp_path / "none.csv")


@pytest.mark.parametrize("algorithm", [MOCHA, lambda *a, **b: CoCoA(*a, lam=0.1, **b)])
def test_absent_users_send_nothing_and_receive_a_model(random_problem, algorithm):
    case = random_problem(1, K=4)
    mocha = algorithm(case.problem, SDCA(0.5), seed=5, participation=Participation(schedule=[(1, 0), (1, 2)]))
    for round in range(3):
        users, ivs = mocha.users.local_update(round)
        ivs = ivs[:]
        mocha.users.roll_back(users)
        assert users.tolist() == ([1, 3] if round == 1 else [0, 1, 2, 3])
        assert ivs.shape == (len(users), case.d + 1)
        assert (ivs != 0).any(1).all()
        a, W = mocha.a, mocha.W
        mocha.step(round)
        same = [bool(each.all()) for each in (mocha.a == a).split(case.problem.counts)]
        assert (same[0] and same[2]) == (round == 1)
        assert not (mocha.W == W).all(0)[[1, 3]].any()
        V = mocha.aggregator.meaning.sent if mocha.aggregator.meaning else mocha.aggregator.V
        W = (mocha.aggregator.coupling.B @ V).T
        torch.testing.assert_close(mocha.W, W, rtol=0, atol=1e-10)  # sums are on a grid of 2^-40


def test_absent_relays(tmp_path):
    """A share of them, drawn independently of the users, or those of a list or a file."""
    drawn = Participation(dropout=0.3, relays=0.25)
    counts = [len(drawn.absent_relays(0, round, 40)) for round in range(50)]
    assert 7 < np.mean(counts) < 13
    assert drawn.absent_relays(0, 3, 40) == drawn.absent_relays(0, 3, 40)
    assert drawn.absent_relays(0, 3, 40) == tuple(sorted(drawn.absent_relays(0, 3, 40)))
    assert len({drawn.absent_relays(seed, round, 40) for seed in (0, 1) for round in (3, 4)}) == 4
    assert torch.equal(drawn.shares(0, 3, 9), Participation(dropout=0.3).shares(0, 3, 9))
    assert Participation().absent_relays(0, 0, 5) == ()
    (tmp_path / "relays.csv").write_text("4,2\n4,0\n6,1\n")
    for pairs in ([(4, 2), (4, 0), (6, 1)], tmp_path / "relays.csv", str(tmp_path / "relays.csv")):
        listed = Participation(relays=pairs)
        assert [listed.absent_relays(0, round, 3) for round in (3, 4, 6)] == [(), (0, 2), (1,)]
        with pytest.raises(ConfigError, match="relay 2"):
            listed.check_relays(2)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"low": 0.0}, "low=0.0"),
        ({"low": 0.8, "high": 0.5}, "high=0.5"),
        ({"high": 1.5}, "high=1.5"),
        ({"speeds": [1.0, 0.0]}, "user 1 has 0.0"),
        ({"speeds": [1.5]}, "user 0 has 1.5"),
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"schedule": [3]}, "schedule="),
        ({"schedule": [(1, 2, 3)]}, "schedule="),
        ({"relays": 1.0}, "relays=1.0"),
        ({"relays": -0.1}, "relays=-0.1"),
        ({"relays": [3]}, "relays="),
        ({"relays": "none.csv"}, "none.csv"),
    ],
)
def test_settings_out_of_range(wrong, named):
    with pytest.raises(ConfigError, match=named) as error:
        Participation(**wrong)
    assert "\n" not in str(error.value)


def test_settings_that_do_not_fit_the_users(random_problem):
    problem = random_problem(0, K=4).problem
    with pytest.raises(ConfigError, match="speeds"):
        MOCHA(problem, SDCA(), participation=Participation(speeds=[1.0, 0.5]))
    with pytest.raises(ConfigError, match="user 4"):
        MOCHA(problem, SDCA(), participation=Participation(schedule=[(0, 4)]))
