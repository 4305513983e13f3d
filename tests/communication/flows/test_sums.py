"""Sums between nodes that share no more than planners: what each gets to see, who adds, loads, and what is refused."""

from collections import defaultdict
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from adding import Terms, Total, owed, terms
from apart import Apart
from changed import Changed, poisoned
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from hmtl.coding import MEDIA, Aggregators, cover, sum_code
from hmtl.communication import TIERS, Network, Sums, SumsOfRows
from hmtl.communication.flows.planner import SUMS
from hmtl.communication.messages import ATTENDANCE, IVS, MODELS, REPORT, SERVER, Message
from hmtl.errors import CodingError, ConfigError
from hmtl.testing.scripted import ScriptedAggregator, ScriptedUsers, random_numbers
from hmtl.testing.topologies import moving, topologies
from hmtl.topology import Contacts, Topology, any_r, symmetric

networks = st.builds(
    Network,
    medium=st.sampled_from(("broadcast", "unicast")),
    last_hop=st.sampled_from(("broadcast", "unicast")),
    uplink=st.sampled_from(("shared", "parallel")),
    uplink_bps=st.sampled_from((None, (1e8, 2e8, 5e7, 1e8, 1e7, 1e8, 3e8, 1e8))),
)


class Wide(Total):
    """Gives a row for each user, though one is for all."""

    def update(self, users: np.ndarray, ivs: Tensor) -> Tensor:
        return super().update(users, ivs).expand(5, -1)


@given(
    t=topologies(max_K=25),
    network=networks,
    sums=st.sampled_from(SUMS),
    gone=st.sampled_from((0.0, 0.2, 0.5)),
    lost=st.sampled_from((0.0, 0.1, 0.4)),
    seed=st.integers(0, 10**6),
)
@example(any_r(K=12, H=9, r=2), Network(), "auto", 0.0, 0.1, 0)  # a bit for each relay is more than a byte
def test_the_sum_of_all_users_heard_reaches_all_users_within_range(
    t: Topology, network: Network, sums: str, gone: float, lost: float, seed: int
) -> None:
    """Users and relays that come and go, terms lost on single links; what relays cannot know is poisoned."""
    rng, rounds = np.random.default_rng(seed), 5
    absent = [set(np.flatnonzero(rng.random(t.K) < gone).tolist()) for _ in range(rounds)]
    ivs = [terms(seed + n, t.K) for n in range(rounds)]
    half = [range(0, t.K, 2), range(1, t.K, 2)] if t.K > 1 else [range(t.K)]
    sides = [Terms(ivs, absent, mine) for mine in half]
    if network.uplink_bps:
        network = replace(network, uplink_bps=network.uplink_bps[: t.H])
    apart = Apart(t, sides, SumsOfRows(sums=sums, aggregators="server"), network)
    total, updates = torch.zeros(7, dtype=torch.int64), 0
    waiting: set[int] = set()
    unsettled: dict[int, int] = {}
    counted: set[tuple[int, int]] = set()
    for round in range(rounds):
        away = set(np.flatnonzero(rng.random(t.H) < gone).tolist())
        arrives = (t.G == 1) & (rng.random(t.G.shape) >= lost)
        seen, poison = defaultdict(list), poisoned(t, arrives)

        def change(node: str, message: Message, poison=poison, seen=seen) -> Message:
            seen[node, message.kind].append(message)
            return poison(node, message)

        apart.play(round, away, change)
        there = [i for i in range(t.H) if i not in away]
        sent = set(range(t.K)) - absent[round] - waiting
        heard = sorted(k for k in sent if arrives[there, k].any())
        reached = {k for k in range(t.K) if set(t.relays_of(k)) & set(there)}
        unsettled |= dict.fromkeys(sent, round)
        got = {k: model for side in sides for k, model in side.models.items()}
        if there:
            total, updates = total + ivs[round][heard].sum(0), updates + 1
            assert apart.total.seen[-1][0].tolist() == heard
            assert apart.total.seen[-1][1].shape[0] == 1
            counted |= {(round, k) for k in heard}
        assert set(got) == (reached if there else set())
        assert all(model.tolist() == [*total.tolist(), updates] for model in got.values())
        unsettled = {k: at for k, at in unsettled.items() if k not in got}
        waiting = set(range(t.K)) - reached
        assert {k: at for side in sides for k, at in side.sent.items()} == unsettled
        assert {kind for node, kind in seen if node == SERVER} <= {REPORT, IVS}
        added = seen[SERVER, IVS]
        assert all(message.users is None and len(message) == 1 for message in added), "no user's own terms"
        known = t.restricted(links=arrives, relays=there, users=sent)
        options = {"most_pieces": 1} if sums == "whole" else {"L": 6 * (sums == "auto")}
        up = sum_code(known, network.uplinks(known), **options)
        assert [message.sender for message in added] == [f"relay {i}" for i in up.relays]
        if sums == "whole":
            assert up.relays == cover(known, network.uplinks(known)).relays
        ledger = apart.links.ledger
        assert ledger.bits("relays_to_server", round=round).payload == pytest.approx(64 * 6 * up.load * up.padding(6))
        down = sum_code(t.restricted(relays=there), **options)
        if sums == "auto" and network.last_hop == "unicast":  # with copies of such a short row, padding costs more
            saved = 0 if network.medium == "broadcast" else len(cover(t.restricted(relays=there)).relays) - down.load
            if saved <= (len(reached) + down.load * (network.medium == "unicast")) * (down.padding(6) - 1):
                down = sum_code(t.restricted(relays=there), most_pieces=1)
        rows = down.load * down.padding(6)
        copies = bool(down.relays) if network.medium == "broadcast" else rows
        assert ledger.bits("server_to_relays", round=round).payload == 64 * 6 * copies
        copies = rows if network.last_hop == "broadcast" else len(reached) * down.padding(6)
        assert ledger.bits("relays_to_users", round=round).payload == 64 * 6 * copies
    committed = {pair for side in sides for pair in side.committed}
    assert committed == {(at, k) for at, k in counted if unsettled.get(k) != at}
    assert not committed & {pair for side in sides for pair in side.dropped}


