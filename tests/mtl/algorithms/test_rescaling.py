"""A change of Ω with the squared loss: all duals are multiplied by the θ that keeps the models near the old ones."""

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from school import school

from hmtl.data import Preprocessing, Task, prepare
from hmtl.mtl import MOCHA, SDCA, Common, Hinge, Participation, Problem, Squared, TaskRelationship


def of_duals(case, a):
    """V = Σ_j s a_j x_j in numpy, [K, d]."""
    return np.stack([s * own @ x for s, own, x in zip(case.s, case.by_user(a), case.X, strict=True)])


@pytest.mark.parametrize("K", [4, 9], ids=["dense", "thin"])
def test_no_multiple_of_the_new_models_is_nearer_to_the_old_ones(random_problem, K):
    case = random_problem(3, K=K, loss=Squared())
    mocha = MOCHA(case.problem, SDCA(2), omega_every=3)
    for round in range(2):
        mocha.step(round)
    users, ivs = mocha.users.local_update(2)
    ivs = ivs[:]
    B = mocha.aggregator.coupling.B
    V = mocha.aggregator.V + ivs[:, :-1]
    old = B @ V
    received = mocha.aggregator.update(users, ivs)
    new, theta = received[:, : case.d], received[0, -1]
    for other in (0.9, 0.99, 1.01, 1.1):
        assert (new - old).norm() < (other * new - old).norm()
    assert torch.allclose(mocha.aggregator.V, theta * V, rtol=1e-14)
    assert not torch.isclose(theta, torch.ones(()).double(), rtol=0.01)
    mocha.users.commit(users)
    for _ in range(2):  # the same factor twice is one
        mocha.users.receive(users, received)
    np.testing.assert_allclose(mocha.aggregator.V.numpy(), of_duals(case, mocha.a), rtol=0, atol=1e-12)


def test_duals_with_bounds_keep_their_values(random_problem):
    """Multiples of the duals of the hinge might leave [0, 1]."""
    mocha = MOCHA(random_problem(3, loss=Hinge()).problem, SDCA(2), omega_every=1)
    mocha.step(0)
    assert mocha.describe()["omega_learned"]
    assert "scale" not in mocha.aggregator.state_dict()


@given(
    seed=st.integers(0, 10**6),
    K=st.integers(1, 8),
    gamma=st.sampled_from([1.0, 0.3]),
    common=st.booleans(),
    few_bits=st.booleans(),
    data=st.data(),
)
@examples(20)
def test_V_is_what_the_duals_say_after_each_change(random_problem, seed, K, gamma, common, few_bits, data):
    """IVs get lost and are rolled back; who gets no model is idle until one arrives, and takes all θ that it missed.

    If IVs are rounded on the way, aggregators lack e.
    """
    case = random_problem(seed, K=K, loss=Squared(), regularizer=Common(0.1) if common else TaskRelationship(0.1))
    how = {"omega_every": 2, "gamma": gamma, "accelerated": gamma == 1, "participation": Participation(dropout=0.2)}
    mocha = MOCHA(case.problem, SDCA(0.5), seed=seed, **how)
    some = st.lists(st.sampled_from(range(K)), unique=True).map(sorted)
    everybody = np.arange(K)
    waiting, counted = np.zeros(K, dtype=bool), np.zeros(K, dtype=bool)
    owed, unsettled = np.zeros((2, K, case.d))
    for round in range(9):
        users, rows = mocha.users.local_update(round, np.flatnonzero(waiting))
        ivs, owed_if_counted = rows[:], owed.copy()
        if few_bits:
            wanted = ivs[:, : case.d] + torch.from_numpy(owed[users]) / gamma
            sent = (4 * wanted).round() / 4
            ivs = torch.cat([sent, rows.further(slice(None))(sent)], dim=1)
            owed_if_counted[users] = gamma * (wanted - sent)
        lost = np.isin(users, data.draw(some))
        if data.draw(st.integers(0, 4)):  # otherwise nobody aggregates, as users learn
            models = mocha.aggregator.update(users[~lost], ivs[~lost])
            counted[users] = ~lost
            pending = waiting | np.isin(everybody, users)
            told = everybody if round == 8 else np.setdiff1d(everybody, data.draw(some))
            mocha.users.commit(told[pending[told] & counted[told]])
            mocha.users.roll_back(told[pending[told] & ~counted[told]])
            kept = told[pending[told] & counted[told]]
            unsettled[users] = owed_if_counted[users]
            owed[kept] = unsettled[kept]
            if (factors := mocha.users.receive(told, models[told])) is not None:
                owed[told] *= factors.numpy()[:, None]
            waiting = ~np.isin(everybody, told)
            counted[~waiting] = False
        else:
            mocha.users.roll_back(users)
        V, settled = mocha.aggregator.V.numpy() + owed, ~waiting
        want = of_duals(case, mocha.a)
        np.testing.assert_allclose(V[settled], want[settled], rtol=0, atol=1e-12 * max(1, abs(want).max()))
        assert mocha.metrics()["gap"] >= -1e-9


def tasks():
    """School's shape, 75 % of the rows to train on."""
    made, rng = [], np.random.default_rng(1)
    for name, table in school(np.random.default_rng(0)).groupby("school"):
        x, y = table.filter(like="x").to_numpy(float), table["score"].to_numpy(float)
        train, test = np.split(rng.permutation(len(y)), [3 * len(y) // 4])
        made.append(Task(str(name), *map(torch.from_numpy, (x[train], y[train], x[test], y[test]))))
    return prepare(made, Preprocessing(True, "task", "task"))


@pytest.fixture(scope="module")
def problem():
    return Problem(tasks(), Squared(), TaskRelationship(0.1))


def rows(problem, lam, rounds, until=None):
    mocha, measured = MOCHA(problem.regularized(TaskRelationship(lam)), SDCA(10), rounds=until), []
    for round in range(rounds):
        mocha.step(round)
        measured.append(mocha.metrics())
    return measured


@pytest.mark.parametrize("lam", [0.01, 0.1])
def test_no_round_after_a_change_is_much_worse(problem, lam):
    """Without θ, the error rises 80-fold after the first change with λ = 0.01."""
    errors = [row["test_error"] for row in rows(problem, lam, 16)]
    changed = range(4, 16, 5)
    assert all(errors[t] < 1.1 * errors[t - 1] for t in changed)
    assert all(errors[t + 1] < 1.1 * errors[t - 1] for t in changed[:-1])


@pytest.mark.slow
def test_any_number_of_rounds_is_about_as_good_as_fewer(problem):
    best = np.inf
    for rounds in range(5, 31, 3):
        handed = min(rows(problem, 0.1, rounds, rounds), key=lambda row: row["joint_primal"])["test_error"]
        best = min(best, handed)
        assert handed < 1.05 * best, rounds
