"""Sums that relays learn, between nodes that share no more than planners: what each node gets to see, loads, faults."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from adding import Apart, Terms, owed, terms
from changed import poisoned
from hypothesis import given, settings
from hypothesis import strategies as st

from hmtl.coding import sum_code
from hmtl.communication import Network
from hmtl.communication.few_bits import FewBits
from hmtl.communication.messages import BROADCAST, DIGESTS, IVS, MODELS, REPORT, SERVER, STATE, VERDICT, Message
from hmtl.communication.planning.planner import SUMS
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology

M = 6  # numbers of `terms`, one further number beside them
BETWEEN = (IVS, BROADCAST, STATE, DIGESTS)  # kinds without which others cannot go on
media = st.sampled_from(("broadcast", "unicast"))


def covering(t: Topology, rng: np.random.Generator) -> tuple[int, ...]:
    """Relays that together hear everybody, in any number."""
    chosen: list[int] = []
    for i in rng.permutation(t.H).tolist():
        if not t.G[chosen].any(axis=0).all():
            chosen.append(i)
    return tuple(sorted({*chosen, *np.flatnonzero(rng.random(t.H) < 0.2).tolist()}))


@settings(max_examples=40)
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
    formats = FewBits(bits, t.K, M) if bits else None
    learning = covering(t, rng)
    apart = Apart(t, sides, Network(medium=medium, last_hop=last_hop), formats, sums, learning)
    true, counted, versions, latest = torch.zeros(M + 1, dtype=torch.int64), set[tuple[int, int]](), [0] * t.H, 0
    waiting = set[int]()
    for round in range(rounds):
        away = set(np.flatnonzero(rng.random(t.H) < gone).tolist())
        arrives, seen = (t.G == 1) & (rng.random(t.G.shape) >= lost), defaultdict(list)
        faults, poison = np.random.default_rng([seed, round]), poisoned(t, arrives)

        def change(node: str, message: Message, seen=seen, poison=poison, faults=faults) -> Message | None:
            between = SERVER in (node, message.sender) and message.kind in (*BETWEEN, VERDICT)
            if between and faults.random() < fault:
                return None
            seen[node, message.kind].append(message)
            return poison(node, message)

        apart.play(round, away, change)
        server, there = apart.server, [i for i in range(t.H) if i not in away]
        sent = set(range(t.K)) - absent[round] - waiting
        heard = server.attendance.users.tolist()
        released = server.version > latest
        latest = server.version
        if not fault:
            assert heard == sorted(k for k in sent if arrives[there, k].any())
            assert released == any(versions[i] == latest - released for i in there)
        if released:
            true, counted = true + ivs[round][heard].sum(0), counted | {(round, k) for k in heard}
        versions = [relay.version for relay in apart.relays]
        if latest in versions:
            S = apart.total.state["last"]
            rest = owed(apart.hosts, counted) if bits else 0
            assert torch.equal(S[0, :M] + rest, true[:M])
            assert int(S[0, M]) == int(true[M]), "further numbers travel as they are"
        got = {k: model.tolist() for side in sides for k, model in side.models.items()}
        near = {k for k in range(t.K) if t.G[there, k].any()}
        assert set(got) <= (near if released else set())
        if got and latest in versions:  # otherwise no verdict reached any aggregator
            expected = [*apart.total.state["last"][0].tolist(), latest]
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
    attendance, ledger, formats = apart.server.attendance, apart.links.ledger, apart.relays[0].formats
    t, A, heard = attendance.topology, list(attendance.aggregators), attendance.heard
    known_by_all = heard.G[A].all(axis=0)
    sent = heard.restricted(users=np.flatnonzero(~known_by_all))
    unreached = [k for k in near if not t.G[A, k].any()]
    if apart.few_bits:
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