@pytest.mark.parametrize("K", [20, 40])
@pytest.mark.parametrize(("medium", "last_hop"), [("broadcast", "broadcast"), ("unicast", "unicast")])
@pytest.mark.parametrize("sums", ["whole", "auto"])
def test_loads_do_not_grow_with_users(K: int, medium: str, last_hop: str, sums: str) -> None:
    L = 900  # no padding
    network = Network(medium=medium, last_hop=last_hop)
    communicator = Sums(symmetric(K=K, H=5, r=3), network, sums=sums, aggregators="server")
    rows = 3 if sums == "whole" else 5 / 3
    assert communicator.theory.uplink == pytest.approx(rows), "without a learner, as if there was no padding"
    users = Terms([terms(n, K, L + 1) for n in range(2)], [set(), set()])
    total = Total(L + 1)
    for round in range(2):
        communicator.round(round, users, total)
    copies, last = (1, rows) if medium == "broadcast" else (rows, K)
    assert communicator.describe()["loads"] == pytest.approx(
        {"users_to_relays": K, "relays_to_server": rows, "server_to_relays": copies, "relays_to_users": last}
    )
    described = communicator.describe()
    tiers = "relays_to_server", "server_to_relays", "relays_to_users"
    assert described["loads_theory"] == pytest.approx(dict(zip(tiers, (rows, copies, last), strict=True)))
    least = (5 / 3, 1, 5 / 3) if medium == "broadcast" else (5 / 3, 5 / 3, K)
    assert described["bounds"] == pytest.approx(dict(zip(tiers, least, strict=True)))
    assert described["communicator"] == "sums"
    assert (described["adding"], described["pieces"]) == (([0, 1, 2], 1) if sums == "whole" else ([0, 1, 2, 3, 4], 3))
    assert described["loads_uncoded"]["relays_to_server"] == pytest.approx(K)
    links = communicator.ledger.links["relays_to_users"]
    assert len(links) == K + 5
    broadcasts = communicator.ledger.per_link("relays_to_users")[K:, 0] / (2 * L * 64)
    by_relay = [1, 1, 1, 0, 0] if sums == "whole" else [1 / 3] * 5
    assert broadcasts.tolist() == pytest.approx(by_relay if last_hop == "broadcast" else [0] * 5)


