"""Random worlds in which any message may be lost: who counts, what aggregators hold, and that rounds go on.

Some rounds are lossy, the next ones are clean. The network is uneven, aggregators are those of FedAvg and MOCHA, and
what they have to hold is computed here, from what users sent and committed.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from adding import owed
from apart import Apart
from torch import Tensor

from hmtl.communication import SumsOfRows
from hmtl.communication.flows.ivs import IVs
from hmtl.communication.flows.recipe import Recipe
from hmtl.communication.messages import ATTENDANCE, DIGESTS, IVS, SERVER, VERDICT, Message
from hmtl.communication.nodes.aggregation import Aggregation
from hmtl.communication.secure.neighbors import Secure
from hmtl.communication.terms import Words
from hmtl.errors import ConfigError
from hmtl.mtl.algorithms.averages import Average, AverageAggregator, Weights
from hmtl.mtl.algorithms.mocha_aggregator import DualAggregator, DualSettings, SummedDualAggregator
from hmtl.mtl.learners.base import Section
from hmtl.mtl.learners.fedavg import FedAvg
from hmtl.mtl.participation import Participation
from hmtl.mtl.regularizers import Mean
from hmtl.mtl.sums import Grid, LazyRows, fitting
from hmtl.testing.scripted import ScriptedUsers
from hmtl.topology import Topology

LOSSY, CLEAN, M = 5, 4, 6
SETTINGS = DualSettings(0, False, "user", 1.0, None, 0, Participation())
GRID = Grid(30, 16)


class Noted(LazyRows):
    """Rows, and what takes what aggregators read of some of them."""

    def __init__(self, rows: Tensor, note: Callable[[slice, Tensor], Tensor]) -> None:
        self.rows, self.note, self.shape, self.dtype, self.device = rows, note, rows.shape, rows.dtype, rows.device

    def further(self, some: slice) -> Callable[[Tensor], Tensor]:
        return lambda read: self.note(some, read)

    def _block(self, users: slice, columns: slice) -> Tensor:
        return self.rows[users, columns]


class Sending(ScriptedUsers):
    """Users who note what aggregators read of the rows that they send, by round and user; terms, if these travel."""

    common: torch.dtype | None = None

    def __init__(self, *args: Any, changes: bool) -> None:
        super().__init__(*args)
        self.row_layout = replace(
            self.row_layout, changes=changes, answers=(0, 1, 2)
        )  # real aggregators return no more
        self.read: dict[tuple[int, int], Tensor] = {}

    def hold_meaning(self) -> Words:
        return Words(self.row_layout.numbers, common=self.common)

    def local_update(self, round: int, idle: np.ndarray = np.empty(0, np.int64)) -> tuple[np.ndarray, Any]:  # noqa: B008
        users, rows = super().local_update(round, idle)
        self.note(round, users, rows)
        return users, Noted(rows, lambda some, read: self.note(round, users[some], read))

    def note(self, round: int, users: np.ndarray, read: Tensor) -> Tensor:
        self.read |= {(round, k): row.clone() for k, row in zip(users.tolist(), read, strict=True)}
        return read[:, :0]  # there are no further numbers

    def receive(self, users: np.ndarray, models: Tensor) -> None:
        super().receive(users, models.clone())


@dataclass
class World:
    """A network of uneven hosts and relays, and a learner that is played on it."""

    fresh: Callable[[], Apart]
    sides: list[Sending]
    weights: Tensor
    learner: str

    def __post_init__(self) -> None:
        self.apart = self.fresh()

    def resume(self) -> None:
        """Go on with other nodes that have loaded what these would have saved."""
        old, self.apart = self.apart, self.fresh()
        self.apart.links.shuffle = old.links.shuffle
        nodes = [(*each.hosts, *each.relays, each.server, *each.made) for each in (self.apart, old)]
        for ours, theirs in zip(*nodes, strict=True):
            if isinstance(ours, Aggregation):
                ours.aggregator.load_state_dict(saved(theirs.aggregator.state_dict()))
            ours.load_state_dict(saved(theirs.state_dict()))

    @property
    def read(self) -> dict[tuple[int, int], Tensor]:
        return {at: row for side in self.sides for at, row in side.read.items()}

    @property
    def committed(self) -> set[tuple[int, int]]:
        return {pair for side in self.sides for pair in side.committed}

    def check_state(self, aggregator: Any, counted: set[tuple[int, int]]) -> None:
        """Compare an aggregator's state with the rows that counted."""
        rounds = defaultdict[int, list[int]](list)
        for round, k in sorted(counted):
            rounds[round].append(k)
        if self.learner == "fedavg":
            S, P = np.zeros(M, np.int64), float(self.weights.sum())
            for round, users in rounds.items():
                terms = sum(self.read[round, k].numpy() for k in users)
                present = float(self.weights[users].sum())
                S += terms if present == P else np.rint(terms.astype(float) * (P / present)).astype(np.int64)
            assert aggregator.S[0].tolist() == S.tolist()
        elif self.learner == "coupled sums":
            total = sum((self.read[at] for at in counted), torch.zeros(M, dtype=torch.int64))
            rest = owed(self.apart.hosts, counted) if self.apart.hosts[0].transport.recipe.bits else 0
            assert (aggregator.S[0] + rest).tolist() == total.tolist()
        else:
            V = np.zeros((self.apart.t.K, M))
            for round, users in rounds.items():
                for k in users:
                    V[k] += self.read[round, k].numpy()
            assert np.array_equal(aggregator.V.numpy(), V)


