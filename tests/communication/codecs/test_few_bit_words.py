"""Terms in few bits, compared with Python's integers; rounds of them with absent users and lost messages."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from adding import Terms, Total, left_over, owed, rounded, terms
from apart import Apart
from changed import poisoned
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hmtl.communication import Network, Sums, SumsOfRows
from hmtl.communication.codecs.few_bit_words import FewBits, FewBitTermCoder, longest_absence
from hmtl.communication.codecs.formats import FEW_BITS, REQUEST
from hmtl.communication.flows.planner import SUMS
from hmtl.communication.messages import IVS, MODELS, Message
from hmtl.errors import RangeError
from hmtl.io.row_layout import RowLayout
from hmtl.testing.topologies import topologies
from hmtl.topology import Topology, symmetric

M = 6  # numbers of `terms`, one further number beside them
L = M + 2  # with two votes on the scale of their block
BITS = st.sampled_from(sorted(FEW_BITS.values()))


def powers(exponents: list[int]) -> Tensor:
    return torch.tensor([[2**e for e in exponents], [0] * len(exponents)])


@given(
    bits=BITS,
    K=st.integers(1, 40),
    masked=st.booleans(),
    n=st.integers(0, 3),
    m=st.integers(1, 200),
    reach=st.integers(0, 60),
    seed=st.integers(0, 999),
)
def test_terms_and_what_is_owed_are_rounded_and_packed_as_by_definition(
    bits: int, K: int, masked: bool, n: int, m: int, reach: int, seed: int
) -> None:
    """On scales that are too large or too small, or fit; with users in any rows, and others that stay as they are."""
    rng, formats, h = np.random.default_rng(seed), FewBits(bits, K, m, masked), 2 * n + 2
    terms, errors = (torch.from_numpy(rng.integers(-(2**reach), 2**reach, (x, m), endpoint=True)) for x in (n, h))
    exponents = np.clip(reach - bits + 2 + rng.integers(-12, 12, formats.blocks), 0, 55).tolist()
    places = torch.from_numpy(rng.permutation(h))
    owed, rest, others = places[:n], places[n : 2 * n], places[2 * n :]
    before, most, word = errors.clone(), 2 ** (bits - 1) - 1, formats.terms.bits
    rows = formats.rounded(terms, powers(exponents), errors, owed, rest)
    assert torch.equal(errors[others], before[others])
    assert torch.equal(errors[owed], before[owed])
    for k in range(n):
        x = [int(a) + int(b) for a, b in zip(terms[k], before[owed[k]], strict=True)]
        q, left, misfits, needs = [], [], [], []
        for block, e in enumerate(exponents):
            these, scale = x[64 * block : 64 * block + 64], 2**e
            q += [max(-most, min(most, math.floor(Fraction(number, scale) + Fraction(1, 2)))) for number in these]
            limit = most * scale * Fraction(3, 2)
            misfits.append(max(map(abs, these)) > math.floor(limit))
            needs.append(max(map(abs, these)) > math.floor(limit / 2))
        left = [number - each * 2 ** exponents[at // 64] for at, (number, each) in enumerate(zip(x, q, strict=True))]
        value = sum((int(each) % 2**word) << (word * at) for at, each in enumerate([*q, *misfits, *needs]))
        assert bytes(rows[k].tolist()) == value.to_bytes(formats.terms.nbytes, "little")
        assert errors[rest[k]].tolist() == left


@given(bits=BITS, m=st.integers(1, 130), seed=st.integers(0, 99))
def test_terms_on_unknown_scales_travel_as_they_are(bits: int, m: int, seed: int) -> None:
    rng, formats = np.random.default_rng(seed), FewBits(bits, 20, m)
    terms, errors = (torch.from_numpy(rng.integers(-(2**60), 2**60, (h, m))) for h in (2, 4))
    x = terms + errors[[2, 0]]
    rows = formats.rounded(terms, powers([0] * formats.blocks) * 0, errors, torch.tensor([2, 0]), torch.tensor([3, 1]))
    numbers, *votes = formats.split(formats.whole.unpack(rows))
    assert torch.equal(numbers, x)
    assert not torch.cat(votes).any()
    assert not errors[[3, 1]].any()


@given(bits=BITS, m=st.integers(1, 200), reach=st.integers(0, 50), seed=st.integers(0, 99))
def test_values_are_what_users_no_longer_owe(bits: int, m: int, reach: int, seed: int) -> None:
    rng, formats = np.random.default_rng(seed), FewBits(bits, 20, m)
    x = torch.from_numpy(rng.integers(-(2**reach), 2**reach, (3, m), endpoint=True))
    scales = powers(rng.integers(0, 50, formats.blocks).tolist())
    rows, rest = rounded(formats, x, scales)
    assert torch.equal(formats.values(rows.sum(0, keepdim=True), scales), (x - rest).sum(0, keepdim=True))


@given(bits=BITS, reach=st.integers(0, 55), far=st.integers(-8, 8), K=st.integers(1, 30), seed=st.integers(0, 999))
def test_scales_come_to_fit_the_largest_term(bits: int, reach: int, far: int, K: int, seed: int) -> None:
    """From any start, within as many rounds as there are doublings between, and then stay; leftovers stay bounded."""
    m, most = 70, 2 ** (bits - 1) - 1
    rng, formats = np.random.default_rng(seed), FewBits(bits, K, m)
    scales = powers([max(0, reach - bits + 2 + far)] * 2)
    x = torch.from_numpy(rng.integers(-(2**reach), 2**reach, (K, m), endpoint=True))
    for _ in range(30):
        rows, _ = rounded(formats, x, scales)
        scales = formats.next_scales(rows.sum(0, keepdim=True), scales)
    for e, block in zip(scales[0].tolist(), (x[:, :64], x[:, 64:]), strict=True):
        peak = int(block.abs().max())
        assert peak <= 1.5 * most * e
        assert e <= max(1, peak * 4 / (3 * most) + 2) or e == int(scales.max()) >> 10
    owed = torch.zeros_like(x)
    for _ in range(50):  # the same terms again and again
        rows, owed = rounded(formats, x + owed, scales)
        scales = formats.next_scales(rows.sum(0, keepdim=True), scales)
    assert int(owed.abs().max()) <= 2 ** (reach + 2)


def test_a_block_that_was_zero_is_not_far_behind() -> None:
    formats, x = FewBits(4, 20, 128), torch.zeros(1, 128, dtype=torch.int64)
    x[0, 0] = 7 * 2**30
    scales = formats.first_scales(x, 1)
    assert scales.tolist() == [[2**31, 2**21], [0, 0]]
    assert formats.next_scales(rounded(formats, 0 * x, scales)[0], scales).tolist() == [[2**30, 2**20], [0, 0]]


def test_a_scale_outlasts_rounds_without_the_user_who_needs_it() -> None:
    """A user whose terms are 32 times those of the others takes part in every fifth round, and is never far behind."""
    formats, scales = FewBits(4, 2, 1), powers([10])
    small, large = torch.tensor([[7 * 2**10]]), torch.tensor([[7 * 2**15]])
    owed = torch.zeros_like(large)
    for round in range(200):
        rows, _ = rounded(formats, small, scales)
        if round % 5 == 0:
            own, owed = rounded(formats, large + owed, scales)
            rows = rows + own
        scales = formats.next_scales(rows, scales)
    assert int(owed) < 2 * int(large)


@given(bits=BITS, peak=st.integers(1, 2**61), n=st.integers(1, 200))
def test_first_scales_fit_independent_terms(bits: int, peak: int, n: int) -> None:
    formats, most = FewBits(bits, 200, 3), 2 ** (bits - 1) - 1
    (scale,), _ = formats.first_scales(torch.tensor([[1, -peak, 0]]), n).tolist()
    of_one = peak // math.isqrt(n)
    assert scale == 1 << (of_one // most).bit_length()
    assert of_one <= most * scale


@pytest.mark.parametrize(("K", "bits"), [(1, 4), (2, 5), (20, 9), (32, 9), (33, 10), (100, 11)])
def test_sums_of_all_users_fit(K: int, bits: int) -> None:
    formats = FewBits(4, K, 128)
    assert formats.L == 132
    assert (formats.terms.bits, formats.sums.bits, formats.whole.bits) == (4, bits, 64)
    for total in (torch.full((1, 132), sign * 7 * K) for sign in (1, -1)):
        assert torch.equal(formats.sums.unpack(formats.sums.pack(total)), total)


def test_numbers_that_are_too_large_are_refused() -> None:
    formats, largest = FewBits(4, 20, 3), torch.full((1, 3), 2**61)
    for scales in (powers([0]), 0 * powers([0])):
        for far in (-largest - 1, largest + 1):
            with pytest.raises(RangeError):
                rounded(formats, far, scales)
        rounded(formats, largest, scales)
    with pytest.raises(RangeError):
        formats.values(torch.full((1, 5), 16), powers([59]))
    assert (formats.values(torch.full((1, 5), 8), powers([59])) == 2**62).all()


def test_rounds_that_need_a_scale_do_not_use_up_its_hold() -> None:
    """A block that has doubled outlasts 8 rounds in which nobody needs it, however many between them do."""
    formats, scales = FewBits(4, 20, 1), powers([10])
    too_large, needing, small = (torch.tensor([[number * 2**10]]) for number in (11, 14, 1))

    def after(x: Tensor, scales: Tensor) -> Tensor:
        return formats.next_scales(rounded(formats, x, scales)[0], scales)

    scales = after(too_large, scales)
    for _ in range(8):
        scales = after(small, after(needing, after(needing, scales)))
        assert scales[0].tolist() == [2**11]
    assert after(small, scales)[0].tolist() == [2**10]


@pytest.mark.parametrize(
    ("counted", "longest"), [([9, 9], 1), ([9, 7, 8], 3), ([9, 4], 6), ([9, 3], 1), ([-2, -2], 1)], ids=str
)
def test_who_was_away_for_more_than_half_of_all_rounds_is_left_out(counted: list[int], longest: int) -> None:
    assert longest_absence(np.array(counted), round=9) == longest


def test_nothing_is_kept_of_users_who_never_took_part() -> None:
    """Users come one after the other, some again; what they owe survives that rows are added, and a resume."""
    formats, members, rng = FewBits(2, 20, 70), np.arange(3, 20, 2), np.random.default_rng(0)
    coder = FewBitTermCoder(RowLayout.zeros(70, torch.int64, 1), formats, members)
    coder.scales, expected = powers([10, 10]), dict[int, Tensor]()
    assert not coder.state_dict()["errors"].numel()
    for users in ([9], [3, 19], [3, 9], [5, 7, 11, 13]):
        x = torch.from_numpy(rng.integers(-(2**12), 2**12, (len(users), 71)))
        payload, _ = coder.encode(np.array(users), x, 0)
        coder.commit(np.array(users[:-1]))  # the last one's terms are lost
        for k, sent, row in zip(users[:-1], formats.terms.unpack(payload), x, strict=False):
            expected[k] = expected.get(k, 0) + row[:70] - 2**10 * sent[:70]
        state = coder.state_dict()
        coder = FewBitTermCoder(coder.row_layout, formats, members)
        coder.load_state_dict(state)
    assert len(coder.state_dict()["errors"]) == 7
    for k, row in zip(members.tolist(), left_over(coder), strict=True):
        assert torch.equal(row, expected.get(k, torch.zeros_like(row)))


def test_scales_that_no_aggregator_sends_become_powers_of_two() -> None:
    """A relay that lies can make users' terms wrong, but no host stop."""
    formats, everybody = FewBits(4, 2, 193), np.arange(2)
    coder = FewBitTermCoder(RowLayout.zeros(193, torch.int64, 1), formats, everybody)
    row = torch.cat(
        [torch.zeros(1, 193, dtype=torch.int64), torch.tensor([[3, -7, 2**62, 2**40 + 5] + 4 * [0]])], dim=1
    )
    coder.decode(everybody, formats.whole.pack(row), torch.empty(1, 0, dtype=torch.uint8), torch.int64, "int64")
    assert coder.scales[0].tolist() == [2, 1, 2**61, 2**40]


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
@pytest.mark.slow
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
