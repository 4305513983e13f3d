"""Secure sums are those of the terms that counted, or the round is empty and says why, whatever is lost."""

from dataclasses import replace
from math import floor

import numpy as np
import pytest
import torch
from adding import Terms, Total, fit, terms
from apart import Apart
from changed import poisoned
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from hmtl.communication import TIERS, Network, Sums, SumsOfRows
from hmtl.communication.flows.planner import SUMS
from hmtl.communication.messages import ATTENDANCE, IVS, KEYS, MODELS, REPORT, SERVER, SHARED, SHARES, UNMASK, Message
from hmtl.communication.secure.neighbors import Secure
from hmtl.errors import ConfigError
from hmtl.testing.topologies import moving, topologies
from hmtl.topology import Contacts, Topology, any_r, symmetric

COLLUDING = 0.1
MASKED = SumsOfRows(secure=Secure(COLLUDING))


@given(
    t=topologies(max_K=15),
    medium=st.sampled_from(("broadcast", "unicast")),
    sums=st.sampled_from(SUMS),
    gone=st.sampled_from((0.0, 0.2, 0.5)),
    lost=st.sampled_from((0.0, 0.1, 0.4)),
    seed=st.integers(0, 10**6),
)
def test_what_is_lost_leaves_an_exact_sum_or_an_empty_round(
    t: Topology, medium: str, sums: str, gone: float, lost: float, seed: int
) -> None:
    """Users and relays come and go; keys, shares, terms on single links, answers and rows for users are lost."""
    rng, rounds = np.random.default_rng(seed), 5
    absent = [set(np.flatnonzero(rng.random(t.K) < gone).tolist()) for _ in range(rounds)]
    ivs = [terms(seed + n, t.K, reach=55) for n in range(rounds)]
    half = [range(0, t.K, 2), range(1, t.K, 2)] if t.K > 1 else [range(t.K)]
    sides = [Terms(ivs, absent, mine) for mine in half]
    apart = Apart(t, sides, SumsOfRows(secure=Secure(0.2), sums=sums), Network(medium=medium))
    total, waiting, counted = torch.zeros(7, dtype=torch.int64), set[int](), set[tuple[int, int]]()
    for round in range(rounds):
        away = set(np.flatnonzero(rng.random(t.H) < gone).tolist())
        arrives = (t.G == 1) & (rng.random(t.G.shape) >= lost)
        poison, misses = poisoned(t, arrives), dict[str, set[int]]()
        for kind in (KEYS, SHARED, SHARES, UNMASK, MODELS):
            misses[kind] = set(np.flatnonzero(rng.random(t.K) < lost / 2).tolist())
        unheard = set(np.flatnonzero(rng.random(t.K) < lost / 2).tolist())  # whose answers are lost

        def change(node: str, message: Message, misses=misses, unheard=unheard, poison=poison) -> Message:
            out = misses.get(message.kind, set()) if node.startswith("host") else set()
            if message.kind == UNMASK and message.sender.startswith("host"):
                out = unheard
            if message.kind == MODELS and node.startswith("host"):
                return replace(message, users=np.setdiff1d(message.users, sorted(out)))
            kept = np.flatnonzero(~np.isin(message.users, sorted(out))) if out else None
            if kept is not None:
                at = message.rows()[torch.from_numpy(kept)]
                message = replace(message, users=message.users[kept], at=at)
            return poison(node, message)

        apart.play(round, away, change)
        there = [i for i in range(t.H) if i not in away]
        near = {k for k in range(t.K) if t.G[there, k].any()}
        safe = {k for k in near if t.G[there, k].sum() >= min(2, t.degrees[k])}  # two relays, unless it has only one
        begun = (set(range(t.K)) - absent[round] - waiting) & safe
        most = max(0, min(floor(0.2 * t.K), len(begun) - 2))  # who may collude
        lone = {k for k in begun if t.degrees[k] == 1 < t.degrees.max()}
        alone = max(sum(t.G[i, k] for k in lone) for i in range(t.H))
        readers = begun - misses[KEYS] - misses[SHARES] - lone
        enough = {k: max(most + 1, min(2 * most + 1, len(begun - lone - {k}) - 1)) for k in begun}
        shared = {k for k in begun - misses[KEYS] if len(readers - {k}) >= enough[k]}
        if len(begun - lone) <= most + 1:
            shared = set()  # the round has too few users who hold shares
        heard = {k for k in shared - misses[SHARED] if arrives[there, k].any() and len(shared - {k}) > most}
        answering = (shared & readers) - misses[SHARED] - misses[UNMASK] - unheard
        known = len(heard) >= most + 2 + alone and all(len(answering - {k}) > most for k in shared)
        nobody = not heard and (not begun or len(begun - lone) > max(1, most + 1))
        assert apart.server.empty == (not there or not (known or nobody))
        if there:
            assert apart.total.seen[-1][0].tolist() == (sorted(heard) if known else [])
        if known:
            total = total + ivs[round][sorted(heard)].sum(0)
            counted |= {(round, k) for k in heard}
        if there:
            assert apart.total.state["last"][0].tolist() == total.tolist()
        got = {k: model for side in sides for k, model in side.models.items()}
        assert set(got) == (near - misses[MODELS] if there else set())
        assert all(model[:-1].tolist() == total.tolist() for model in got.values())
        waiting = set(range(t.K)) - set(got)
    assert {pair for side in sides for pair in side.committed} <= counted
    assert not counted & {pair for side in sides for pair in side.dropped}


