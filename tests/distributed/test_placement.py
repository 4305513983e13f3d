"""Who plays which node, and user sides of several hosts: together they compute what one of all users computes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hmtl.data import Task
from hmtl.distributed.placement import HostedUsers, Placement, check_size
from hmtl.errors import ConfigError
from hmtl.mtl import (
    MOCHA,
    SDCA,
    Algorithm,
    CoCoA,
    Ditto,
    FedAdam,
    FedAvg,
    FedNova,
    FedRep,
    FedU,
    Graph,
    Hinge,
    Learner,
    Local,
    LocalNetworks,
    LocalSGD,
    Mean,
    NetworkAlgorithm,
    Participation,
    PFedMe,
    Problem,
    Regularizer,
    Scaffold,
    Squared,
    TaskRelationship,
    mlp,
)

K, D, ROUNDS = 7, 5, 3
HOMES = [np.arange(3), np.arange(3, 5), np.arange(5, K)]
AWAY = Participation(dropout=0.3, low=0.4)
SGD = LocalSGD(step=0.1, epochs=2, batch=4)
Make = Callable[..., Algorithm]


def make_tasks() -> list[Task]:
    """Tasks of very different sizes."""
    rng, tasks = np.random.default_rng(3), []
    for k in range(K):
        n = 3 + 4 * k
        x = rng.normal(2, 3, size=(n, D))
        y = np.where(np.arange(n) % 2, 1.0, -1.0)
        tasks.append(Task(f"user {k}", *map(torch.from_numpy, (x, y, x[: k % 3], y[: k % 3]))))
    return tasks


def problem(tasks: Sequence[Task], regularizer: object, loss: object = None) -> Problem:
    return Problem(tasks, loss or Hinge(), regularizer)  # type: ignore[arg-type]


def gelu(d: int, C: int) -> torch.nn.Module:
    """A network of a size at which rounding depends on the number of users in a batch."""
    return torch.nn.Sequential(torch.nn.Linear(d, 30), torch.nn.GELU(), torch.nn.Linear(30, 30), torch.nn.Linear(30, C))


def trained(
    learner: Learner,
    regularizer: Regularizer = Mean(0.1),  # noqa: B008, it is frozen
    make: Callable[..., torch.nn.Module] = mlp,
    participation: Participation = AWAY,
) -> Make:
    """Return what makes the algorithm of a learner, given tasks and messages."""

    def algorithm(tasks: Sequence[Task], **options: Any) -> NetworkAlgorithm:
        of = problem(tasks, regularizer)
        return NetworkAlgorithm(learner, of, SGD, make, participation=participation, **options)

    return algorithm


LEARNERS: dict[str, Make] = {
    "mocha": lambda t, **o: MOCHA(problem(t, TaskRelationship(0.1)), SDCA(2.0), omega_every=2, participation=AWAY, **o),
    "mocha, squared": lambda t, **o: MOCHA(problem(t, TaskRelationship(0.1), Squared()), SDCA(2.0), omega_every=2, **o),
    "graph": lambda t, **o: MOCHA(problem(t, Graph(0.1, neighbors=2)), SDCA(0.5), participation=AWAY, **o),
    "mocha, mean": lambda t, **o: MOCHA(problem(t, Mean(0.1)), SDCA(1.0), participation=AWAY, **o),
    "cocoa": lambda t, **o: CoCoA(problem(t, Mean(0.1)), SDCA(1.0), lam=0.1, **o),
    "local": lambda t, **o: Local(problem(t, Mean(0.1)), SDCA(1.0), lam=0.1, participation=AWAY, **o),
    "local, networks": trained(LocalNetworks()),
    "fedu, graph": trained(FedU(), Graph(0.1, neighbors=1)),
    "fedu, Ω": trained(FedU(), TaskRelationship(0.1)),
    "fedu, mean": trained(FedU(), make=torch.nn.Linear),
    "fedavg": trained(FedAvg()),
    "fedadam": trained(FedAdam()),
    "fednova": trained(FedNova()),
    "ditto": trained(Ditto(0.1)),
    "fedavg, gelu": trained(FedAvg(), make=gelu),
    "ditto, gelu": trained(Ditto(0.1), make=gelu),
    "fedrep": trained(FedRep()),
    "scaffold": trained(Scaffold()),
    "pfedme, gelu": trained(PFedMe(1.0, 0.5, 2), make=gelu, participation=Participation()),
    "pfedme": trained(PFedMe(1.0, 0.5, 2), make=torch.nn.Linear, participation=Participation()),
}
DUAL = ("mocha", "graph", "mocha, mean", "cocoa", "local")
"""Learners that give the same bits; networks trained by SGD round differently with other users in a batch."""
SUMS = ("mocha, mean", "cocoa", "fedu, mean", "fedavg", "ditto", "pfedme", "fedrep", "scaffold", "fedadam", "fednova")


def parted(tasks: Sequence[Task], here: Sequence[int]) -> tuple[Task, ...]:
    """Tasks with the rows of some users only."""
    return tuple(task if k in here else task.without_rows() for k, task in enumerate(tasks))


def set_up(hosts: Sequence[Algorithm], aggregating: Algorithm) -> None:
    """Exchange the set-up between hosts and aggregator."""
    pairs = [algorithm.setup() for algorithm in (*hosts, aggregating)]
    if pairs[-1] is None:
        return
    sides = [HostedUsers(pair[0], home) for pair, home in zip(pairs, HOMES, strict=False) if pair]
    contributions = [side.local_update(-1) for side in sides]
    assert np.array_equal(np.concatenate([users for users, _ in contributions]), np.arange(K))
    answers = pairs[-1][1].update(np.arange(K), torch.cat([facts for _, facts in contributions]))
    for side, home in zip(sides, HOMES, strict=True):
        side.receive(home, answers[torch.from_numpy(home)])


def check_equal(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    largest = max([1.0, *theirs.double().abs().flatten().tolist()])
    tolerance = {"rtol": 0, "atol": 0} if name in DUAL else {"rtol": 1e-6, "atol": 1e-6 * largest}
    torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sums"), [*((name, False) for name in LEARNERS), *((name, True) for name in SUMS)], ids=str
)
def test_hosts_compute_what_one_process_computes(name: str, sums: bool) -> None:
    """IVs, models, figures and state; some users drop out, and some receive no model."""
    tasks = make_tasks()
    messages = "sums" if sums else "ivs"
    whole = LEARNERS[name](tasks, messages=messages)
    hosts = [LEARNERS[name](parted(tasks, home.tolist()), messages=messages) for home in HOMES]
    center = LEARNERS[name](parted(tasks, []), messages=messages)
    center.problem.everybody = tasks  # with targets, which R² needs; hosts send them at the start
    set_up(hosts, center)
    sides = [HostedUsers(host.users, home) for host, home in zip(hosts, HOMES, strict=True)]
    rng, waiting = np.random.default_rng(5), np.zeros(K, dtype=bool)
    for round in range(ROUNDS):
        idle = np.flatnonzero(waiting)
        users, ivs = whole.users.local_update(round, idle)
        parts = [side.local_update(round, np.union1d(idle, np.setdiff1d(np.arange(K), side.hosted))) for side in sides]
        assert np.array_equal(np.concatenate([part[0] for part in parts]), users)
        ivs, gathered = ivs[:], torch.cat([part[1][:] for part in parts])
        check_equal(name, gathered, ivs)
        counted = np.flatnonzero(rng.random(K) < 0.8) if whole.users.numbers else users
        if name == "cocoa":  # every host has to know the newest of the shared model
            counted = np.union1d(counted, [home[0] for home in HOMES])
        if whole.users.numbers:
            models = [learner.aggregator.update(users, each) for learner, each in ((whole, ivs), (center, gathered))]
            check_equal(name, *models)
            models = [each.expand(K, -1)[torch.from_numpy(counted)] for each in models]
        for side, home in ((whole.users, np.arange(K)), *zip(sides, HOMES, strict=True)):
            own = np.intersect1d(counted, home)
            side.commit(own)
            if whole.users.numbers:
                side.receive(own, models[0][torch.from_numpy(np.isin(counted, own))])
        waiting[:] = True
        waiting[counted] = False
        measured = [host.users.measure() for host in hosts]
        merged = {part: torch.cat([each[part] for each in measured]) for part in measured[0]}
        blocks = (torch.cat(each) for each in zip(*(host.users.blocks() for host in hosts), strict=True))
        center.aggregator.load_figure_state(whole.aggregator.figure_state())
        figures = center.figures(merged, blocks)
        assert figures == (whole.metrics() if name in DUAL else pytest.approx(whole.metrics(), rel=1e-6))
    for part, state in whole.users.state_dict().items():
        if state.ndim:
            check_equal(name, torch.cat([host.users.state_dict()[part] for host in hosts]), state)


def test_nodes_are_numbered_as_server_relays_hosts_and_hosts_share_users_evenly() -> None:
    placement = Placement(rank=5, size=6, K=7, H=3)
    assert placement.names == ["server", "relay 0", "relay 1", "relay 2", "host 0", "host 1"]
    assert (placement.name, placement.users.tolist()) == ("host 1", [4, 5, 6])
    assert placement.users_of("host 0").tolist() == [0, 1, 2, 3]
    assert not len(placement.users_of("relay 1"))


@pytest.mark.parametrize("size", [4, 12])
def test_too_few_or_too_many_processes_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="5 to 11"):
        check_size(size, K=7, H=3)
