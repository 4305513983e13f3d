"""Sums in few bits stay exact although users are absent and messages are lost; rows and their bits."""

import tracemalloc
import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from adding import Terms, Total, left_over, owed, rounded, terms
from apart import Apart
from changed import poisoned
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hmtl.communication import CodedHierarchical, Network, Sums, SumsOfRows, sums_if_faster
from hmtl.communication.codecs.formats import REQUEST
from hmtl.communication.codecs.rows import numbers_to_bytes
from hmtl.communication.codecs.words import unpacked
from hmtl.communication.flows.planner import SUMS
from hmtl.communication.messages import IVS, MODELS, Message
from hmtl.errors import CodingError, RangeError
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, symmetric

M = 6  # numbers of `terms`, one further number beside them
L = M + 2  # with two votes on the scale of their block


def in_bits(bits: int, sums: str = "auto") -> SumsOfRows:
    return SumsOfRows(wire=f"int{bits}", sums=sums, aggregators="server")


@given(
    t=topologies(max_K=20),
    bits=st.sampled_from((2, 3, 4, 8)),
    reach=st.sampled_from((1, 8, 50)),
    gone=st.sampled_from((0.0, 0.2, 0.5)),
    lost=st.sampled_from((0.0, 0.1, 0.4)),
    medium=st.sampled_from(("broadcast", "unicast")),
    last_hop=st.sampled_from(("broadcast", "unicast")),
    sums=st.sampled_from(SUMS),
    seed=st.integers(0, 10**6),
)
def test_sums_and_what_users_owe_add_up_to_all_terms_that_counted(
    t: Topology, bits: int, reach: int, gone: float, lost: float, medium: str, last_hop: str, sums: str, seed: int
) -> None:
    """With users and relays that come and go, and terms, requests and rows that are lost."""
    rng, rounds = np.random.default_rng(seed), 7
    absent = [set(np.flatnonzero(rng.random(t.K) < gone).tolist()) for _ in range(rounds)]
    ivs = [terms(seed + n, t.K, reach=reach >> (n == 4)) for n in range(rounds)]  # the terms of a round are small
    half = [range(0, t.K, 2), range(1, t.K, 2)] if t.K > 1 else [range(t.K)]
    sides = [Terms(ivs, absent, mine) for mine in half]
    apart = Apart(t, sides, in_bits(bits, sums), Network(medium=medium, last_hop=last_hop))
    true, true_further, counted = torch.zeros(M, dtype=torch.int64), 0, set[tuple[int, int]]()
    waiting = set[int]()
    for round in range(rounds):
        away = set(np.flatnonzero(rng.random(t.H) < gone).tolist())
        arrives, missed = (t.G == 1) & (rng.random(t.G.shape) >= lost), np.flatnonzero(rng.random(t.K) < lost)
        poison, requesting = poisoned(t, arrives), set[int]()

        def change(node: str, message: Message, poison=poison, missed=missed, requesting=requesting) -> Message:
            if message.kind == MODELS and node.startswith("host"):
                return replace(message, users=np.setdiff1d(message.users, missed))
            if message.kind == IVS and node.startswith("relay") and message.format == REQUEST:
                requesting |= set(message.users.tolist())
            return poison(node, message)

        known = bool(apart.newest.coder.scales.any())
        apart.play(round, away, change)
        there = [i for i in range(t.H) if i not in away]
        sent = set(range(t.K)) - absent[round] - waiting
        heard = sorted(k for k in sent if arrives[there, k].any())
        assert requesting == (waiting if there else set())
        counted |= {(round, k) for k in heard if there}
        if there:
            true, true_further = true + ivs[round][heard, :M].sum(0), true_further + ivs[round][heard, M].sum()
        hosts = apart.hosts
        S, further = apart.total.state["last"][0, :M], apart.total.state["last"][0, M]
        assert torch.equal(S + owed(hosts, counted), true)
        assert further == true_further, "further numbers travel as they are"
        got = {k: model for side in sides for k, model in side.models.items()}
        near = {k for k in range(t.K) if t.G[there, k].any()} - set(missed.tolist())
        requested = any(arrives[there, k].any() for k in waiting)
        payload = apart.links.ledger.bits("server_to_relays", round=round).payload
        sent_as = (
            apart.hosts[0].coder.formats.whole
            if requested or not known or not heard
            else apart.hosts[0].coder.formats.sums
        )
        spread = apart.hosts[0].planner.spread_code(tuple(there), L)
        copies = len(spread.owners) * sent_as.share(spread).nbytes if medium == "unicast" else sent_as.nbytes
        assert payload == (8 * copies if spread.relays else 0)
        if there and (requested or not known):
            assert set(got) == near
        elif there:  # without a whole row, who lacks the last one can use none
            assert near - waiting <= set(got) <= near
        expected = [*S.tolist(), int(further), int(apart.total.state["updates"])]
        assert all(model.tolist() == expected for model in got.values())
        waiting = set(range(t.K)) - set(got)
    committed = {pair for side in sides for pair in side.committed}
    pending = {(at, k) for side in sides for k, at in side.sent.items()}
    assert committed == counted - pending


