"""Codes for sums: relays send shares of a row of sums, and fewer of them than whole rows.

The row of sums s is cut into c pieces. Relay i sends x_i shares, each as long as a piece; s follows from them if the
relays of each user together send at least c shares. Over all c, the least Σ_i x_i / c is the fractional cover number of
the relays, while whole rows (c = 1) need a cover. All arithmetic is that of integers modulo 2^64, which wrap.

Every share is a column of D₀ = [I | Cauchy matrix], c × n over GF(2^m), any c columns of which are independent. D is D₀
with each entry replaced by the m × m matrix of zeros and ones that multiplies by it over GF(2). A square block of D is
invertible modulo 2^64 if its determinant is odd, that is, if it is invertible over GF(2), as c columns of D₀ are. So
each piece is cut into m stretches.

Shapes: K users, H relays; c pieces, n shares, m bits; g sets of c shares; L words of int64 in a row.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl import gf256
from hmtl.coding.covers import ShareProgram, cover
from hmtl.coding.formulas import Loads
from hmtl.coding.plan import PLAN_DIGEST_BYTES
from hmtl.coding.rates import TOLERANCE, Uplinks, demand_of
from hmtl.io.compiled import jit
from hmtl.topology import Topology

MAX_SUM_PIECES = 8
POLYNOMIALS = (0b11, 0b111, 0b1011, 0b10011, 0b100101, 0b1000011, 0b10000011, 0b100011101)  # primitive, of degree 1..8
MAX_ENTRIES = 10**7  # of all inverse matrices of a code
ACCEPTED_RATIO = 1.01  # times the bound: with padding, no better code is sought
COLUMNS_AT_ONCE = 2**13  # columns that are added or multiplied at once
Integers = NDArray[Any]  # integers of one type


@dataclass(frozen=True, eq=False)
class SumCode:
    """The shares of a row of sums that each relay sends, and how they are made and decoded.

    Attributes:
        H: number of relays.
        pieces: c; 1: each relay in `owners` sends a whole row.
        bits: m, so that a row is cut into c·m stretches.
        owners: [n] the relay of each share, ascending.
        sets: [g, c] sets of shares from which a row follows, each in ascending order.
        of_user: [K] the set that belongs to each user's relays; -1 for absent users.
        combine: D, int64 [c·m, n·m].
        bound: lower bound of `cost` for shares of any size, and for any scheme in which the server learns this sum.
        cost: the time in which the shares are sent; the slowest relay sends a row in 1.
    """

    H: int
    pieces: int
    bits: int
    owners: NDArray[np.int64]
    sets: NDArray[np.int64]
    of_user: NDArray[np.int64]
    combine: Tensor
    bound: float
    cost: float

    @cached_property
    def digest(self) -> bytes:
        """A digest of the code, which differs if another solver comes to another one."""
        parts = (self.owners, self.sets, self.of_user, self.combine.numpy())
        return hashlib.blake2b(b"".join(part.tobytes() for part in parts), digest_size=PLAN_DIGEST_BYTES).digest()

    @property
    def proven(self) -> bool:
        """Whether no scheme in which the server learns this sum takes less time to send it to the server."""
        return self.cost <= self.bound * (1 + TOLERANCE)

    @property
    def load(self) -> float:
        """Rows that the relays send in all, n/c."""
        return len(self.owners) / self.pieces

    def loads(self, spread: "SumCode", L: int = 0) -> Loads:
        """Return the loads if terms are added by this code, and rows spread by another; with padding for L words.

        With `unicast`, the server sends the shares that relays hand on.
        """
        up, last = self.padding(L) / self.pieces, spread.padding(L) * spread.load
        by_relay = tuple((np.bincount(self.owners, minlength=self.H) * up).tolist())
        return Loads(self.load * self.padding(L), min(1.0, self.load), by_relay, last, last)

    def padding(self, L: int) -> float:
        """Return the words of a padded row divided by L; 1 for L = 0."""
        return self.stretches(L) * self.pieces * self.bits / L if L else 1.0

    @cached_property
    def relays(self) -> tuple[int, ...]:
        """The relays that send shares, ascending."""
        return tuple(np.unique(self.owners).tolist())

    @cached_property
    def inverses(self) -> Tensor:
        """E, the inverse modulo 2^64 of the columns of D that belong to each set, int64 [g, c·m, c·m]."""
        return _inverses(self.pieces, len(self.owners), tuple(map(tuple, self.sets.tolist())))

    @cached_property
    def leaders(self) -> NDArray[np.int64]:
        """The relay that sends the first share of each user's set [K]; -1 for absent users.

        It also sends what cannot be cut into shares.
        """
        first = self.owners[self.sets[:, 0]] if len(self.sets) else np.empty(0, np.int64)
        return np.append(first, -1)[self.of_user]

    @cached_property
    def shares(self) -> Sequence[NDArray[np.int64]]:
        """The numbers of each relay's shares [H]."""
        return [np.flatnonzero(self.owners == i) for i in range(self.H)]

    def needs(self, i: int) -> NDArray[np.bool_]:
        """Return which of relay i's shares each user needs [K, x_i]."""
        needs = np.asarray((self.sets[:, :, None] == self.shares[i]).any(axis=1))
        return np.append(needs, np.zeros_like(needs, shape=(1, needs.shape[1])), axis=0)[self.of_user]

    def stretches(self, L: int) -> int:
        """Return the length of a stretch in words; the last stretch of a row of L words is padded."""
        return -(-L // (self.pieces * self.bits))

    def terms(self, i: int) -> Iterator[tuple[int, Tensor]]:
        """Yield sets, and the matrix that turns the sum of their users' terms, cut, into a part of relay i's shares.

        A set is a number in `of_user`. The shares are the sum of these parts, each int64 [x_i·m, stretch].
        """
        own = self.shares[i]
        places = np.searchsorted(own, self.sets)
        for group in np.flatnonzero(np.isin(self.sets, own).any(axis=1)).tolist():
            matrix = torch.zeros(len(own) * self.bits, self.pieces * self.bits, dtype=torch.int64)
            for at in np.flatnonzero(np.isin(self.sets[group], own)).tolist():
                to = int(places[group, at]) * self.bits
                matrix[to : to + self.bits] = self.inverses[group, at * self.bits : (at + 1) * self.bits]
            yield group, matrix

    def add(self, i: int, shares: Tensor, to: Tensor) -> None:
        """Add what relay i's shares, int64 [x_i·m, stretch], contribute to the row of sums, cut [c·m, stretch]."""
        product(_columns(self.combine, self.shares[i], self.bits), shares, to)

    def split(self, row: Tensor, shares: NDArray[np.int64]) -> Tensor:
        """Return some shares of a row [L] of integers, which is known, [len(shares)·m, stretch]."""
        made = row.new_zeros(len(shares) * self.bits, self.stretches(len(row)))
        add_terms(row[None], torch.zeros(1, dtype=torch.int64), _columns(self.combine, shares, self.bits).T, made)
        return made

    def join(self, group: int, shares: Tensor, L: int) -> Tensor:
        """Return the row [L] of which `split` made the shares of a set, [c·m, stretch]."""
        return product(self.inverses[group].T, shares).view(-1)[:L]


def _columns(combine: Tensor, shares: NDArray[np.int64], bits: int) -> Tensor:
    return combine[:, torch.from_numpy((shares[:, None] * bits + np.arange(bits)).ravel())]


@lru_cache(8)  # the users of a code differ from round to round, its sets hardly ever
def _inverses(c: int, n: int, sets: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return the inverse modulo 2^64 of the columns of D that belong to each set, see `SumCode.inverses`."""
    combine, bits = _combine(c, n), _bits(c, n)
    if not sets:
        return combine.new_zeros(0, len(combine), len(combine))
    A = torch.stack([_columns(combine, np.array(shares), bits) for shares in sets])
    over_gf2 = gf256.inverses(list(A.to(torch.uint8)))
    assert over_gf2 is not None, "any c columns of D are independent"
    X = torch.stack(over_gf2).to(torch.int64)
    for _ in range(6):  # correct modulo 2, then modulo 2^2, 2^4, ..., 2^64
        X = X @ (2 * torch.eye(A.shape[1], dtype=torch.int64) - A @ X)
    return X


def product(A: Tensor, X: Tensor, to: Tensor | None = None) -> Tensor:
    """Return A·X [n, L] modulo 2^w, for A int64 [n, m] and X [m, L] of w bits; it is added `to` a tensor if given."""
    result = X.new_zeros(len(A), X.shape[1]) if to is None else to
    _multiply(A.to(X.dtype).contiguous().numpy(), X.contiguous().numpy(), result.numpy())
    return result


def add_terms(rows: Tensor, at: Tensor, A: Tensor, to: Tensor, first: int = 0) -> None:
    """Add A·S to `to`, where S is the sum of some rows of terms, cut into stretches.

    Args:
        rows: numbers first, first + 1, .. of rows of terms, integers of any type [n, w].
        at: the rows to add.
        A: a matrix of `SumCode.terms`, [x·m, c·m].
        to: shares, [x·m, stretch] of the same type.
        first: see `rows`.
    """
    if not rows.numel():
        return
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    pitch, width = rows.stride(0), rows.shape[1]
    numbers = rows.as_strided(((len(rows) - 1) * pitch + width,), (1,)).numpy()  # a copy would cost more than the sum
    _add_cut(numbers, pitch, width, at.numpy(), A.to(rows.dtype).contiguous().numpy(), to.numpy(), first)


@jit()
def _add_multiples(factors: Integers, source: Integers, to: Integers, first: int) -> None:
    """Add multiples of a row [n] to columns first, first + 1, .. of rows: factors[i]·source to row i of `to`."""
    for i in range(len(factors)):
        factor, target = factors[i], to[i, first : first + len(source)]
        if factor != 0:
            for column in range(len(source)):
                target[column] += factor * source[column]


@jit()
def _add_cut(
    numbers: Integers, pitch: int, width: int, at: NDArray[np.int64], A: Integers, to: Integers, first: int
) -> None:
    """Add A·S to `to` [x, stretch], where S [c, stretch] is the sum of some rows, cut into c stretches.

    Args:
        numbers: the memory of rows, which hold columns first, first + 1, ..; all other columns are zero.
        pitch: how far a row's beginning is from the next one's, in numbers.
        width: the columns of a row.
        at: the rows to add.
        A: [x, c].
        to: receives the product.
        first: see `numbers`.
    """
    stretch, total = to.shape[1], np.empty(COLUMNS_AT_ONCE, to.dtype)
    for j in range(A.shape[1]):
        factors = A[:, j]
        if not factors.any():
            continue
        begin, end = max(j * stretch, first), min((j + 1) * stretch, first + width)
        for start in range(begin, end, COLUMNS_AT_ONCE):
            stop = min(end, start + COLUMNS_AT_ONCE)
            part = total[: stop - start]
            part[:] = 0
            for k in at:
                row = numbers[k * pitch + start - first : k * pitch + stop - first]
                if len(at) == 1:
                    part = row
                else:
                    for column in range(len(part)):
                        part[column] += row[column]
            _add_multiples(factors, part, to, start - j * stretch)


@jit()
def _multiply(A: Integers, X: Integers, to: Integers) -> None:
    """Add A·X to `to` [n, L], for A [n, m] and X [m, L]."""
    for start in range(0, X.shape[1], COLUMNS_AT_ONCE):
        for j in range(A.shape[1]):
            _add_multiples(A[:, j], X[j, start : start + COLUMNS_AT_ONCE], to, start)


def sum_code(t: Topology, uplinks: Uplinks | None = None, most_pieces: int = MAX_SUM_PIECES, L: int = 0) -> SumCode:
    """Return the code whose shares take the least time; whole rows if shares take no less.

    Integer programs find the shares, in large networks a greedy rule, which may miss the fewest. `SumCode.bound`
    bounds the distance.

    Args:
        t: the topology; absent users need no code.
        uplinks: links of the active relays; None: equal, so that the fewest shares take the least time.
        most_pieces: the largest c; 1: whole rows.
        L: words of a row, whose padding is counted, up to 1 % of the least time; 0: ignore padding.
    """
    if uplinks and not uplinks.parallel and len(set(uplinks.bandwidths)) == 1:
        uplinks = None
    if not t.present:
        return _assemble(t, 1, np.zeros(t.H, np.int64), 0.0, 0.0)
    types = Topology(np.unique(t.G[:, t.present], axis=1))
    return _assemble(t, *_shares_sent(types, uplinks, most_pieces, L))


@lru_cache(8)  # the same codes are needed for loads and bounds, and when other users of the same types take part
def _shares_sent(
    t: Topology, uplinks: Uplinks | None, most_pieces: int, L: int
) -> tuple[int, NDArray[np.int64], float, float]:
    """Return c, the shares of each relay [H], a lower bound of the time, and the time; see `sum_code`.

    They depend on the users' types alone, so that one user of each type is enough.
    """
    whole = cover(t, uplinks)
    counts = np.isin(np.arange(t.H), whole.relays).astype(np.int64)
    program = ShareProgram(demand_of(t).hears, uplinks)
    fractions, _ = program.solve(1, whole=False)
    bound = program.time(fractions)
    best, least = (1, counts, bound, whole.cost), whole.cost
    choices = range(2, most_pieces + 1)
    meet_bound = [c for c in choices if np.abs(c * fractions - np.rint(c * fractions)).max() < 1e-6]
    for c in dict.fromkeys([*meet_bound[:1], *choices]):
        if least <= bound * (ACCEPTED_RATIO if L else 1 + TOLERANCE):
            break
        x = np.rint(c * fractions if c in meet_bound else program.solve(c)[0]).astype(np.int64)
        cost = program.time(x) / c
        if _bits(c, int(x.sum())) > len(POLYNOMIALS) or cost >= least * (1 - TOLERANCE):
            continue
        counts = np.zeros(t.H, np.int64)
        counts[list(t.active)] = x
        code = _assemble(t, c, counts, bound, cost)
        padded = cost * code.padding(L)
        if padded < least * (1 - TOLERANCE) and len(code.sets) * len(code.combine) ** 2 <= MAX_ENTRIES:
            best, least = (c, counts, bound, cost), padded
    return best


def sum_codes(
    t: Topology, uplinks: Uplinks | None = None, most_pieces: int = MAX_SUM_PIECES
) -> tuple[SumCode, SumCode]:
    """Return the code by which relays send terms, and that by which they hand on the sums to users.

    Args: see `sum_code`.
    """
    up = sum_code(t, uplinks, most_pieces)
    return up, up if uplinks is None else sum_code(t, None, most_pieces)


def sum_loads(t: Topology, uplinks: Uplinks | None = None, most_pieces: int = MAX_SUM_PIECES) -> Loads:
    """Return the loads of sums: shares of a row, or whole rows, from the relays, and one row from the server.

    Args: see `sum_code`.
    """
    up, spread = sum_codes(t, uplinks, most_pieces)
    return up.loads(spread)


def sum_bounds(t: Topology) -> Loads:
    """Return lower bounds of the loads of any scheme in which the server learns the sums, and users get them from it.

    Relays send users only what follows from the server's messages. For each user, the relays that hear it together send
    at least one row and, if there are other users, receive one. The smallest such loads are solutions of a linear
    program. Terms may take any values, and users pass nothing on. Other schemes can need less (docs/theory/sums.md).
    """
    if not t.present:
        return Loads(0.0, 0.0)
    program = ShareProgram(demand_of(t).hears, None)
    least = round(program.time(program.solve(1, whole=False)[0]), 9)
    return Loads(least, 1.0, unicast=least, last_hop=least)


def _bits(c: int, n: int) -> int:
    """Return the smallest m for n shares of which any c suffice."""
    return 1 if c == 1 or n <= c + 1 else (n - 1).bit_length()


def _assemble(t: Topology, c: int, counts: NDArray[np.int64], bound: float, cost: float) -> SumCode:
    """Return the code in which the relays send these numbers of shares [H]."""
    owners = np.repeat(np.arange(t.H), counts)
    bits, present = _bits(c, len(owners)), list(t.present)
    heard = t.G.T[present][:, owners] == 1
    first = np.argsort(~heard, axis=1, kind="stable")[:, :c]
    sets, places = np.unique(first, axis=0, return_inverse=True)
    of_user = np.full(t.K, -1)
    of_user[present] = places.ravel()
    return SumCode(t.H, c, bits, owners, sets.reshape(-1, c), of_user, _combine(c, len(owners)), bound, cost)


def _combine(c: int, n: int) -> Tensor:
    """Return D, int64 [c·m, n·m]."""
    return torch.from_numpy(_lift(_shares(c, n), _bits(c, n)))


def _shares(c: int, n: int) -> NDArray[np.int64]:
    """Return D₀ [c, n], whose elements of GF(2^m) are numbers below 2^m."""
    bits = _bits(c, n)
    if bits == 1:
        return np.hstack([np.eye(c, dtype=np.int64), np.ones((c, max(0, n - c)), dtype=np.int64)])[:, :n]
    powers = np.ones((1 << bits) - 1, dtype=np.int64)  # of x, which generates all elements but 0
    for k in range(1, len(powers)):
        powers[k] = _times_x(powers[k - 1], bits)
    inverse = np.zeros(1 << bits, dtype=np.int64)
    inverse[powers] = np.roll(powers[::-1], 1)
    cauchy = inverse[np.arange(c)[:, None] ^ np.arange(c, n)]
    return np.hstack([np.eye(c, dtype=np.int64), cauchy])


def _times_x(elements: NDArray[np.int64], m: int) -> NDArray[np.int64]:
    """Return the products of elements of GF(2^m) and x."""
    doubled = elements << 1
    return np.where(doubled >> m & 1, doubled ^ POLYNOMIALS[m - 1], doubled).astype(np.int64)


def _lift(elements: NDArray[np.int64], m: int) -> NDArray[np.int64]:
    """Return the matrices [m, m] that multiply by elements [c, n] of GF(2^m), as one matrix [c·m, n·m]."""
    columns = [elements]
    for _ in range(m - 1):
        columns.append(_times_x(columns[-1], m))
    bits = np.stack(columns, axis=-1)[..., None, :] >> np.arange(m)[:, None] & 1  # [c, n, bit, column]
    c, n = elements.shape
    return np.asarray(bits.swapaxes(1, 2).reshape(c * m, n * m))
