"""What all algorithms have in common: state, terms made on either side, absent users, timing, set-up."""

import copy
import io
from collections.abc import Callable
from functools import partial

import learners
import numpy as np
import pytest
import torch
from adding import adding
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from hmtl.communication import CodedHierarchical, Communicator, Network, Sums, Uncoded
from hmtl.config.build import build_algorithm, build_problem, build_tasks
from hmtl.errors import CodingError, ConfigError, ProcessLost
from hmtl.io.cpu_time import cpu_seconds
from hmtl.mtl import (
    MOCHA,
    SDCA,
    Algorithm,
    Clustered,
    CoCoA,
    FedU,
    Graph,
    Local,
    LocalSGD,
    Logistic,
    Mean,
    NetworkAlgorithm,
    Participation,
    Problem,
    Ridge,
    TaskRelationship,
)
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, any_r
from hmtl.training.carrier import carrier_of

SGD = LocalSGD(0.05, 2, 4, 0.2)
K = 4


def dropping(d: int, C: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, 4), nn.Dropout(0.3), nn.Linear(4, C))


def trained(learner, make=nn.Linear) -> Callable[..., NetworkAlgorithm]:
    return lambda problem, **options: NetworkAlgorithm(learner, problem, SGD, make, **options)


SMALL = ("fedprox", "fedadam", "fedyogi", "ditto", "pfedme")  # learners on a network without dropout, to be quick
NETWORKS = {name: trained(each, nn.Linear if name in SMALL else dropping) for name, each in learners.LEARNERS.items()}
OTHERS = {  # which need all IVs, or none
    "mocha, omega": lambda p, **o: MOCHA(p.regularized(TaskRelationship(0.1)), SDCA(0.5), omega_every=3, **o),
    "fedu, graph": lambda p, **o: trained(FedU())(p.regularized(Graph(0.1, neighbors=1)), **o),
    "local": lambda p, **o: Local(p, SDCA(0.5), 0.1, **o),
    "local_networks": NETWORKS.pop("local_networks"),
}
LEARNERS = NETWORKS | {
    "mocha": lambda p, **o: MOCHA(p, SDCA(0.5), **o),
    "mocha, plain": lambda p, **o: MOCHA(p, SDCA(0.5), accelerated=False, gamma=0.4, **o),
    "cocoa+": lambda p, **o: CoCoA(p, SDCA(0.5), 0.1, **o),
    "cocoa": lambda p, **o: CoCoA(p, SDCA(0.5), 0.1, adding=False, **o),
}
MORE = ["mocha, plain", "cocoa+", "ditto", "pfedme", "scaffold", "fedavgm", "fedadam", "fedyogi", "fednova", "apfl"]
MORE += ["fedper", "fedrep"]
every_learner = pytest.mark.parametrize(
    ("learner", "where"),
    [(name, where) for name in LEARNERS for where in ("aggregator", "users")]
    + [(name, "aggregator") for name in OTHERS],
)


def made(learner: str, problem: Problem, where: str = "aggregator", **others) -> Algorithm:
    """Return a learner of whose rows users or the aggregator make terms."""
    algorithm = (LEARNERS | OTHERS)[learner](problem, **others)
    return adding(algorithm) if where == "users" else algorithm


def make(random_problem, learner: str, seed: int = 3, K: int = K, **others) -> Algorithm:
    return made(learner, random_problem(seed, K=K, regularizer=Mean(0.05, 0.02), loss=Logistic()).problem, **others)


def play(algorithm: Algorithm, first: int, last: int) -> Algorithm:
    for round in range(first, last):
        algorithm.step(round)
    return algorithm


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(value, other[side][name]) for side in one for name, value in one[side].items())