def play(
    communicator: Sums, users: Terms, total: Total, rounds: range, away: Callable[[int], set[int]] = lambda round: set()
) -> list[dict[int, list[int]]]:
    models = []
    for round in rounds:
        communicator.round(round, users, total, away(round))
        models.append({k: model.tolist() for k, model in users.models.items()})
    return models


@pytest.mark.parametrize(
    ("wire", "bits"), [("int4", 4), *(pytest.param(f"int{b}", b, marks=pytest.mark.slow) for b in (2, 3, 8))]
)
@pytest.mark.parametrize(("medium", "last_hop"), [("broadcast", "broadcast"), ("unicast", "unicast")])
@pytest.mark.parametrize("sums", ["whole", "auto"])
def test_bits_of_each_tier(wire: str, bits: int, medium: str, last_hop: str, sums: str) -> None:
    """The first rows are whole, then a number has b, or b + 5, bits; each block of 64 has two votes as long."""
    K, m, rows = 20, 768, 3 if sums == "whole" else 5 / 3  # rows without padding
    words = m + 2 * 12
    users, total = Terms([terms(n, K, m + 1) for n in range(3)], [set()] * 3), Total(m + 1)
    communicator = Sums(
        symmetric(K=K, H=5, r=3), Network(medium=medium, last_hop=last_hop), wire, sums=sums, aggregators="server"
    )
    copies = (1, rows) if medium == "broadcast" else (rows, K)
    sent_up = 0.0
    for round in range(3):
        play(communicator, users, total, range(round, round + 1))
        ledger, short = communicator.ledger, round > 0
        of_terms, of_sums = (words * (word if short else 64) for word in (bits, bits + 5))
        sent_up += rows * of_sums
        assert ledger.bits("users_to_relays", round=round) == (K * of_terms, K * 64)
        assert ledger.bits("relays_to_server", round=round).payload == pytest.approx(rows * of_sums, rel=0.02)
        assert ledger.bits("server_to_relays", round=round).payload == pytest.approx(copies[0] * of_sums, rel=0.02)
        assert ledger.bits("relays_to_users", round=round).payload == pytest.approx(copies[1] * of_sums, rel=0.02)
    assert communicator.V_bits == words * bits
    described = communicator.describe()
    of_terms, of_sums = bits * words / m, (bits + 5) * words / m
    assert described["bits_per_number"] == {
        "users_to_relays": of_terms,
        "relays_to_server": of_sums,
        "server_to_relays": of_sums,
        "relays_to_users": of_sums,
    }
    assert described["loads_theory"]["relays_to_server"] == pytest.approx(rows)
    assert described["loads"]["users_to_relays"] == pytest.approx(K * (2 + 64 / bits) / 3)
    assert described["loads"]["relays_to_server"] == pytest.approx(sent_up / (3 * of_sums * m), rel=0.02)
    assert described["loads_uncoded"]["users_to_relays"] == pytest.approx(K * 64 * m / (words * bits))