@pytest.mark.parametrize(
    ("t", "rows", "whole"),
    [
        (symmetric(20, 5, 3), 5 / 3, 3),
        (symmetric(20, 5, 4), 5 / 4, 2),
        pytest.param(any_r(40, 5, 3), 5 / 3, 3, marks=pytest.mark.slow),
        (any_r(40, 10, 3), 10 / 3, 5),
        pytest.param(any_r(100, 10, 5), 2, 4, marks=pytest.mark.slow),
        pytest.param(any_r(40, 5, 2, seed=1), 5 / 2, 4, marks=pytest.mark.slow),
        (Topology(np.roll(any_r(8, 7, 4, seed=1).G, -2, axis=1)), 12 / 7, 2),  # user 0 needs some of a relay's shares
    ],
)
@pytest.mark.parametrize("medium", ["broadcast", pytest.param("unicast", marks=pytest.mark.slow)])
def test_measured_loads_of_shares(t: Topology, rows: float, whole: int, medium: str) -> None:
    for sums, load in (("coded", rows), ("auto", rows), ("whole", whole)):
        communicator = Sums(t, Network(medium=medium), sums=sums, aggregators="server")
        ivs = [terms(0, t.K, 841)]
        users, total = Terms(ivs, [set()]), Total(841)
        communicator.round(0, users, total)
        assert total.seen[-1][1].tolist() == [ivs[0].sum(0).tolist()]
        assert all(model[:-1].tolist() == ivs[0].sum(0).tolist() for model in users.models.values())
        loads = communicator.describe()["loads"]
        assert loads["relays_to_server"] == pytest.approx(load, rel=1e-2)
        assert loads["relays_to_users"] == pytest.approx(load, rel=1e-2)
        assert loads["server_to_relays"] == pytest.approx(load if medium == "unicast" else 1, rel=1e-2)
        formula = communicator.describe()["loads_theory"]
        assert loads["relays_to_server"] == pytest.approx(formula["relays_to_server"])


def test_a_user_who_lacks_a_share_has_missed_the_row() -> None:
    """Relay 4 is silent on the last hop: users who need its share wait, and take the next row."""
    t = symmetric(20, 5, 3)
    sides = [Terms([terms(n, 20, 91) for n in range(2)], [set(), set()])]
    apart = Apart(t, sides)
    code = sum_code(t)
    need = set(np.flatnonzero(code.needs(4).any(axis=1)).tolist())
    assert 0 < len(need) < 20

    def silent(node: str, message: Message) -> Message | None:
        return None if message.kind == MODELS and message.sender == "relay 4" else message

    apart.play(0, change=silent)
    assert set(sides[0].models) == set(range(20)) - need
    assert {k for _, k in sides[0].committed} == set(range(20)) - need
    apart.play(1)
    assert sides[0].idle == need
    assert set(sides[0].models) == set(range(20))
    assert need <= {k for at, k in sides[0].committed if at == 0}


def test_the_time_of_the_same_learner_uncoded() -> None:
    """Its IVs and models are counted as wide as they are; half as wide takes about half as long."""
    seconds = []
    for kind in (torch.float64, torch.float32):
        communicator, numbers = Sums(symmetric(K=20, H=5, r=3)), 8 * kind.itemsize * 600
        users = Terms([terms(0, 20, 601)], [set()])
        users.row_layout = replace(users.row_layout, origin=torch.zeros(600, dtype=kind))
        communicator.round(0, users, Total(601))
        seconds.append(communicator.uncoded_seconds())
        up, down = 20 * (numbers + 64), 20 * (numbers + 128 + 32)
        overhead = communicator.ledger.bits("server_to_relays").overhead
        assert overhead > 0
        notes = 1e8 * seconds[-1] - 2 * up - 2 * down  # reports and word of who is there
        assert 0 < notes < 2000
    assert communicator.seconds() < seconds[1] < 0.51 * seconds[0]