@every_learner
def test_state_is_a_snapshot_from_which_training_continues(random_problem, learner: str, where: str) -> None:
    def fresh() -> Algorithm:
        participation = Participation(low=0.4, dropout=0.3)
        return make(random_problem, learner, where=where, participation=participation, seed=3)

    whole, buffer = play(fresh(), 0, 2), io.BytesIO()
    users, _ = whole.users.local_update(2)  # an update is pending
    results = []
    state = whole.state_dict()
    torch.save(state, buffer)
    for one in (whole, fresh()):
        if one is not whole:
            buffer.seek(0)
            saved = torch.load(buffer, weights_only=True)
            assert same(saved, state), "later rounds have changed a state"
            torch.rand(3)  # draws elsewhere have no effect
            one.load_state_dict(saved)
        one.users.roll_back(users[:1])
        one.users.commit(users[1:])
        play(one, 3, 5)
        results.append((one.W, one.metrics()))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    copied = copy.deepcopy(whole)
    assert torch.equal(play(copied, 5, 6).W, play(whole, 5, 6).W)


class NoPairs(TorchFunctionMode):
    """Lets no call of torch return a matrix of all pairs of K users."""

    def __init__(self, K: int) -> None:
        super().__init__()
        self.K = K

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            assert not isinstance(each, torch.Tensor) or each.numel() < self.K**2, f"{function.__name__}: {each.shape}"
        return result


@pytest.mark.parametrize("where", ["aggregator", "users"])
@pytest.mark.parametrize("learner", ["mocha", "cocoa+", "cocoa", "local", "fedu"])
def test_no_matrix_of_all_pairs_of_users(random_problem, learner: str, where: str) -> None:
    """Where the coupling is the same for all of them."""
    problem = random_problem(3, K=200, regularizer=Mean(0.05, 0.02), loss=Logistic()).problem
    with NoPairs(200):
        algorithm = play(made(learner, problem, where), 0, 3)
        assert algorithm.metrics()["primal"] > 0
        algorithm.load_state_dict(algorithm.state_dict())


@every_learner
def test_sides_shadow_no_name_of_modules(random_problem, learner: str, where: str) -> None:
    algorithm, reserved = make(random_problem, learner, where=where), set(dir(nn.Module)) | set(vars(nn.Module()))
    for side in (algorithm.users, algorithm.aggregator):
        for part in side.modules():
            own = set(vars(part)) - set(vars(nn.Module())) | set(part._buffers)
            methods = {name for kind in type(part).__mro__ if kind.__module__.startswith("hmtl") for name in vars(kind)}
            names = {name for name in own | methods if not name.startswith("_")}
            assert names & reserved <= {"state_dict", "load_state_dict", "forward"}


@every_learner
def test_a_round_without_users_leaves_the_users_unchanged(random_problem, learner: str, where: str) -> None:
    algorithm = play(make(random_problem, learner, where=where), 0, 2)
    W = algorithm.W.clone()
    users, rows = algorithm.users.local_update(2, idle=np.arange(K))
    assert len(users) == len(rows) == 0
    if algorithm.users.row_layout.numbers:
        meaning = algorithm.users.meaning or algorithm.aggregator.hold_meaning()
        models = algorithm.aggregator.update(users, meaning.total_of(users, rows[:]) if meaning else rows[:])
        algorithm.users.commit(users)
        algorithm.users.receive(users, meaning.models(np.arange(1), models)[:0] if meaning else models[:0])
    assert torch.equal(algorithm.W, W)


def test_the_slowest_user_takes_its_share_of_the_steps(random_problem) -> None:
    """Nobody is trained only to be timed, and a round without users takes no time."""

    class Slow(SDCA):
        def forward(self, loss, rows, subproblem, order, budgets):
            calls.append(rows.counts)
            end = cpu_seconds() + 0.2
            while cpu_seconds() < end:
                pass
            return super().forward(loss, rows, subproblem, order, budgets)

    calls: list[tuple[int, ...]] = []
    case = random_problem(8, K=6)
    mocha = MOCHA(case.problem, Slow())
    mocha.step(0)
    share = max(case.problem.counts) / sum(case.problem.counts)
    assert 0.2 * share <= mocha.users.seconds < 0.2
    assert calls == [case.problem.counts]
    mocha.users.local_update(1, idle=np.arange(6))
    assert mocha.users.seconds == 0