def test_a_user_without_the_last_row_requests_it() -> None:
    users = Terms([terms(n, 20) for n in range(4)], [set()] * 4)
    apart = Apart(symmetric(K=20, H=5, r=3), [users], in_bits(4))

    def lose(node: str, message: Message) -> Message:
        if message.kind != MODELS or not node.startswith("host"):
            return message
        return replace(message, users=message.users[message.users != 7])

    def deaf(node: str, message: Message) -> Message | None:
        request = message.kind == IVS and node.startswith("relay") and message.format == REQUEST
        return None if request else message

    def payload(round: int) -> int:
        return apart.links.ledger.bits("server_to_relays", round=round).payload

    apart.play(0, change=lose)
    assert set(users.models) == set(range(20)) - {7}
    assert apart.links.ledger.bits("users_to_relays", link=7, round=0) == (L * 64, 64)
    apart.play(1, change=deaf)
    assert set(users.models) == set(range(20)) - {7}, "a difference is of no use without its base"
    assert payload(1) == 8 * -(-L * 9 // 8)
    assert apart.links.ledger.bits("users_to_relays", link=7, round=1) == (0, 8)
    apart.play(2)
    assert set(users.models) == set(range(20))
    assert payload(2) == L * 64
    assert (0, 7) in users.committed
    apart.play(3)
    assert payload(3) == 8 * -(-L * 9 // 8)
    assert apart.links.ledger.bits("users_to_relays", link=7, round=3).payload > 0


def test_what_is_left_over_waits_with_the_update_and_is_saved() -> None:
    """User 7 has missed a row: its update counted, so what rounding left over counts as soon as it hears that."""
    users = Terms([terms(n, 20) for n in range(4)], [set()] * 4)
    apart, seen = Apart(symmetric(K=20, H=5, r=3), [users], in_bits(4)), list[Message]()
    (host,) = apart.hosts

    def lose(node: str, message: Message) -> Message:
        if message.kind == IVS and node == "relay 0":
            seen.append(message)
        if message.kind != MODELS or not node.startswith("host"):
            return message
        return replace(message, users=message.users[message.users != 7])

    apart.play(0)
    apart.play(1, change=lose)
    assert not left_over(host.coder)[7].any()
    state = deepcopy(host.state_dict())
    for name in host.coder.STATE:
        setattr(host.coder, name, torch.zeros_like(getattr(host.coder, name)))
    host.load_state_dict(state)
    x, scales = users.ivs[2][:, :M] + left_over(host.coder), host.coder.scales
    apart.play(2, change=lambda node, message: lose("", message) if node != "relay 0" else lose(node, message))
    terms_of_all = [message for message in seen if message.payload.shape[1]][-1]
    expected, _ = rounded(host.coder.formats, x[terms_of_all.users], scales)
    assert torch.equal(host.coder.formats.terms.unpack(terms_of_all.payload), expected)
    assert left_over(host.coder)[7].any()
    true = torch.stack(users.ivs[:3]).sum(0)[:, :M].sum(0) - users.ivs[2][7, :M]
    assert torch.equal(apart.total.state["last"][0, :M] + left_over(host.coder).sum(0), true)


def test_a_host_none_of_whose_users_has_a_row_yet() -> None:
    """It does not know the scales and sends no terms; the terms of other hosts have few bits."""
    ivs = [terms(n, 20) for n in range(3)]
    sides = [Terms(ivs, [set()] * 3, mine) for mine in (range(10), range(10, 20))]
    apart = Apart(symmetric(K=20, H=5, r=3), sides, in_bits(4))
    apart.play(0, change=lambda node, message: None if (node, message.kind) == ("host 0", MODELS) else message)
    apart.play(1)
    assert apart.total.seen[1][0].tolist() == list(range(10, 20))
    assert set(range(10)) <= set(sides[0].models)
    apart.play(2)
    assert len(apart.total.seen[2][0]) == 20


@pytest.mark.parametrize(
    ("row_format", "liars", "counted"),
    [
        ("int4", {"host 1"}, [[0, 1]]),
        ("int4", {"host 0", "host 1"}, []),
        ("int2", {"host 0", "host 1"}, []),
        ("int64", {"host 0"}, [[0, 1, 2, 3]]),
    ],
)
def test_rows_of_another_format_do_not_count(row_format: str, liars: set[str], counted: list[list[int]]) -> None:
    """It is what the sender says, even if the row is as long as in the right format."""
    ivs = [terms(0, 4)]
    sides = [Terms(ivs, [set()], mine) for mine in (range(2), range(2, 4))]
    apart = Apart(symmetric(K=4, H=2, r=2), sides, in_bits(4))

    def change(node: str, message: Message) -> Message:
        lies = message.kind == IVS and message.sender in liars
        return replace(message, format=row_format) if lies else message

    apart.play(0, change=change)
    assert [users.tolist() for users, _ in apart.total.seen] == counted


def test_after_an_empty_round_the_whole_row_travels() -> None:
    K, away = 20, [set(), set(), set(range(5)), set(), set()]
    users, total = Terms([terms(n, K) for n in range(5)], [set()] * 5), Total(M + 1)
    communicator = Sums(symmetric(K=K, H=5, r=3), wire="int4")
    sizes = []
    for round in range(5):
        play(communicator, users, total, range(round, round + 1), away.__getitem__)
        sizes.append(communicator.ledger.bits("server_to_relays", round=round).payload)
    short, whole = 8 * -(-L * 9 // 8), L * 64
    assert sizes == [whole, short, 0, whole, short]
    assert len(users.models) == K


class Restless(Total):
    """An aggregator whose row changes by more than the sum of the terms."""

    def update(self, users: np.ndarray, ivs: Tensor) -> Tensor:
        return super().update(users, ivs + 1)


def test_a_row_that_changes_by_more_than_the_sum_travels_whole() -> None:
    users, total = Terms([terms(n, 20) for n in range(3)], [set()] * 3), Restless(M + 1)
    communicator = Sums(symmetric(K=20, H=5, r=3), wire="int4")
    play(communicator, users, total, range(3))
    assert communicator.ledger.bits("server_to_relays").payload == 3 * (L * 64)
    expected = [*total.state["last"][0].tolist(), 3]
    assert all(model.tolist() == expected for model in users.models.values())


def test_terms_that_are_all_zero() -> None:
    """No scale is known after them, so the next terms travel whole."""
    zeros = torch.zeros_like(terms(0, 20))
    users = Terms([zeros, zeros, terms(0, 20), zeros], [set()] * 4)
    total, communicator = Total(M + 1), Sums(symmetric(K=20, H=5, r=3), wire="int2")
    play(communicator, users, total, range(4))
    assert total.state["last"][0].tolist()[:M] == terms(0, 20)[:, :M].sum(0).tolist()


def test_terms_that_are_too_large_are_refused() -> None:
    users = Terms([terms(0, 5).sign() * 2**62], [set()])
    with pytest.raises(RangeError):
        Sums(symmetric(K=5, H=5, r=1), wire="int4").round(0, users, Total(M + 1))


@pytest.mark.parametrize(("q", "faster"), [(1, True), (4, False)])
def test_few_bits_count_for_sums_and_for_coding(q: int, faster: bool) -> None:
    """K = 20, 3 of 5: 8 + 8 IVs against 3 + 1 rows of 9.25/4.25 the bits each."""
    coded = CodedHierarchical(symmetric(K=20, H=5, r=3), aggregators="all")
    coded.aggregators, coded.recipe = "auto", replace(coded.recipe, wire="int4")
    sums = sums_if_faster(coded, q * 640, 8, 640)
    assert (sums is not None) is faster
    if sums:
        assert sums.recipe.bits == 4
        sums.round(0, Terms([terms(0, 20, 641)], [set()]), Total(641))
        note = sums.describe()["note"]
        assert "2.2 times the bits" in note
        assert f"instead of {(coded.theory.uplink + coded.theory.downlink) * 640 * 4.25 / 1e8:.3g} s" in note


def left_over_by_rare_users(rounds: int, K: int, visits: Callable[[int, np.random.Generator], set[int]]) -> list[float]:
    """The largest leftover in units of the user's own largest term, round by round, of user 0 or of all others.

    Each user's terms are the same in all rounds, the worst case; those of user 0 are ten times larger.
    """
    rng = np.random.default_rng(1)
    of_one = torch.from_numpy(rng.integers(-(2**30), 2**30, (K, M + 1)))
    of_one[0] *= 10
    absent = [set(range(K)) - visits(round, rng) for round in range(rounds)]
    users, total = Terms([of_one] * rounds, absent), Total(M + 1)
    communicator = Sums(symmetric(K=K, H=2, r=1), Network(), "int4", aggregators="server")
    largest, left = of_one[:, :M].abs().amax(1).double(), []
    for round in range(rounds):
        communicator.round(round, users, total)
        (host,) = communicator.nodes.hosts  # type: ignore[union-attr]
        left.append(float((left_over(host.coder).abs().amax(1) / largest).max()))
    return left


def every_tenth(round: int, rng: np.random.Generator) -> set[int]:
    return set(range(round % 10 > 0, 4))


def fewer_and_fewer(round: int, rng: np.random.Generator) -> set[int]:
    """User 0 in rounds 1, 2, 4, 8, ..."""
    return set(range((round & (round - 1)) > 0, 4))


def sampled(round: int, rng: np.random.Generator) -> set[int]:
    return set(rng.choice(40, 2, replace=False).tolist())


@pytest.mark.parametrize(
    ("rounds", "visits"),
    [
        (150, every_tenth),
        pytest.param(1000, every_tenth, marks=pytest.mark.slow),
        pytest.param(1000, fewer_and_fewer, marks=pytest.mark.slow),
        pytest.param(500, sampled, marks=pytest.mark.slow),
    ],
)
def test_what_rare_users_leave_over_is_bounded(rounds: int, visits: Callable) -> None:
    """Larger terms than all others have are behind for a few visits, then fit."""
    left = left_over_by_rare_users(rounds, 40 if visits is sampled else 4, visits)
    assert max(left) < 5
    assert visits is sampled or max(left[rounds // 2 :]) < 2


def test_scales_follow_terms_that_shrink_although_a_user_is_gone() -> None:
    """User 0, who is there for 10 rounds, keeps scales from falling for as long again, not for good."""
    start = torch.from_numpy(np.random.default_rng(1).integers(-(2**40), 2**40, (4, M + 1)))
    ivs = [start >> (round // 4) for round in range(120)]
    users, total = Terms(ivs, [set()] * 10 + [{0}] * 110), Total(M + 1)
    communicator = Sums(symmetric(K=4, H=2, r=1), Network(), "int4", aggregators="server")
    for round in range(120):
        communicator.round(round, users, total)
    (host,) = communicator.nodes.hosts  # type: ignore[union-attr]
    left = left_over(host.coder)[1:].abs().max()
    assert int(left) < 4 * int(ivs[-1].abs().max())


def test_receipts_that_would_grow_take_no_memory() -> None:
    """3 MB of receipts would grow to 3 GB."""
    packer, zeros = zlib.compressobj(), bytes(2**20)
    first, block = (packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    packed = np.frombuffer(first + 3071 * block, np.uint8)
    content = np.concatenate([packed, numbers_to_bytes([len(packed)])])
    tracemalloc.start()
    with pytest.raises(CodingError, match="receipts"):
        unpacked(content, 10)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert zlib.decompressobj().decompress(first + block) == 2 * zeros
    assert most < 4 * len(packed)
