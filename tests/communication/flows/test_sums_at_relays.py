"""Sums that relays learn, between nodes that share no more than planners: what each node gets to see, loads, faults."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from adding import Terms, Total, owed, terms
from apart import Apart
from changed import flipped, poisoned
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from hmtl.coding import Aggregators, sum_code
from hmtl.communication import TIERS, Network, Sums, SumsOfRows
from hmtl.communication.flows.planner import SUMS
from hmtl.communication.messages import BROADCAST, DIGESTS, IVS, MODELS, REPORT, SERVER, STATE, VERDICT, Message
from hmtl.communication.rounding_of_sums import FewBits
from hmtl.errors import CodingError
from hmtl.testing.topologies import moving, topologies
from hmtl.topology import Contacts, Topology, symmetric

M = 6  # numbers of `terms`, one further number beside them
BETWEEN = (IVS, BROADCAST, STATE, DIGESTS, VERDICT)
media = st.sampled_from(("broadcast", "unicast"))


def covering(t: Topology, rng: np.random.Generator) -> tuple[int, ...]:
    """Relays that together hear everybody, in any number."""
    chosen: list[int] = []
    for i in rng.permutation(t.H).tolist():
        if not t.G[chosen].any(axis=0).all():
            chosen.append(i)
    return tuple(sorted({*chosen, *np.flatnonzero(rng.random(t.H) < 0.2).tolist()}))


@examples(20)
@given(
    t=topologies(max_H=6, max_K=20),
    medium=media,
    last_hop=media,
    sums=st.sampled_from(SUMS),
    bits=st.sampled_from((None, 2, 4)),
    gone=st.sampled_from((0.0, 0.2, 0.5)),
    lost=st.sampled_from((0.0, 0.1, 0.4)),
    fault=st.sampled_from((0.0, 0.05)),
    seed=st.integers(0, 10**6),
)
def test_all_terms_that_counted_reach_all_users_within_range(
    t: Topology,
    medium: str,
    last_hop: str,
    sums: str,
    bits: int | None,
    gone: float,
    lost: float,
    fault: float,
    seed: int,
) -> None:
    """Users and relays come and go; terms, rows, states and verdicts are lost; what relays cannot know is poisoned."""
    rng, rounds = np.random.default_rng(seed), 6
    absent = [set(np.flatnonzero(rng.random(t.K) < gone).tolist()) for _ in range(rounds)]
    ivs = [terms(seed + n, t.K) for n in range(rounds)]
    half = [range(0, t.K, 2), range(1, t.K, 2)] if t.K > 1 else [range(t.K)]
    sides = [Terms(ivs, absent, mine) for mine in half]
    recipe = SumsOfRows(wire=bits and f"int{bits}", sums=sums, aggregators=list(covering(t, rng)))
    apart = Apart(t, sides, recipe, Network(medium=medium, last_hop=last_hop))
    true, counted, versions, latest = torch.zeros(M + 1, dtype=torch.int64), set[tuple[int, int]](), [0] * t.H, 0
    waiting, releases = set[int](), 0
    for round in range(rounds):
        away = set(np.flatnonzero(rng.random(t.H) < gone).tolist())
        arrives, seen = (t.G == 1) & (rng.random(t.G.shape) >= lost), defaultdict(list)
        faults, poison = np.random.default_rng([seed, round]), poisoned(t, arrives)

        def change(node: str, message: Message, seen=seen, poison=poison, faults=faults) -> Message | None:
            between = SERVER in (node, message.sender) and message.kind in BETWEEN
            if between and faults.random() < fault:
                return None
            seen[node, message.kind].append(message)
            return poison(node, message)

        apart.play(round, away, change)
        server, there = apart.server, [i for i in range(t.H) if i not in away]
        sent = set(range(t.K)) - absent[round] - waiting
        heard = server.attendance.users.tolist()
        released, before, latest = server.version > latest, latest, server.version
        releases += released
        if not fault:
            assert heard == sorted(k for k in sent if arrives[there, k].any())
            assert released == any(versions[i] == before for i in there)
        if released:
            true, counted = true + ivs[round][heard].sum(0), counted | {(round, k) for k in heard}
        versions = [relay.version for relay in apart.relays]
        if releases:  # somebody has the present state, even if no verdict arrived
            S = apart.total.state["last"]
            rest = owed(apart.hosts, counted) if bits else 0
            assert torch.equal(S[0, :M] + rest, true[:M])
            assert int(S[0, M]) == int(true[M]), "further numbers travel as they are"
        got = {k: model.tolist() for side in sides for k, model in side.models.items()}
        near = {k for k in range(t.K) if t.G[there, k].any()}
        assert set(got) <= (near if released else set())
        if got:
            expected = [*apart.total.state["last"][0].tolist(), releases]
            assert all(model == expected for model in got.values())
        if released and not fault and not bits:
            assert set(got) == near
        waiting = {int(k) for host in apart.hosts for k in host.members if host.waiting[k]}
        assert {kind for node, kind in seen if node == SERVER} <= {REPORT, IVS, STATE, DIGESTS, MODELS}
        assert all(message.users is None and len(message) == 1 for message in seen[SERVER, IVS])
        if released and not fault:
            idle = [relay for relay in apart.relays if relay.i not in server.attendance.aggregators]
            assert not any(seen[relay.name, BROADCAST] or len(relay.aggregation.ivs) for relay in idle)
            _check_loads(apart, round, near, medium, last_hop, sums)
    committed = {pair for side in sides for pair in side.committed}
    pending = {(at, k) for side in sides for k, at in side.sent.items()}
    assert committed == counted - pending
    assert not committed & {pair for side in sides for pair in side.dropped}


def _check_loads(apart: Apart, round: int, near: set[int], medium: str, last_hop: str, sums: str) -> None:
    """Uplink and downlink carry the terms apart, and a row for users whom no aggregator hears."""
    attendance, ledger, formats = apart.server.attendance, apart.links.ledger, apart.relays[0].recipe.formats
    t, A, heard = attendance.topology, list(attendance.aggregators), attendance.heard
    known_by_all = heard.G[A].all(axis=0)
    sent = heard.restricted(users=np.flatnonzero(~known_by_all))
    unreached = [k for k in near if not t.G[A, k].any()]
    if isinstance(formats, FewBits):
        return
    row = 64 * formats.L
    code = sum_code(sent, None, 1 if sums == "whole" else 8, formats.L if sums == "auto" else 0)
    up = code.load * code.padding(formats.L) + bool(unreached)
    assert ledger.bits("relays_to_server", round=round).payload == pytest.approx(row * up)
    down = ledger.bits("server_to_relays", round=round).payload / row
    if medium == "broadcast":
        assert down == bool(sent.present) + bool(unreached)
    elif not unreached:
        assert down == len(A) * bool(sent.present)
    last = ledger.bits("relays_to_users", round=round).payload / row
    if last_hop == "unicast":
        assert last == len(near)
    elif not unreached:
        assert last == sum_code(t.restricted(relays=A), None, 1).load


@examples(15)
@given(
    contacts=moving(),
    sums=st.sampled_from(SUMS),
    medium=media,
    last_hop=media,
    wire=st.sampled_from((None, "int4")),
    aggregators=st.sampled_from(("auto", "all", "server")),
)
def test_sums_of_users_who_move(
    contacts: Contacts, sums: str, medium: str, last_hop: str, wire: str | None, aggregators: Aggregators
) -> None:
    """Rows reach users whom no aggregator hears, and loads are those of the formula: 840 numbers need no padding."""
    ivs, network = [terms(n, contacts.K, 841) for n in range(4)], Network(medium=medium, last_hop=last_hop)
    users, total = Terms(ivs, [set()] * 4), Total(841)
    made = Sums(contacts, network, wire, sums=sums, aggregators=aggregators)
    expected, all_aggregated = torch.zeros(841, dtype=torch.int64), True
    for round in range(4):
        outcome = made.round(round, users, total)
        reached = set(contacts.at(round).present)
        all_aggregated &= not outcome.empty and not users.idle
        expected += ivs[round][outcome.users].sum(0)
        if wire is None:
            assert total.state["last"][0].tolist() == expected.tolist()
        if not outcome.empty and wire is None:
            assert set(users.models) == reached
        assert all(model[:-1].tolist() == total.state["last"][0].tolist() for model in users.models.values())
    described = made.describe()
    for tier, bound in described["bounds"].items():
        assert bound <= described["loads_theory"][tier] + 1e-8
        if all_aggregated and wire is None and all(len(contacts.at(n).present) == contacts.K for n in range(4)):
            assert described["loads"][tier] == pytest.approx(described["loads_theory"][tier], rel=1e-6)


@pytest.mark.parametrize(("medium", "down"), [("broadcast", 1), ("unicast", 2)])
def test_a_row_passes_the_server_for_users_whom_no_aggregator_hears(medium: str, down: int) -> None:
    """Relay 0 hears everybody at first; then it misses users 1 and 2, whom relays 1 and 2 hear."""
    first, then = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1]]), np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    made = Sums(Contacts([0, 1], [first, then]), Network(medium=medium))
    users, total = Terms([terms(n, 3, 91) for n in range(2)], [set()] * 2), Total(91)
    assert made.planner.preferred == (0,)
    for round in range(2):
        made.round(round, users, total)
        assert all(model[:-1].tolist() == total.state["last"][0].tolist() for model in users.models.values())
        assert len(users.models) == 3
    loads = {"relays_to_server": 2 + 1, "server_to_relays": 1 + down, "relays_to_users": 1 + 3}
    described = made.describe()
    for tier, rows in loads.items():
        assert described["loads"][tier] == pytest.approx(rows / 2)
        assert described["loads_theory"][tier] == pytest.approx(rows / 2)


@pytest.mark.parametrize("fast", [0, 1])
def test_the_aggregator_with_the_fastest_uplink_sends_the_row_for_others(tmp_path: Path, fast: int) -> None:
    """Relay 2 is absent, so relay 3 gets its user the row from relay 0 or 1, of which one has a narrow uplink."""
    t = Topology([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    wide = {"up_bps": 1e9, "down_bps": 1e9, "latency_s": 0.0}
    relays = {i: {**wide, "up_bps": 1e9 if i in (2, fast) else 1e4} for i in range(4)}
    text = json.dumps({"server": wide, "relays": relays, "hosts": {"h": {**wide, "users": [0, 1, 2]}}})  # is YAML, too
    (tmp_path / "links.yaml").write_text(text)
    links = Network(links=str(tmp_path / "links.yaml")), Network(uplink_bps=[relays[i]["up_bps"] for i in range(4)])
    for network in links:
        made, users = Sums(t, network, aggregators=[0, 1, 2]), Terms([terms(0, 3)], [set()])
        made.round(0, users, Total(7), {2})
        assert set(users.models) == {0, 1, 2}
        rows = made.ledger.per_link("relays_to_server", 0)[:, 0]
        assert rows[fast] == 2 * rows[1 - fast] > 0, "terms of its own user, and the row"


class Broken(Terms):
    """Users who cannot send."""

    def local_update(self, round: int, idle: np.ndarray = np.empty(0, np.int64)) -> tuple[np.ndarray, torch.Tensor]:  # noqa: B008
        raise FloatingPointError


def test_a_set_up_that_fails_changes_no_later_round() -> None:
    t = symmetric(K=20, H=5, r=3)
    made, whole = (Sums(t, aggregators=[0, 1, 2]) for _ in range(2))
    with pytest.raises(FloatingPointError):
        made.setup(Broken([terms(0, 20)], [set()]), Total(7))
    models = []
    for communicator in (made, whole):
        users = Terms([terms(0, 20)], [set()])
        communicator.round(0, users, Total(7))
        models.append({k: model.tolist() for k, model in users.models.items()})
    assert models[0] == models[1]
    assert made.theory == whole.theory
    for tier in TIERS:
        np.testing.assert_array_equal(made.ledger.per_link(tier, 0), whole.ledger.per_link(tier, 0))


def test_a_relay_that_adds_other_terms_is_left_out_before_a_row_spreads(caplog) -> None:
    users = Terms([terms(n, 20) for n in range(2)], [set()] * 2)
    apart = Apart(symmetric(K=20, H=5, r=3), [users], SumsOfRows(sums="whole", aggregators=[0, 1, 2]))
    apart.play(0)

    def change(node: str, message: Message) -> Message:
        return flipped(message) if (message.kind, node) == (BROADCAST, "relay 1") else message

    apart.play(1, change=change)
    assert apart.server.attendance.relays == (0, 2, 3, 4)
    assert "round 1: relay 1 counts as silent: it learned other IVs or sums" in caplog.text
    heard = apart.server.attendance.users
    expected = users.ivs[0].sum(0) + users.ivs[1][heard].sum(0)
    assert users.models
    assert all(model[:-1].tolist() == expected.tolist() for model in users.models.values())


def test_relays_that_do_not_hear_everybody_are_refused() -> None:
    with pytest.raises(CodingError, match=r"aggregators=\[0, 1\] .*none of these relays hears user"):
        Sums(symmetric(K=20, H=5, r=3), aggregators=[0, 1])
    with pytest.raises(CodingError, match=r"aggregators=\[server,0,1,2\] .*either the server or relays"):
        Sums(symmetric(K=20, H=5, r=3), aggregators=[0, "server", 1, 2])
    with pytest.raises(CodingError, match="aggregators=some is unknown"):
        Sums(symmetric(K=20, H=5, r=3), aggregators="some")
    assert Sums(symmetric(K=20, H=5, r=3), aggregators=[2, 3, 4]).planner.preferred == (2, 3, 4)


@pytest.mark.parametrize("K", [20, 40, 1000])
def test_loads_do_not_grow_with_users(K: int) -> None:
    """3 of 5 relays hear each user: 2 rows up, 1 down, and 3 on the last hop."""
    made, L = Sums(symmetric(K=K, H=5, r=3), sums="whole"), 90
    users, total = Terms([terms(n, K, L + 1) for n in range(2)], [set(), set()]), Total(L + 1)
    for round in range(2):
        made.round(round, users, total)
    tiers = {"users_to_relays": K, "relays_to_server": 2, "server_to_relays": 1, "relays_to_users": 3}
    assert made.ledger.loads(made.V_bits) == pytest.approx(tiers)
    described = made.describe()
    assert (len(described["aggregators"]), len(described["adding"]), described["pieces"]) == (3, 2, 1)
    assert described["bounds"] == pytest.approx(
        {"relays_to_server": 5 / 3, "server_to_relays": 1, "relays_to_users": 3}
    )


def test_relays_that_learned_the_sums_send_whole_rows_to_users() -> None:
    made = Sums(symmetric(K=20, H=5, r=3), aggregators="all", sums="coded")
    made.round(0, Terms([terms(0, 20)], [set()]), Total(7))
    assert made.ledger.loads(made.V_bits)["relays_to_users"] == 3