@pytest.mark.parametrize(
    "learner",
    ["mocha", "fedavg", "fedu", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)],
)
@examples(3)
@given(
    t=topologies(max_H=4, max_K=6),
    medium=st.sampled_from(("broadcast", "unicast")),
    last_hop=st.sampled_from(("broadcast", "unicast")),
    gone=st.sampled_from((0.0, 0.3)),
    seed=st.integers(0, 1000),
)
def test_sums_uncoded_and_coded_give_the_same_bits(
    random_problem, learner: str, t: Topology, medium: str, last_hop: str, gone: float, seed: int
) -> None:
    """For any users and relays that drop out; one relay is always present.

    A relay whose users are all absent falls behind, and a round without a relay that holds the state counts nobody.
    """
    rng = np.random.default_rng(seed)
    always = int(np.flatnonzero(t.G.any(axis=1))[0])
    away = [set(np.flatnonzero(rng.random(t.H) < gone).tolist()) - {always} for _ in range(5)]
    network, results = Network(medium=medium, last_hop=last_hop), []
    for communicator in (
        Sums(t, network, sums=("whole", "auto")[seed % 2]),
        Uncoded(t, network),
        CodedHierarchical(t, network, aggregators="all"),
    ):
        assert isinstance(communicator, Communicator)
        algorithm = make(random_problem, learner, seed, t.K, participation=Participation(low=0.4, dropout=gone))
        models = []
        for round, absent in enumerate(away):
            empty = communicator.round(round, algorithm.users, algorithm.aggregator, absent).empty
            assume(not empty or not isinstance(communicator, CodedHierarchical))
            models.append(algorithm.W.clone())
        results.append((torch.stack(models), algorithm.metrics()))
    for models, figures in results[1:]:
        assert torch.equal(models, results[0][0])
        assert figures == results[0][1]
    assert figures.get("gap", 0.0) >= -1e-9


@pytest.mark.parametrize(
    ("learner", "wire", "dropout", "tolerance"),
    [
        pytest.param(name, *case, marks=() if name in ("mocha", "fedavg") and case[1] else pytest.mark.slow)
        for name in LEARNERS
        if name != "fednova"  # its numbers of steps set the scale of a block, and are far larger than changes of models
        for case in (("int8", 0, 0.02), ("int4", 0, 0.1), ("int4", 0.2, 0.15))
    ],
)
def test_sums_in_few_bits_come_near_those_in_64(
    random_problem, learner: str, wire: str, dropout: float, tolerance: float
) -> None:
    """Distances are relative to how far the models move; errors of SCAFFOLD's c go into each of the local steps,
    and CoCoA+'s momentum carries on what scales leave over that are held for absent users."""
    W, tolerance = [], tolerance * {"scaffold": 3, "cocoa+": 1.3 if dropout else 1}.get(learner, 1)
    for of_sums in (None, wire):
        participation = Participation(dropout=dropout)
        algorithm = make(random_problem, learner, 5, 8, participation=participation)
        start, communicator = algorithm.W.clone(), Sums(any_r(K=8, H=3, r=2, seed=1), wire=of_sums)
        for round in range(12):
            communicator.round(round, algorithm.users, algorithm.aggregator)
        W.append(algorithm.W)
    assert 0 < float((W[1] - W[0]).norm()) <= tolerance * float((W[0] - start).norm())
    assert algorithm.metrics().get("gap", 0.0) >= -1e-9


@pytest.mark.parametrize("learner", LEARNERS)
def test_an_update_is_settled_some_rounds_later(random_problem, learner: str) -> None:
    """S is the sum of the terms that counted, also of a user that learns it late, and from a saved state."""
    algorithm, again = (make(random_problem, learner, where="users") for _ in range(2))
    users, _ = play(algorithm, 0, 1).users.local_update(1)
    before = algorithm.aggregator.S
    algorithm.users.commit(users[1:])
    again.load_state_dict(algorithm.state_dict())
    for one in (algorithm, again):
        late, _ = one.users.local_update(2, idle=np.array([0]))
        assert late.tolist() == [1, 2, 3]
        one.users.roll_back(late)
        one.users.commit(np.array([0]))
    assert same({"users": algorithm.users.state_dict()}, {"users": again.users.state_dict()})
    assert torch.equal(algorithm.aggregator.S, before), "an aggregator knows only what it was sent"


