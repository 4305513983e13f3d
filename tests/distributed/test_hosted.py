"""Users divided among processes: each with the rows of its own, and all numbers those of one process with all rows."""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import pytest
import torch

from hmtl.data import Preprocessing, Task, prepare
from hmtl.distributed.hosted import HostedUsers
from hmtl.distributed.outline import from_outline, outline, report_data, with_report_data
from hmtl.mtl import (
    MOCHA,
    SDCA,
    Algorithm,
    CoCoA,
    Ditto,
    FedAvg,
    FedU,
    Graph,
    Hinge,
    Local,
    LocalSGD,
    Mean,
    Participation,
    PFedMe,
    Problem,
    Squared,
    TaskRelationship,
    mlp,
    preprocessing_setup,
)

K, D, ROUNDS = 7, 5, 5
HOMES = [np.arange(3), np.arange(3, 5), np.arange(5, K)]
AWAY = Participation(dropout=0.3, low=0.4)
SGD = LocalSGD(step=0.1, epochs=2, batch=4)
Make = Callable[..., Algorithm]


def rows(regression: bool = False) -> list[Task]:
    """Tasks of very unequal size."""
    rng, made = np.random.default_rng(3), []
    for k in range(K):
        n = 3 + 4 * k
        x = rng.normal(2, 3, size=(n, D))
        y = x @ rng.normal(size=D) if regression else np.where(np.arange(n) % 2, 1.0, -1.0)
        made.append(Task(f"user {k}", *map(torch.from_numpy, (x, y, x[: k % 3], y[: k % 3]))))
    return made


def problem(tasks: Sequence[Task], regularizer: object, loss: object = None) -> Problem:
    return Problem(tasks, loss or Hinge(), regularizer)  # type: ignore[arg-type]


def dropping(d: int, C: int) -> torch.nn.Module:
    """Of a size at which rounding depends on how many there are."""
    return torch.nn.Sequential(
        torch.nn.Linear(d, 30), torch.nn.GELU(), torch.nn.Dropout(0.2), torch.nn.Linear(30, 30), torch.nn.Linear(30, C)
    )


LEARNERS: dict[str, Make] = {
    "mocha": lambda t, **o: MOCHA(problem(t, TaskRelationship(0.1)), SDCA(2.0), omega_every=2, participation=AWAY, **o),
    "graph": lambda t, **o: MOCHA(problem(t, Graph(0.1, neighbors=2)), SDCA(0.5), participation=AWAY, **o),
    "mocha, mean": lambda t, **o: MOCHA(problem(t, Mean(0.1)), SDCA(1.0), participation=AWAY, **o),
    "cocoa": lambda t, **o: CoCoA(problem(t, Mean(0.1)), SDCA(1.0), lam=0.1, **o),
    "local": lambda t, **o: Local(problem(t, Mean(0.1)), SDCA(1.0), lam=0.1, participation=AWAY, **o),
    "fedu, graph": lambda t, **o: FedU(problem(t, Graph(0.1, neighbors=1)), SGD, mlp, participation=AWAY, **o),
    "fedu, mean": lambda t, **o: FedU(problem(t, Mean(0.1)), SGD, torch.nn.Linear, participation=AWAY, **o),
    "fedavg": lambda t, **o: FedAvg(problem(t, Mean(0.1)), SGD, mlp, participation=AWAY, **o),
    "ditto": lambda t, **o: Ditto(problem(t, Mean(0.1)), SGD, mlp, lam=0.1, participation=AWAY, **o),
    "fedavg, dropout": lambda t, **o: FedAvg(problem(t, Mean(0.1)), SGD, dropping, participation=AWAY, **o),
    "ditto, dropout": lambda t, **o: Ditto(problem(t, Mean(0.1)), SGD, dropping, lam=0.1, participation=AWAY, **o),
    "pfedme, dropout": lambda t, **o: PFedMe(
        problem(t, Mean(0.1)), SGD, dropping, lam=1.0, eta=0.5, local_rounds=2, **o
    ),
    "pfedme": lambda t, **o: PFedMe(problem(t, Mean(0.1)), SGD, torch.nn.Linear, lam=1.0, eta=0.5, local_rounds=2, **o),
}
SUMS = ("mocha, mean", "cocoa", "fedu, mean", "fedavg", "ditto", "pfedme")


def parted(tasks: Sequence[Task], here: Sequence[int]) -> tuple[Task, ...]:
    """As a process knows them that has the rows of some: the others by what can be sent of them."""
    elsewhere = from_outline(outline(tasks))
    return tuple(task if k in here else elsewhere[k] for k, task in enumerate(tasks))


