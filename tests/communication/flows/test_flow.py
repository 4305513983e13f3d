"""Flows are data: they print as tables, and the ledger counts on each link what their steps say."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from adding import Terms, Total, terms
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hmtl.coding import MEDIA, SumCode
from hmtl.communication import TIERS, Communicator, Network
from hmtl.communication.accounting.network import UPLINKS
from hmtl.communication.attendance import Report, decide
from hmtl.communication.flows.flow import Flow
from hmtl.communication.flows.ivs import Coded, Forwarded, IVs, OwnModels
from hmtl.communication.flows.planner import SUMS, Planner
from hmtl.communication.flows.recipe import Recipe, flow_of
from hmtl.communication.flows.sums import Added, CommonRow, SumsOfRows
from hmtl.communication.messages import SERVER
from hmtl.communication.terms import Words
from hmtl.io.arrays import Ids
from hmtl.io.row_layout import RowLayout
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers, same_bits
from hmtl.testing.topologies import moving, topologies
from hmtl.topology import Moving, Topology, any_r, symmetric

ALL = "0 1 2 3 4"
ROUNDS = 3


@pytest.mark.parametrize(
    ("recipe", "preferred", "server", "rows"),
    [
        (IVs(), (), True, [("Forwarded", ALL, "", "server")]),
        (IVs(), (1, 3), False, [("Coded × 2", ALL, "1 3", "1 3"), ("Completed", "", "", "1 3")]),
        (
            IVs(),
            (1, 3),
            True,
            [
                ("Forwarded", ALL, "", "server"),
                ("Coded × 2", "", "1 3", "server 1 3"),
                ("Completed", "", "", "server 1 3"),
            ],
        ),
        (SumsOfRows(), (), True, [("Added", "0 1 2", "", "server")]),
    ],
)
def test_a_flow_prints_as_a_table(
    recipe: Recipe, preferred: tuple[int, ...], server: bool, rows: list[tuple[str, ...]]
) -> None:
    t = symmetric(K=20, H=5, r=3)
    planner = Planner(t, Network(), preferred, sums="whole", server=server)
    reports = {i: Report(np.array(t.N(i)), 0, 64, 0) for i in range(t.H)}
    flow = flow_of(
        recipe.transport(RowLayout.zeros(8), t.K), planner, decide(t, reports, 0, preferred, server), (64, 8)
    )
    head, *lines = str(flow).splitlines()
    ends = [head.index(title) for title in ("step", "relays send", "relays receive", "learn")]
    cells = [tuple(line[i:j].strip() for i, j in zip(ends, [*ends[1:], None], strict=True)) for line in lines]
    assert cells == rows


class Common(Terms):
    """Users who receive sums as a type of floats, if there is one."""

    kind: torch.dtype | None = None

    def hold_meaning(self) -> Words:
        return Words(self.row_layout.numbers, self.row_layout.further, self.row_layout.further + 1, self.kind)


class Totals(Total):
    """Knows what its users' rows mean."""

    kind: torch.dtype | None = None

    def hold_meaning(self) -> Words:
        return Words(self.state["last"].shape[1] - 1, 1, 2, self.kind)


@dataclass(frozen=True)
class Case:
    """A network, and who is absent in each round."""

    contacts: Topology | Moving
    network: Network
    absent: list[set[int]]
    away: list[set[int]]

    def check(
        self,
        recipe: Recipe,
        users: ScriptedUsers,
        aggregator: ScriptedAggregator,
        models_of: Callable[[int, Ids], Tensor],
    ) -> None:
        """Compare each link's payload with the flow, and the models with those of the users who were heard."""
        made, K, H = Communicator(self.contacts, self.network, recipe), self.contacts.K, self.contacts.H
        for round in range(ROUNDS):
            empty = made.round(round, users, aggregator, self.away[round]).empty
            near = {k for k in range(K) if set(self.contacts.at(round).relays_of(k)) - self.away[round]}
            heard = np.array(sorted(near - self.absent[round] - users.idle), dtype=np.int64)
            assert users.models.keys() == (set() if empty else near)
            if not empty:
                models = models_of(round, heard)
                assert all(same_bits(model, models[k]) for k, model in users.models.items())
            said = stated(made._server.flow, 8 * users.row_layout.numbers, K, H)
            for tier in TIERS[1:]:
                payload = made.ledger.per_link(tier, round)[:, 0]
                np.testing.assert_array_equal(payload, 0 if empty else 8 * said[tier])