@examples(15)
@given(
    contacts=moving(),
    sums=st.sampled_from(SUMS),
    medium=st.sampled_from(MEDIA),
    last_hop=st.sampled_from(MEDIA),
    wire=st.sampled_from((None, "int4")),
)
def test_sums_of_users_who_move(contacts: Contacts, sums: str, medium: str, last_hop: str, wire: str | None) -> None:
    """Rows reach all users within range, and loads are those of the formula: 840 numbers need no padding."""
    ivs, network = [terms(n, contacts.K, 841) for n in range(4)], Network(medium=medium, last_hop=last_hop)
    users, total = Terms(ivs, [set()] * 4), Total(841)
    made, expected, all_heard = Sums(contacts, network, wire, sums=sums), torch.zeros(841, dtype=torch.int64), True
    for round in range(4):
        outcome = made.round(round, users, total)
        all_heard &= not outcome.empty and not users.idle
        expected += ivs[round][outcome.users].sum(0)
        if wire is None:
            assert total.state["last"][0].tolist() == expected.tolist()
        if not outcome.empty and wire is None:
            assert set(users.models) == set(contacts.at(round).present)
        assert all(model[:-1].tolist() == total.state["last"][0].tolist() for model in users.models.values())
    described = made.describe()
    for tier, bound in described["bounds"].items():
        assert bound <= described["loads_theory"][tier] + 1e-8
        if all_heard and wire is None and all(len(contacts.at(n).present) == contacts.K for n in range(4)):
            assert described["loads"][tier] == pytest.approx(described["loads_theory"][tier], rel=1e-6)


class Broken(Terms):
    """Users who cannot send."""

    def local_update(self, round: int, idle: np.ndarray = np.empty(0, np.int64)) -> tuple[np.ndarray, Tensor]:  # noqa: B008
        raise FloatingPointError


def test_a_set_up_that_fails_changes_no_later_round() -> None:
    t, models = symmetric(K=20, H=5, r=3), []
    made, whole = Sums(t), Sums(t)
    with pytest.raises(FloatingPointError):
        made.setup(Broken([terms(0, 20)], [set()]), Total(7))
    for communicator in (made, whole):
        users = Terms([terms(0, 20)], [set()])
        communicator.round(0, users, Total(7))
        models.append({k: model.tolist() for k, model in users.models.items()})
    assert models[0] == models[1]
    assert made.theory == whole.theory
    for tier in TIERS:
        np.testing.assert_array_equal(made.ledger.per_link(tier, 0), whole.ledger.per_link(tier, 0))


@pytest.mark.parametrize("aggregators", ["all", "some", [0, 1, 2], [SERVER, 0]])
def test_only_the_server_learns_sums(aggregators: Aggregators) -> None:
    with pytest.raises(ConfigError, match=r"aggregators=.* with communicator=sums: .* Set aggregators=auto or server"):
        Sums(symmetric(K=20, H=5, r=3), aggregators=aggregators)


def test_receipts_are_compressed() -> None:
    communicator = Sums(any_r(K=1000, H=5, r=3))
    communicator.round(0, Terms([terms(0, 1000)], [set()]), Total(7))
    rows = len(cover(communicator.topology).relays)
    assert communicator.ledger.bits("relays_to_users").overhead < rows * 8 * 200


@pytest.mark.parametrize("wire", [None, "int4"])
def test_a_loaded_state_continues_with_the_same_bits(wire: str | None) -> None:
    """With users who wait or are absent, a relay that missed rounds, and a set-up, that travels as it does uncoded."""
    t, rounds, cuts = symmetric(K=12, H=4, r=2), range(6), {}
    ivs, away = [terms(n, 12) for n in rounds], [{1}, set(), {0, 2}, {3}, set(), {1}]

    def learner() -> tuple[Sums, Terms, Total]:
        return Sums(t, wire=wire), Terms(ivs, [{n} for n in rounds]), Total(7)

    def play(made: Sums, users: Terms, total: Total, round: int) -> dict[int, list[int]]:
        made.round(round, users, total, away[round])
        return {k: model.tolist() for k, model in users.models.items()}

    whole, users, total = learner()
    facts, models = ScriptedUsers([random_numbers(9, 12, 3, None)] * 2, [set(), set()], 3), []
    whole.setup(facts, ScriptedAggregator(12, 3))
    assert set(facts.models) == set(range(12))
    assert whole.ledger.bits("relays_to_server", round="setup").overhead > 12 * 3 * 64
    for round in rounds:
        cuts[round] = deepcopy((whole.state_dict(), users.sent, total.state_dict()))
        models.append(play(whole, users, total, round))
    for cut in (1, 3, 5):
        then, others, another = learner()
        state, others.sent, total_state = cuts[cut]
        then.load_state_dict(state)
        another.load_state_dict(total_state)
        assert [play(then, others, another, round) for round in rounds[cut:]] == models[cut:]
        assert then.ledger.bits("relays_to_users") == whole.ledger.bits("relays_to_users")
        assert (then.V_bits, then.setup_seconds) == (whole.V_bits, whole.setup_seconds)