@examples(15)
@given(contacts=moving(), sums=st.sampled_from(SUMS), seed=st.integers(0, 10**6))
def test_models_are_those_of_plain_sums(contacts: Contacts, sums: str, seed: int) -> None:
    """Users move, and some are absent, and relays. Only those take part in plain sums who count in secure sums."""
    rng, K = np.random.default_rng(seed), contacts.K
    absent = [set(np.flatnonzero(rng.random(K) < 0.2).tolist()) for _ in range(4)]
    away = [set(np.flatnonzero(rng.random(contacts.H) < 0.2).tolist()) for _ in range(4)]
    if K < 10:
        with pytest.raises(ConfigError, match="colluding"):
            Sums(contacts, secure=True)
    colluding = max(COLLUDING, 1 / K)
    if K < 3 or not fit(Secure(colluding), contacts.at(0)):
        return
    ivs, run = [terms(n, K, 20, reach=55) for n in range(4)], {}
    for secure in (True, False):
        users, total = Terms(ivs, absent), Total(20)
        settings = {"secure": True, "colluding": colluding} if secure else {}
        communicator = Sums(contacts, sums=sums, aggregators="server", **settings)
        models = []
        for round in range(4):
            outcome = communicator.round(round, users, total, away[round])
            models.append({k: model.tolist() for k, model in users.models.items()})
            if secure:  # keys and shares serve for one round only
                nodes, absent[round] = (
                    communicator.nodes,
                    set(range(K)) - set(() if outcome.empty else outcome.users.tolist()),
                )
                assert not any(host._secrets or host._told for host in nodes.hosts)
                assert not any(relay._kept or relay._revealed is not None for relay in nodes.relays)
        run[secure] = models, total.state["last"].tolist()
    assert run[True] == run[False]
    assert K < 10 or sum(len(each) for each in absent) < 4 * K, "not all rounds are empty"


# How many users count, of 12, if relay 0, which hears 8, loses all from the first, ... message on, or only this one.
# Users need both their relays until they know who shared seeds.
STEPS = {
    (KEYS, "host", "relay", 1): (4, 4),
    (KEYS, "relay", SERVER, 1): (4, 4),
    (KEYS, SERVER, "relay", 1): (4, 4),
    (KEYS, "relay", "host", 1): (4, 8),
    (SHARES, "host", "relay", 1): (4, 12),  # users share what relay 0 hands on with 7 of 11, and 3 are enough
    (SHARES, "relay", "host", 1): (4, 12),
    (SHARED, "host", "relay", 1): (4, 12),
    (SHARED, "relay", SERVER, 1): (4, 12),
    (SHARED, SERVER, "relay", 1): (4, 4),
    (SHARED, "relay", "host", 1): (4, 4),
    (IVS, "host", "relay", 1): (12, 12),
    (REPORT, "relay", SERVER, 1): (12, 12),
    (ATTENDANCE, SERVER, "relay", 1): (12, 12),
    (IVS, "relay", SERVER, 1): (12, 12),
    (UNMASK, SERVER, "relay", 1): (12, 12),
    (UNMASK, "relay", "host", 1): (12, 12),
    (UNMASK, "host", "relay", 1): (12, 12),
    (UNMASK, "relay", SERVER, 1): (12, 12),
    (UNMASK, SERVER, "relay", 6): (12, 12),
    (UNMASK, "relay", SERVER, 6): (12, 12),
    (MODELS, SERVER, "relay", 1): (12, 12),
    (MODELS, "relay", "host", 1): (12, 12),
}


