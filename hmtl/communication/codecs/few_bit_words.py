"""Words of few bits: terms rounded on scales that all users share; hosts' coders keep the rest, in `errors`.

IVs are rounded in `few_bit_blocks`.

It is added to the user's next terms, so that terms sent plus what is owed always equal the terms that counted
(docs/theory/low_precision.md).

K users, n rows, m numbers in a row of terms; B = ⌈m/64⌉ blocks of 64 numbers, the last of which may be shorter. A row
has L = m + 2B words. All are int64, and all arithmetic is exact, so that sums have the same bits in any order.

A user has to add x = t + e: its term, and e, what rounding left over before. It sends q = clip(round(x/s)) and keeps
x − q·s as the next e. The scale s of a block is a power of two that follows from sums alone, so that nobody has to know
anything of a single user. After the q's, a row has two votes for each block: whether the block does not *fit* its scale
(a number exceeds 1.5 times the largest q·s), and whether it *needs* it (a number exceeds half of that). A scale doubles
if there is a vote that a block does not fit. It halves once every user has taken part without needing it; a scale that
has doubled outlasts HOLD rounds before. So what rounding leaves over is bounded, however rarely a user takes part
(docs/theory/low_precision.md).

S, the row of absolute sums, changes by s·Σq in a round. Users get the sum of the rows, Σq and the votes on scales, and
add s·Σq to the last S. A user who lacks the last S stays idle and requests it; in that round, everybody gets the whole
S, with the scales.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hmtl.communication.codecs import word_loops
from hmtl.communication.codecs.formats import BLOCK, INT64
from hmtl.communication.codecs.plain import Further, HeardUsers, Read, State
from hmtl.communication.codecs.rows import bytes_to_numbers, from_bytes, numbers_to_bytes, to_bytes
from hmtl.communication.codecs.words import MAX_TERM, RowFormat, SumCoder, TermCoder
from hmtl.errors import RangeError
from hmtl.io.arrays import Ids
from hmtl.io.row_layout import RowLayout

STAMP = 4  # bytes before a row's other overhead: its number n; a row of few bits is to be added to row n − 1
HOLD = 8  # rounds in which nobody needs a scale that has doubled, before they count toward its halving
SPREAD = 10  # no scale is less than 2^-10 of the row's largest, so that a block that was zero soon has its scale


@dataclass(frozen=True)
class FewBits:
    """The formats of sums whose terms have `bits` bits.

    Scales are int64 [2, B]: the scale of each block, and in how many rounds nobody has needed it since somebody did; −h
    if it is held for h such rounds first. They are zeros if they are unknown; then terms are not rounded.

    Attributes:
        bits: b.
        K: number of users.
        numbers: m.
        masked: whether terms are masked modulo the words of sums, and have as many bits.
    """

    bits: int
    K: int
    numbers: int
    masked: bool = False
    stamp: ClassVar[int] = STAMP

    @property
    def name(self) -> str:
        """The name of the format of terms and sums on known scales."""
        return f"int{self.bits}"

    @cached_property
    def blocks(self) -> int:
        """B."""
        return -(-self.numbers // BLOCK)

    @cached_property
    def L(self) -> int:
        """Words in a row."""
        return self.numbers + 2 * self.blocks

    @cached_property
    def terms(self) -> RowFormat:
        """Format of a user's terms."""
        return self.sums if self.masked else RowFormat(self.L, self.bits)

    @cached_property
    def sums(self) -> RowFormat:
        """Format of sums of up to K rows of terms: b + ⌈log₂ K⌉ bits."""
        return RowFormat(self.L, self.bits + (self.K - 1).bit_length())

    @cached_property
    def whole(self) -> RowFormat:
        """Format of terms before the scales are known, and of sums for users who lack the last row."""
        return RowFormat(self.L, 64)

    @cached_property
    def up(self) -> Mapping[str, tuple[RowFormat, RowFormat]]:
        return {INT64: (self.whole, self.whole), self.name: (self.terms, self.sums)}

    @cached_property
    def down(self) -> Mapping[str, RowFormat]:
        """Formats of a row for users who have the one before, and of the whole row."""
        return {self.name: self.sums, INT64: self.whole}

    @property
    def largest(self) -> int:
        """The largest q, 2^(b−1) − 1."""
        return (1 << (self.bits - 1)) - 1

    def rounded(self, terms: Tensor, scales: Tensor, errors: Tensor, owed: Tensor, rest: Tensor) -> Tensor:
        """Return rows of q's and votes, uint8 [n, bytes], and write what rounding leaves over to errors[rest].

        Args:
            terms: of n users, without what they owe [n, m].
            scales: of these terms; zeros: rows have words of 64 bits, and nothing is left over.
            errors: what rounding left over [h, m].
            owed: the rows of `errors` with what the users owe [n].
            rest: the rows of `errors` that receive x − q·s, others than those [n].

        Raises:
            RangeError: a number exceeds 2^61.
        """
        if scales.any():
            rows = torch.empty(len(terms), self.terms.nbytes, dtype=torch.uint8)
            words = rows.numpy(), self.terms.bits, self.largest
            of_users = terms.contiguous().numpy(), owed.numpy(), rest.numpy()
            fits = word_loops.round_terms(*of_users, errors.numpy(), scales[0].numpy(), MAX_TERM, *words)
        else:
            x = terms + errors[owed]
            errors[rest], rows = 0, self.whole.pack(pad(x, (0, 2 * self.blocks)))
            fits = not x.numel() or int(x.abs().max()) <= MAX_TERM
        if not fits:
            raise RangeError(
                "A term of a sum, plus what rounding left over before, exceeds 2^61 units of the grid. "
                "Lower fraction_bits, or solver.step if training diverges."
            )
        return rows

    def values(self, total: Tensor, scales: Tensor) -> Tensor:
        """Return the sum of terms [1, m] for a sum of rows [1, L] and the scales of these rows.

        Raises:
            RangeError: it might not fit in 64 bits.
        """
        q, _, _ = self.split(total)
        if not scales.any():
            return q
        s = self._of_numbers(scales)
        if float((q.double() * s).abs().max()) > 2 * MAX_TERM:
            raise RangeError("A sum does not fit in 64 bits. Lower fraction_bits, or solver.step if training diverges.")
        return q * s

    def check(self, total: Tensor, few: bool, n: int) -> None:
        """Raise RangeError unless `total` [1, L] can be the sum of rows of n users; `few`: on known scales."""
        numbers, votes = torch.split(total, [self.numbers, 2 * self.blocks], dim=1)
        beyond = few and int(numbers.abs().max()) > n * self.largest
        if beyond or int(votes.min()) < 0 or int(votes.max()) > n * few:
            raise RangeError(f"no rows of {n} users with {self.bits} bits add up to it.")

    def next_scales(self, total: Tensor, scales: Tensor, absence: int = 1) -> Tensor:
        """Return the scales of the next rows for a sum of rows [1, L], their scales, and the longest absence."""
        _, misfits, needs = self.split(total)
        s, quiet = scales[:1], scales[1:]
        quiet = torch.where(needs > 0, quiet.clamp_max(0), quiet + 1)
        halves = quiet >= absence
        quiet = torch.where(misfits > 0, -HOLD, quiet.masked_fill(halves, absence * 3 // 4))
        return _spread(torch.where(misfits > 0, 2 * s, torch.where(halves, s // 2, s)), quiet)

    def first_scales(self, total: Tensor, n: int) -> Tensor:
        """Return scales that follow from the first sum of terms [1, m] of n users; zeros if the sum is zero.

        They fit terms that are as large as independent terms with this sum, 1/√n of it.
        """
        if not total.any():
            return torch.zeros(2, self.blocks, dtype=torch.int64)
        peaks = pad(total.abs(), (0, -self.numbers % BLOCK)).view(1, self.blocks, BLOCK).amax(2)
        _, exponents = torch.frexp((peaks // (self.largest * math.isqrt(n))).double())
        return _spread(torch.ones_like(peaks) << exponents, torch.zeros_like(peaks))

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the numbers [n, m] and both votes [n, B] of rows [n, L]."""
        m, B = self.numbers, self.blocks
        return rows[:, :m], rows[:, m : m + B], rows[:, m + B :]

    def _of_numbers(self, scales: Tensor) -> Tensor:
        """Return the scale of each number [1, m]."""
        return scales[:1].repeat_interleave(BLOCK, dim=1)[:, : self.numbers]


def longest_absence(counted: NDArray[np.int64], round: int) -> int:
    """Return the least n such that every user took part in the last n rounds, the present one included.

    Users who have been away for more than half of all rounds are left out: they may be gone for good.

    Args:
        counted: the round in which each user's terms counted last [K]; negative: in none.
        round: the present round.
    """
    present = counted[counted >= round // 2]
    return round + 1 - int(present.min()) if len(present) else 1


def _spread(s: Tensor, quiet: Tensor) -> Tensor:
    """Return scales, none of which is 0, or much less than the largest."""
    return torch.cat([torch.maximum(s, s.max() >> SPREAD).clamp_min_(1), quiet])


class FewBitTermCoder(TermCoder):
    """A host's coder that rounds terms to few bits, with leftovers.

    Args:
        layout: of the rows.
        formats: the formats of rows.
        members: the numbers of these users in the network [n], ascending.

    Attributes:
        errors: what rounding has left over, for each of h users who took part so far: its terms that counted minus what
            it sent, and the same if its pending update has counted, or the other way round [h, 2, m].
        owed: which of these 2·h rows has what each user owes, if its pending update has not counted; its neighbor has
            the other; −1: the user never took part [n].
        row: S, as the users received it last [1, m].
        scales: of the next terms, which follow from this row; all zero if none are known [2, B].
        held: the number of the last row that each user received [n]; 0 before the first one.
    """

    STATE = ("errors", "owed", "row", "scales", "held")
    whole = True

    def __init__(self, layout: RowLayout, formats: FewBits, members: Ids) -> None:
        super().__init__(layout, formats.K)
        self.formats = formats
        self.members = members
        self.errors = torch.zeros(0, 2, formats.numbers, dtype=torch.int64)
        self.owed = torch.full((len(members),), -1)
        self.row = torch.zeros(1, formats.numbers, dtype=torch.int64)
        self.scales = torch.zeros(2, formats.blocks, dtype=torch.int64)
        self.held = torch.zeros(len(members), dtype=torch.int64)
        self._number, self._absence = 0, 0  # of the row that arrives

    def encode(self, users: Ids, ivs: Tensor, first: int, further: Further | None = None) -> tuple[Tensor, Tensor]:
        payload, overhead = super().encode(users, ivs, first)
        owed = self._owed(users)
        terms, errors = from_bytes(payload, torch.int64), self.errors.flatten(0, 1)
        return self.formats.rounded(terms, self.scales, errors, owed, owed ^ 1), overhead

    def format(self, dtype: torch.dtype) -> str:
        return self.formats.name if self.scales.any() else INT64

    def requesting(self, idle: Ids) -> Ids:
        return idle

    def commit(self, users: Ids) -> None:
        places = self._places(users)
        self.owed[places] = self._owed(users) ^ 1

    def read(self, users: Ids, overhead: Tensor, round: int, row_format: str) -> Read:
        """Return what came with a row; if it is a sum to be added, leave out users who lack the row before it."""
        self._number = int(bytes_to_numbers(overhead[0, :STAMP].numpy())[0])
        everybody = np.arange(self.formats.K)
        _, receipts, extras = super().read(everybody, overhead[:, STAMP:], round, row_format)
        self._absence = longest_absence(receipts, round)
        if row_format != INT64:
            users = users[self.held[self._places(users)].numpy() == self._number - 1]
        return Read(users, receipts[users], extras)

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        if len(users):
            if row_format != INT64:
                total = self.formats.sums.unpack(payload)
                self.row = self.row + self.formats.values(total, self.scales)
                self.scales = self.formats.next_scales(total, self.scales, self._absence)
            else:
                row, *scales = self.formats.split(self.formats.whole.unpack(payload))
                self.row, self.scales = row.clone(), torch.cat(scales)
                if self.scales.any():  # a relay that lies may have sent others than powers of two
                    _, exponents = torch.frexp(self.scales[0].clamp(1, MAX_TERM).double())
                    self.scales[0] = torch.ones_like(self.scales[0]) << (exponents - 1)
            self.held[self._places(users)] = self._number
        return super().decode(users, to_bytes(self.row), extras, dtype, INT64)

    def state_dict(self) -> State:
        state = super().state_dict() | {"errors": self.errors[: self._h]}
        return {name: each.clone() for name, each in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict({name: state[name].clone() for name in self.STATE})

    @property
    def _h(self) -> int:
        """h; `errors` may have further rows."""
        return int((self.owed >= 0).sum())

    def _owed(self, users: Ids) -> Tensor:
        """Return `owed` of these users; one who never took part owes zeros from now on."""
        places, h = self._places(users), self._h
        new = places[self.owed[places] < 0]
        if len(new):
            if h + len(new) > len(self.errors):  # twice as many rows, since all are copied
                rows = min(max(h + len(new), 2 * h), len(self.members)) - len(self.errors)
                self.errors = torch.cat([self.errors, self.errors.new_zeros(rows, *self.errors.shape[1:])])
            self.owed[new] = 2 * torch.arange(h, h + len(new))
        return self.owed[places]

    def _places(self, users: Ids) -> Tensor:
        """Return the places of these users among the members."""
        return torch.from_numpy(np.searchsorted(self.members, users))


class FewBitSumCoder(SumCoder):
    """An aggregator's coder that turns a round's sum of few bits into the change of S, and S into the row for users.

    Args:
        formats: the formats of rows.

    Attributes:
        row: S, as it was sent last [1, m].
        number: the number of this row, counted from 1.
        scales: of the next terms; all zero if none are known [2, B].
    """

    STATE = ("row", "number", "scales")

    def __init__(self, formats: FewBits) -> None:
        super().__init__(formats.numbers)
        self.formats = formats
        self.row = torch.zeros(1, formats.numbers, dtype=torch.int64)
        self.number = torch.tensor(0)
        self.scales = torch.zeros(2, formats.blocks, dtype=torch.int64)
        self._total, self._change, self._next = self.row, self.row, self.scales
        self._few = False  # whether the round's terms have few bits

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        """Return the change of S, given the packed sum."""
        _, sums = self.formats.up[row_format]
        self._few, self._total = row_format != INT64, sums.unpack(payload)
        self.formats.check(self._total, self._few, len(users))
        self._change = self.formats.values(self._total, self.scales if self._few else torch.zeros_like(self.scales))
        if not self._few:
            self._next = self.formats.first_scales(self._change, len(users))
        change = to_bytes(self._change.clone())  # the aggregator may overwrite it
        return super().decode(users, change, extras, dtype, row_format)

    def encode(self, models: Tensor, dtype: torch.dtype, heard: HeardUsers) -> tuple[Tensor, Tensor, str]:
        """Return the round's sum, or S if users need it, with its stamp before the overhead, and its format."""
        payload, overhead, row_format = super().encode(models, dtype, heard)
        row, n = from_bytes(payload, torch.int64), len(heard.users)
        as_sum = self._few and n > 0 and not heard.requested and torch.equal(row - self.row, self._change)
        if self._few:
            self._next = self.formats.next_scales(self._total, self.scales, longest_absence(heard.last, heard.round))
        if n:
            self.scales = self._next
        self.row, self.number = row.clone(), self.number + 1
        stamp = torch.from_numpy(numbers_to_bytes([int(self.number)]))[None]
        if as_sum:
            packed, row_format = self.formats.sums.pack(self._total), self.formats.name
        else:
            packed = self.formats.whole.pack(torch.cat([row, self.scales.view(1, -1)], dim=1))
        return packed, torch.cat([stamp, overhead], dim=1), row_format