@pytest.mark.parametrize("wire", [None, "int4"])
def test_without_a_sum_its_relay_is_left_out(wire: str | None) -> None:
    """Others add up the rows of its users."""
    t = symmetric(K=20, H=5, r=3)
    users = Terms([terms(n, 20) for n in range(3)], [set()] * 3)
    apart = Apart(t, [users], SumsOfRows(wire=wire, aggregators="server"))

    def lose(node: str, message: Message) -> Message | None:
        return None if (message.kind, node, message.sender) == (IVS, SERVER, "relay 1") else message

    assert 1 in cover(t).relays
    for round in range(3):
        apart.play(round, change=lose if round == 1 else Changed.change)
        assert apart.server.attendance.relays == ((0, 2, 3, 4) if round == 1 else (0, 1, 2, 3, 4))
    true, sums = torch.stack(users.ivs).sum(dim=(0, 1)), apart.total.state["last"][0]
    assert torch.equal(sums[:6] + (owed(apart.hosts, set()) if wire else 0), true[:6])
    assert set(users.models) == set(range(20))
    assert all(model.tolist() == [*sums.tolist(), 3] for model in users.models.values())


def test_a_user_without_a_model_waits() -> None:
    """Its row is lost on the way: it sends nothing more until it hears that its terms had counted."""
    users = Terms([terms(n, 20) for n in range(3)], [set()] * 3)
    apart = Apart(symmetric(K=20, H=5, r=3), [users])

    def lose(node: str, message: Message) -> Message:
        if message.kind != MODELS or not node.startswith("host"):
            return message
        return replace(message, users=message.users[message.users != 7])

    apart.play(0, change=lose)
    assert users.sent == {7: 0}
    apart.play(1)
    assert 7 not in apart.total.seen[1][0].tolist()
    assert (0, 7) in users.committed
    assert not users.sent


def test_a_host_ignores_a_message_without_rows_for_its_users() -> None:
    """Between processes, a message for a single user of another host has no rows."""
    users = Terms([terms(0, 20)], [set()])
    apart = Apart(symmetric(K=20, H=5, r=3), [users])

    def nothing_first(node: str, message: Message) -> Message:
        if (message.kind, node, message.sender) != (MODELS, "host 0", "relay 0"):
            return message
        return replace(message, users=message.users[:0], payload=message.payload[:0], overhead=message.overhead[:0])

    apart.play(0, change=nothing_first)
    assert 0 < len(users.models) < 20


def test_a_relay_without_the_attendance_is_left_out() -> None:
    users = Terms([terms(n, 20) for n in range(1)], [set()])
    apart = Apart(symmetric(K=20, H=5, r=3), [users])

    def lose(node: str, message: Message) -> Message | None:
        return None if (message.kind, node) == (ATTENDANCE, "relay 4") else message

    apart.play(0, change=lose)  # no relay of the cover
    assert set(users.models) == set(range(20))


def test_refusals() -> None:
    t = symmetric(K=5, H=5, r=1)
    with pytest.raises(ConfigError, match=r"wire=float32 with communicator=sums.*int4.*null"):
        Sums(t, wire="float32")
    with pytest.raises(ConfigError, match=r"sums=half is unknown.*auto, coded, whole"):
        Sums(t, sums="half")
    with pytest.raises(ConfigError, match=r"network\.last_hop=radio is unknown.*broadcast, unicast"):
        Network(last_hop="radio")
    with pytest.raises(CodingError, match=r"needs the rows of all users.*communicator=coded"):
        Sums(t).round(0, ScriptedUsers([random_numbers(0, 5, 3, None)], [set()], 0), ScriptedAggregator(5, 3))
    with pytest.raises(CodingError, match=r"models of shape \(5, 4\)"):
        Sums(t).round(0, Terms([terms(0, 5, 3)], [set()]), Wide(3))