def dual_aggregator(K: int) -> DualAggregator:
    return DualAggregator(Mean(0.1, 0.01), torch.zeros(K, M, dtype=torch.float64), SETTINGS)


def make_world(seed: int) -> World:
    """Return a random world."""
    rng = np.random.default_rng(seed)
    learner = ("fedavg", "fedavg", "coupled sums", "coupled ivs", "coupled ivs")[seed % 5]
    K, H = int(rng.integers(3, 10)), int(rng.integers(1, 6))
    G = (rng.random((H, K)) < rng.choice([0.2, 0.5, 0.8], (H, 1))).astype(int)  # some relays hear few users
    G[rng.integers(H, size=K), np.arange(K)] = 1
    G[0, 0] = 1
    where = ("server", "all", "one", "beside")[int(rng.integers(4))]
    aggregators: Any = {"one": [0], "beside": [SERVER, 0]}.get(where, where)
    weights = torch.from_numpy(rng.uniform(0.5, 3.0, (K, 1)))
    few = bool(rng.integers(2))
    recipe: Recipe = SumsOfRows()
    if learner == "fedavg" and K > 4 and rng.integers(2):
        with suppress(ConfigError):  # too many users have one relay
            Secure(0.25).check(K, G)
            recipe = SumsOfRows(secure=Secure(0.25))
    elif learner == "coupled sums":
        recipe = SumsOfRows(wire="int4" if few else None)
    elif learner == "coupled ivs":
        recipe = IVs(aggregators=aggregators, wire="int4" if few else None, max_pieces=2, generation=9)

    def make() -> Any:
        if learner == "fedavg":
            average = Average({"w": Section(torch.zeros(M, dtype=torch.float64))}, GRID)
            return AverageAggregator(average, FedAvg(), Weights(weights, float(weights.sum())), None)
        dual = dual_aggregator(K)
        return dual if learner == "coupled ivs" else SummedDualAggregator(dual.coupling, M, SETTINGS, GRID, K)

    rounds = LOSSY + CLEAN
    values = torch.from_numpy(rng.normal(size=(rounds, K, M)))
    if learner != "coupled ivs":
        values = GRID.rounded(values * (weights * fitting(float(weights.sum())) if learner == "fedavg" else 1))
    gone = float(rng.choice([0.0, 0.3]))
    absent = [set(np.flatnonzero(rng.random(K) < gone * (n < LOSSY)).tolist()) for n in range(rounds)]
    home = rng.integers(int(rng.integers(1, 4)), size=K)
    members = [np.flatnonzero(home == n).tolist() for n in np.unique(home)]
    sides = [Sending(list(values), absent, 0, mine, changes=True) for mine in members]
    shared = bool(rng.integers(2))
    return World(lambda: Apart(Topology(G), sides, recipe, make=make, shared=shared), sides, weights, learner)


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint returns it."""
    content = BytesIO()
    torch.save(state, content)
    content.seek(0)
    loaded: dict[str, Any] = torch.load(content, weights_only=True)
    return loaded


def only(message: Message, kept: np.ndarray) -> Message:
    """The message with some of its rows."""
    users = message.of_users()[kept]
    single = len(message) < len(message.of_users())  # one row for all users
    at = message.at if single else message.rows()[torch.from_numpy(kept)]
    links = message.links if np.ndim(message.links) == 0 else users
    return replace(message, users=users, at=at, links=links)


def faults(seed: int, rate: float, kinds: frozenset[str] | None) -> Callable[[str, Message], Message | None]:
    """Return a change of messages that loses those of some kinds, or single rows of users."""
    rng = np.random.default_rng([seed, 1])

    def change(node: str, message: Message) -> Message | None:
        if kinds is not None and message.kind not in kinds:
            return message
        if rng.random() < rate:
            return None
        if message.kind == IVS and node.startswith("relay"):
            return only(message, np.flatnonzero(rng.random(len(message)) >= rate))
        return message

    return change


def play(seed: int) -> int:
    """Play a world, and return in how many rounds nobody counted."""
    world, rng = make_world(seed), np.random.default_rng([seed, 2])
    apart, counted, empty = world.apart, set[tuple[int, int]](), 0
    recipe, resumes = apart.hosts[0].transport.recipe, int(rng.integers(2 * LOSSY))
    apart.links.shuffle = np.random.default_rng([seed, 3]).permutation
    rate = float(rng.choice([0.1, 0.25, 0.5]))
    kinds = (None, None, frozenset({VERDICT}), frozenset({ATTENDANCE, VERDICT}), frozenset({DIGESTS, VERDICT}))
    fault, hosts = faults(seed, rate, kinds[int(rng.integers(len(kinds)))]), {host.name: host for host in apart.hosts}

    def arrives(node: str, message: Message) -> Message:
        if node not in hosts or message.users is None:
            return message
        return only(message, np.flatnonzero(np.isin(message.users, hosts[node].members)))  # as between processes

    def change(node: str, message: Message) -> Message | None:
        lossy = fault(node, message)
        return lossy and arrives(node, lossy)

    for round in range(LOSSY + CLEAN):
        if round == resumes:
            world.resume()
        apart, lossy = world.apart, round < LOSSY
        away = set(np.flatnonzero(rng.random(apart.t.H) < 0.1).tolist()) if lossy else set()
        if lossy:
            apart.play(round, away, change)
        else:
            apart.play(round, change=arrives)
        if not apart.server.empty:
            counted |= {(round, k) for k in apart.server.attendance.users.tolist()}
        empty += apart.server.empty
        assert world.committed <= counted
        if apart.server.version:
            world.check_state(apart.newest.aggregator, counted)
        if round > LOSSY - (recipe.secure is None):  # those who wait for models may be too many for a secure sum
            assert not apart.server.empty, f"round {round} is clean, but empty"
        if round >= LOSSY + 2:
            assert apart.server.attendance.users.tolist() == [*range(apart.t.K)]
    assert world.committed == counted
    assert not any(side.sent for side in world.sides)
    last = [seat for seat in apart.seats() if seat.version == apart.server.version]
    assert len(last) >= 1
    for seat in last:
        world.check_state(seat.aggregator, counted)
    return empty


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 15))])
def test_no_lost_message_stops_a_run_or_falsifies_a_state(seed: int) -> None:
    play(seed)


@pytest.mark.parametrize(
    ("wire", "shared"),
    [
        (None, True),
        ("int4", False),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((None, False), ("int4", True))),
    ],
)
@pytest.mark.parametrize(
    ("aggregators", "lost"),
    [([0], {0}), ("all", {0, 1, 2}), ("all", {0}), ("all", {1}), ([SERVER, 0, 1], {0}), ([SERVER, 0, 1], {0, 1})],
)
def test_an_update_without_a_verdict_is_settled_by_the_next_attendance(
    aggregators: Any, lost: set[int], wire: str | None, shared: bool
) -> None:
    """Users 0 and 4 are heard by one relay each, and the attendance after the verdict is lost, too."""
    t, K, rng = Topology([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 0, 1, 1, 0]]), 5, np.random.default_rng(3)
    sides = [Sending([*torch.from_numpy(rng.normal(size=(6, K, M)))], [set()] * 6, 0, changes=True)]

    def fresh() -> Apart:
        recipe = IVs(aggregators=aggregators, wire=wire)
        return Apart(t, sides, recipe, make=lambda: dual_aggregator(K), shared=shared)

    world, counted = World(fresh, sides, torch.ones(K, 1), "coupled ivs"), set[tuple[int, int]]()
    names = {f"relay {i}" for i in lost}
    for round, kind in enumerate((None, None, VERDICT, ATTENDANCE, None, None)):
        before = len(world.committed)
        world.apart.play(
            round, change=lambda node, message, kind=kind: None if message.kind == kind and node in names else message
        )
        if not world.apart.server.empty:
            counted |= {(round, k) for k in world.apart.server.attendance.users.tolist()}
        world.check_state(world.apart.newest.aggregator, counted)
        if round in (2, 3, 4):
            world.resume()
    assert len(world.committed) - before == K
    assert world.committed == counted
    assert {(2, 0), (2, 4)} <= counted


@pytest.mark.slow
def test_400_worlds() -> None:
    emptied = sum(play(seed) for seed in range(1000, 1400))
    assert emptied > 100, "so much is lost that rounds are in vain"