@pytest.mark.parametrize("where", ["aggregator", "users"])
def test_set_up_of_an_average(random_problem, where: str) -> None:
    """Users send their numbers of rows, and are told the total."""
    fedavg, damaged = (made("fedavg", random_problem(3, loss=Logistic()).problem, where) for _ in "ab")
    users, aggregator = damaged.setup()
    who, facts = users.local_update(0)
    assert facts.tolist() == [[float(n)] for n in damaged.problem.counts]
    if where == "users":
        damaged.users.weights.total = 1.0
    else:
        damaged.averages.weights.own = torch.ones(K, 1).double()
    users.receive(who, aggregator.update(who, facts))
    assert torch.equal(play(damaged, 0, 2).W, play(fedavg, 0, 2).W)
    with pytest.raises(ProcessLost, match="K=4"):
        aggregator.update(who[:3], facts[:3])


def test_learners_say_what_rows_mean_if_sums_suffice(random_problem) -> None:
    for name in LEARNERS:
        users = make(random_problem, name).users
        assert users.make_meaning().words == users.row_layout.numbers
    problem = random_problem(0, loss=Logistic()).problem
    assert Local(problem, SDCA(), 0.1).users.make_meaning() is None
    for regularizer in (TaskRelationship(0.1), Clustered(0.1, 2), Graph(0.1, neighbors=1), Ridge(0.1)):
        coupled, t = problem.regularized(regularizer), any_r(problem.K, 3, 2, seed=1)
        for kind in (partial(MOCHA, solver=SDCA()), trained(FedU())):
            algorithm = kind(coupled)
            assert algorithm.users.make_meaning() is algorithm.aggregator.make_meaning() is None
            with pytest.raises(ConfigError, match="communicator=coded"):
                carrier_of(algorithm, Sums(t))
            with pytest.raises(CodingError, match="communicator=coded"):
                Sums(t).round(0, algorithm.users, algorithm.aggregator)


def test_a_coupling_that_is_learned_needs_all_ivs(random_problem) -> None:
    class Learned(Mean):
        def update_omega(self, W, Omega):
            return Omega

    problem = random_problem(0, regularizer=Learned(0.1)).problem
    algorithm = MOCHA(problem, SDCA())
    assert algorithm.users.make_meaning() is None
    with pytest.raises(ConfigError, match="mocha with Learned"):
        carrier_of(algorithm, Sums(any_r(problem.K, 3, 2, seed=1)))


@pytest.mark.parametrize(
    "name", ["mocha", "cocoa", "local", "fedu", "fedavg", "fedprox", "ditto", "pfedme", "scaffold", *learners.LAYERED]
)
def test_configurations(configure, name: str) -> None:
    cfg = configure(f"algorithm={name}", "K=5", "dataset.rows_per_user=20", "lam=0.37")
    algorithm = build_algorithm(cfg, build_problem(cfg, build_tasks(cfg)[0]))
    assert algorithm.describe()["algorithm"] == name
    before = algorithm.metrics()["primal"]
    assert play(algorithm, 0, 2).metrics()["primal"] < before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_learner
def test_on_a_gpu(random_problem, learner: str, where: str) -> None:
    here = play(make(random_problem, learner, where=where), 0, 3)
    of = here.problem
    there = Problem(of.everybody, Logistic(), Mean(0.05, 0.02), device="cuda")
    algorithm = play(made(learner, there, where), 0, 3)
    assert algorithm.W.is_cuda
    torch.testing.assert_close(algorithm.W.cpu(), here.W, rtol=0, atol=1e-5)