@pytest.mark.parametrize("silent", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["silent", "lost"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(map(str, step)))
def test_a_relay_falls_silent_or_a_message_is_lost_in_any_step(step: tuple[str, str, str, int], silent: bool) -> None:
    """Relay 0 in round 1; it is back in round 2."""
    users = Terms([terms(n, 12, reach=55) for n in range(3)], [set()] * 3)
    apart, seen = Apart(symmetric(12, 3, 2), [users], MASKED), 0
    total, (kind, sender, receiver, number) = torch.zeros(7, dtype=torch.int64), step

    def change(node: str, message: Message) -> Message | None:
        nonlocal seen
        this = message.kind == kind and message.sender.startswith(sender) and node.startswith(receiver)
        seen += this
        out = seen >= number if silent else this and seen == number
        return None if out and "relay 0" in (node, message.sender) else message

    apart.play(0)
    apart.play(1, change=change)
    apart.play(2)
    for round, (counted, _) in enumerate(apart.total.seen):
        total += users.ivs[round][counted].sum(0)
    assert seen >= number
    assert [len(counted) for counted, _ in apart.total.seen[:2]] == [12, STEPS[step][not silent]]
    assert apart.total.state["last"][0].tolist() == total.tolist()
    assert set(users.models) == set(range(12))
    assert all(model.tolist() == [*total.tolist(), 3] for model in users.models.values())
    assert set(users.committed) == {(n, k) for n, (counted, _) in enumerate(apart.total.seen) for k in counted.tolist()}


@pytest.mark.parametrize("medium", ["broadcast", "unicast"])
def test_relays_get_one_copy_of_what_the_server_broadcasts(medium: str) -> None:
    """However many hosts have the users."""
    ivs, arrived, bits = [terms(0, 20)], list[tuple[str, str]](), list[int]()

    def change(node: str, message: Message) -> Message:
        if message.sender == SERVER and message.kind in (KEYS, SHARED):
            arrived.append((node, message.kind))
        return message

    for hosts in (1, 4):
        sides = [Terms(ivs, [set()], range(n, 20, hosts)) for n in range(hosts)]
        apart = Apart(symmetric(20, 5, 3), sides, MASKED, Network(medium=medium))
        arrived.clear()
        apart.play(0, change=change)
        assert len(arrived) == len(set(arrived)) == 2 * 5
        bits.append(sum(apart.links.ledger.bits(tier).total for tier in TIERS))
    assert bits[0] == bits[1]


@pytest.mark.parametrize("kind", [SHARES, pytest.param(UNMASK, marks=pytest.mark.slow)])
def test_users_with_few_neighbors_do_not_need_all_relays(kind: str) -> None:
    users = Terms([terms(0, 100, reach=55)], [set()])
    apart = Apart(any_r(100, 5, 3), [users], MASKED)
    apart.play(0, change=lambda node, message: None if (message.kind, node) == (kind, "relay 0") else message)
    ((counted, _),) = apart.total.seen
    assert len(counted) >= (100 if kind == UNMASK else 75)
    assert set(users.models) == set(range(100))


@pytest.mark.slow
def test_some_of_few_neighbors_hold_no_shares() -> None:
    """Of 80 users, 20 have one relay, and not all are neighbors; five drop out after they have shared."""
    G = any_r(80, 4, 3).G.copy()
    G[:, :20] = np.kron(np.eye(4), np.ones(5))
    users = Terms([terms(0, 80, reach=55)], [set()])
    apart, gone = Apart(Topology(G), [users], MASKED), (0, 7, 30, 31, 79)
    apart.play(0, change=lambda node, m: without(m, gone) if m.kind == IVS and node.startswith("relay") else m)
    ((counted, _),) = apart.total.seen
    assert apart.server._known.roster.degree.neighbors < 79
    assert counted.tolist() == [k for k in range(80) if k not in gone]
    assert apart.total.state["last"].tolist() == users.ivs[0][counted].sum(0, keepdim=True).tolist()


def without(message: Message, users: tuple[int, ...]) -> Message:
    """Return a message without the rows of these users."""
    kept = np.flatnonzero(~np.isin(message.users, users))
    return replace(message, users=message.users[kept], at=message.rows()[torch.from_numpy(kept)])


@pytest.mark.parametrize("kind", [KEYS, SHARED, UNMASK])
def test_a_relay_that_serves_nobody_is_all_that_is_left(kind: str) -> None:
    """What it passes on has no rows."""
    users = Terms([terms(n, 5, reach=55) for n in range(2)], [set()] * 2)
    apart = Apart(Topology(np.array([[1] * 5, [0] * 5], np.uint8)), [users], MASKED)
    apart.play(0, change=lambda node, m: None if (m.kind, node, m.sender) == (kind, SERVER, "relay 0") else m)
    assert {k: model.tolist() for k, model in users.models.items()} == dict.fromkeys(range(5), [0] * 7 + [1])
    apart.play(1)
    assert all(model.tolist()[:-1] == users.ivs[1].sum(0).tolist() for model in users.models.values())
    assert {at for at, _ in users.dropped} == {0}


@pytest.mark.parametrize("why", ["too few", "unanswered"])
def test_an_empty_round_says_why_and_costs_nothing(why: str, caplog: pytest.LogCaptureFixture) -> None:
    users = Terms([terms(n, 20, reach=55) for n in range(3)], [set()] * 3)
    recipe, answered = SumsOfRows(secure=Secure(COLLUDING, least=5)), list[Message]()
    apart = Apart(symmetric(20, 5, 3), [users], recipe)

    def lose(node: str, message: Message) -> Message | None:
        if why == "too few" and message.kind == IVS and node.startswith("relay"):
            return replace(message, users=message.users[:4], at=torch.arange(4))
        if message.kind != UNMASK or node != SERVER:
            return message
        answered.append(message)
        return None

    apart.play(0)
    before = {k: model.tolist()[:-1] for k, model in users.models.items()}
    assert not caplog.records
    apart.play(1, change=lose)
    assert bool(answered) == (why == "unanswered"), "users reveal nothing of a sum of too few"
    assert ["round 1 has no sum" in record.getMessage() for record in caplog.records] == [True]
    assert {k: model.tolist()[:-1] for k, model in users.models.items()} == before
    assert apart.server.empty
    assert {k for at, k in users.dropped if at == 1} == set(range(20))
    apart.play(2)
    assert len(users.idle) == 0
    assert apart.total.state["last"].tolist() == (users.ivs[0] + users.ivs[2]).sum(0, keepdim=True).tolist()


def test_who_sends_what_and_how_long_it_is_does_not_depend_on_the_terms() -> None:
    """But for the order of the circle, which is random."""

    def seen(seed: int) -> list[tuple[object, ...]]:
        apart, messages = (
            Apart(any_r(12, 4, 2, seed=1), [Terms(ivs(seed), [{3}, {5, 6}])], MASKED),
            [],
        )

        def change(node: str, message: Message) -> Message:
            ids = None if message.users is None else message.users.tolist()
            sizes = message.payload[message.rows()].shape, message.overhead[message.rows()].shape
            messages.append((node, message.kind, message.sender, message.receivers, ids, sizes))
            return message

        for round in range(2):
            apart.play(round, change=change)
        return messages

    def ivs(seed: int) -> list[torch.Tensor]:
        return [terms(seed + n, 12, reach=1 + seed) for n in range(2)]

    assert len(seen(0)) > 40
    assert seen(0) == seen(50)


def test_rows_of_terms_and_partial_sums_are_uniform_on_all_links() -> None:
    """Users send zeros in two rounds: every byte is masked, by masks of its own."""
    users = Terms([torch.zeros(20, 5001, dtype=torch.int64)] * 2, [set()] * 2)
    apart, rows = Apart(symmetric(20, 5, 3), [users], MASKED), dict[tuple[object, ...], bytes]()

    def change(node: str, message: Message) -> Message:
        if message.kind == IVS:
            for place, at in enumerate(message.rows().tolist()):
                user = message.sender if message.users is None else message.users[place]
                payload, overhead = message.payload[at].numpy(), message.overhead[at].numpy()
                rows[message.round, user] = payload.tobytes() + overhead.tobytes()
        return message

    for round in range(2):
        apart.play(round, change=change)
    assert len(rows) > 2 * 20
    assert not any(any(model.tolist()[:-1]) for model in users.models.values())
    words = np.concatenate([np.frombuffer(row[: len(row) // 8 * 8], np.uint64) for row in rows.values()])
    assert len(np.unique(words)) == len(words)
    for row in rows.values():
        assert chisquare(np.bincount(np.frombuffer(row, np.uint8), minlength=256)).pvalue > 1e-10