def stated(flow: Flow, nbytes: int, K: int, H: int) -> dict[str, NDArray[np.int64]]:
    """Return the bytes of payload on each link that the steps of a flow say; users' rows of IVs have `nbytes`."""
    up, down, last = (np.zeros(n, np.int64) for n in (H, H + 1, K + H))
    for step in flow.collect:
        if isinstance(step, Forwarded):
            np.add.at(up, step.forwarders[step.forwarders >= 0], nbytes)
        if isinstance(step, Coded) and step.segment.part == "payload":
            width = step.segment.width * len(step.segment.blocks)
            for i in step.senders:
                up[i] += width * len(step.views[i].encoder)
            for _, link, rows in step.copies:
                down[link] += width * rows
        if isinstance(step, Added):
            up += share_nbytes(step.code, step.sums.L, step.sums.bits) * np.bincount(step.code.owners, minlength=H)
    delivery = flow.delivery
    if isinstance(delivery, OwnModels):
        last[:K][delivery.serving >= 0] = nbytes
        np.add.at(down, delivery.serving[delivery.via_server], nbytes)
        np.add.at(up, delivery.carriers[delivery.carriers >= 0], nbytes)
    if isinstance(delivery, CommonRow):
        code, L, bits = delivery.code, delivery.formats.L, next(iter(delivery.formats.down.values())).bits
        share, shares = share_nbytes(code, L, bits), np.bincount(code.owners, minlength=H)
        for relays, link in delivery.copies:
            down[link] += share * shares[relays[0]] if delivery.splits else L * bits // 8
        if delivery.last_medium == "broadcast":
            last[K:] = share * shares
        else:  # the shares of each user's set
            last[:K] = share * code.pieces * (code.of_user >= 0)
    return dict(zip(TIERS[1:], (up, down, last), strict=True))


def share_nbytes(code: SumCode, L: int, bits: int) -> int:
    """Return the bytes of a share: as many words as in a whole number of stretches, without gaps."""
    words = code.bits * -(-L // (code.pieces * code.bits))
    return -(-words * bits // 8)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw users who move or do not, and any media and uplinks."""
    regular = st.builds(any_r, st.integers(10, 60), st.integers(4, 8), st.integers(2, 4), seed=st.integers(0, 99))
    contacts = draw(st.one_of(topologies(max_K=60), regular, moving(rounds=ROUNDS)))
    bps = draw(st.sampled_from((None, (1e8, 2e8, 5e7, 1e8, 1e7, 1e8, 3e8, 1e8)[: contacts.H])))
    medium, last_hop, uplink = (draw(st.sampled_from(choices)) for choices in (MEDIA, MEDIA, UPLINKS))
    network = Network(medium=medium, last_hop=last_hop, uplink=uplink, uplink_bps=bps)
    rng, gone = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.sampled_from((0.0, 0.2, 0.5)))
    sizes = contacts.K, contacts.H
    return Case(contacts, network, *([set(np.flatnonzero(rng.random(n) < gone)) for _ in range(ROUNDS)] for n in sizes))


@pytest.mark.parametrize("scheme", ["uncoded", "optimal", "paper", "equal"])
@given(
    case=cases(),
    choice=st.sampled_from(("auto", "all", "server", "some", "server beside some")),
    some=st.sets(st.integers(0, 7), min_size=1),
    max_pieces=st.integers(1, 8),
    working_set=st.sampled_from((1, 1 << 20)),
    m=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_links_carry_what_the_steps_of_a_flow_say(
    scheme: str, case: Case, choice: str, some: set[int], max_pieces: int, working_set: int, m: int, seed: int
) -> None:
    K, relays = case.contacts.K, sorted({i % case.contacts.H for i in some})
    aggregators = {"some": relays, "server beside some": [SERVER, *relays]}.get(choice, choice)
    ivs, expected = [random_numbers(seed + n, K, m + 1, None) for n in range(ROUNDS)], ScriptedAggregator(K, m + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmtl.communication.flows.pieces.WORKING_SET", working_set)
        case.check(
            IVs(scheme, max_pieces=max_pieces, aggregators=aggregators),
            ScriptedUsers(ivs, case.absent, 1),
            ScriptedAggregator(K, m + 1),
            lambda round, heard: expected.update(heard, ivs[round][heard].clone()),
        )


@given(
    case=cases(),
    sums=st.sampled_from(SUMS),
    kind=st.sampled_from((None, torch.float32)),
    m=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_links_carry_what_the_steps_of_sums_say(
    case: Case, sums: str, kind: torch.dtype | None, m: int, seed: int
) -> None:
    K = case.contacts.K
    rows, expected = [terms(seed + n, K, m + 1) for n in range(ROUNDS)], Totals(m + 1)
    users, total = Common(rows, case.absent), Totals(m + 1)
    users.kind = total.kind = kind

    def models_of(round: int, heard: Ids) -> Tensor:
        models = expected.update(heard, rows[round][heard])
        return (models if kind is None else models.to(kind)).expand(K, -1)

    case.check(SumsOfRows(sums=sums), users, total, models_of)