def set_up(hosts: Sequence[Algorithm], aggregating: Algorithm) -> None:
    """The set-up as it goes over the network."""
    pairs = [algorithm.setup() for algorithm in (*hosts, aggregating)]
    if pairs[-1] is None:
        return
    sides = [HostedUsers(pair[0], home) for pair, home in zip(pairs, HOMES, strict=False) if pair]
    told = [side.local_update(-1) for side in sides]
    assert np.array_equal(np.concatenate([users for users, _ in told]), np.arange(K))
    answers = pairs[-1][1].update(np.arange(K), torch.cat([facts for _, facts in told]))
    for side, home in zip(sides, HOMES, strict=True):
        side.receive(home, answers[torch.from_numpy(home)])


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "sums"), [*((name, False) for name in LEARNERS), *((name, True) for name in SUMS)], ids=str
)
def test_in_parts_as_in_one(name: str, sums: bool) -> None:
    """IVs, models, figures and state; some users drop out, some get no model."""
    tasks = rows()
    messages = "sums" if sums else "ivs"
    whole = LEARNERS[name](tasks, messages=messages)
    hosts = [LEARNERS[name](parted(tasks, home.tolist()), messages=messages) for home in HOMES]
    center = LEARNERS[name](parted(tasks, []), messages=messages)
    set_up(hosts, center)
    sides = [HostedUsers(host.users, home) for host, home in zip(hosts, HOMES, strict=True)]
    rng, waiting = np.random.default_rng(5), np.zeros(K, dtype=bool)
    for round in range(ROUNDS):
        idle = np.flatnonzero(waiting)
        users, ivs = whole.users.local_update(round, idle)
        parts = [side.local_update(round, np.union1d(idle, np.setdiff1d(np.arange(K), side.hosted))) for side in sides]
        assert np.array_equal(np.concatenate([part[0] for part in parts]), users)
        together = torch.cat([part[1] for part in parts])
        assert torch.equal(together, ivs)
        got = np.flatnonzero(rng.random(K) < 0.8) if whole.users.numbers else users
        got = got if name != "cocoa" else np.union1d(got, [home[0] for home in HOMES])  # each host knows the newest
        if whole.users.numbers:
            models = [learner.aggregator.update(users, each) for learner, each in ((whole, ivs), (center, together))]
            assert torch.equal(*models)
            models = [each.expand(K, -1)[torch.from_numpy(got)] for each in models]
        for side, home in ((whole.users, np.arange(K)), *zip(sides, HOMES, strict=True)):
            mine = np.intersect1d(got, home)
            side.commit(mine)
            if whole.users.numbers:
                side.receive(mine, models[0][torch.from_numpy(np.isin(got, mine))])
        waiting[:] = True
        waiting[got] = False
        measured = [host.users.measure() for host in hosts]
        merged = {part: torch.cat([each[part] for each in measured]) for part in measured[0]}
        blocks = (torch.cat(each) for each in zip(*(host.users.blocks() for host in hosts), strict=True))
        center.aggregator.load_figure_state(whole.aggregator.figure_state())
        assert center.figures(merged, blocks) == whole.metrics()
    for part, state in whole.users.state_dict().items():
        if state.ndim:
            assert torch.equal(torch.cat([host.users.state_dict()[part] for host in hosts]), state), part


def test_whoever_has_no_rows_can_report_all_the_same() -> None:
    """Scaling, targets for R², and what the set-up counts, of tasks that were preprocessed together."""
    tasks = prepare(rows(regression=True), Preprocessing(intercept=True, standardize="all", center="task"))
    known = from_outline(outline(tasks))
    told = [report_data(tasks[home[0] : home[-1] + 1], targets=True) for home in HOMES]
    merged = {part: torch.cat([each[part] for each in told]) for part in told[0]}
    here, there = (problem(each, Mean(0.1), Squared()) for each in (tasks, with_report_data(known, merged)))
    errors = torch.rand(K, dtype=torch.float64)
    for split in ("train", "test"):
        figures = here.figures(split, errors)
        assert f"{split}_r2" in figures
        assert there.figures(split, errors) == figures
    for one, other in zip(here.everybody, there.everybody, strict=True):
        assert (one.name, one.scaling.target_mean) == (other.name, other.scaling.target_mean)
        assert torch.equal(one.scaling.mean, other.scaling.mean)
        assert torch.equal(one.scaling.scale, other.scaling.scale)
        assert not other.is_local
    pairs = [preprocessing_setup(parted(tasks, home.tolist())) for home in HOMES]
    facts = torch.cat(list(chain.from_iterable([pair[0].local_update(-1)[1]] for pair in pairs if pair)))
    assert torch.equal(facts, preprocessing_setup(tasks)[0].local_update(-1)[1])  # type: ignore[index]
    assert preprocessing_setup(known)[0].local_update(-1)[1].shape == (0, facts.shape[1])  # type: ignore[index]
