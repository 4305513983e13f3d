"""Coders of sums: terms and rows of sums as bytes, in 64-bit words or in few bits.

m numbers in a row of terms, K users. In few bits, S, the row of absolute sums, changes by s·Σq in a round (see
`FewBitSumCoder`). Users get the sum of the rows, Σq and the votes on scales, and add s·Σq to the last S. A user who
lacks the last S stays idle and requests it; in that round, everybody gets the whole S, with the scales.

The errors of rounding terms are kept here and nowhere else: what rounding leaves over of a user's terms is added to its
next terms, so that terms sent plus what is owed always equal the terms that counted (docs/theory/low_precision.md).
"""

import zlib
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication.attendance import bytes_to_numbers, numbers_to_bytes
from hmtl.communication.coders import AggregatorCoder, Further, Ids, Read, State, UserCoder
from hmtl.communication.encoding import from_bytes, to_bytes, unpack
from hmtl.communication.rounding_of_sums import LARGEST, STAMP, FewBits, longest_absence
from hmtl.communication.row_formats import PlainRows, portions
from hmtl.communication.sides import UserSide
from hmtl.communication.wires import INT64
from hmtl.errors import CodingError, RangeError


class TermCoder(UserCoder):
    """A host's coder for terms of 64 bits, whose users share one row: of sums, or a model.

    Args:
        users: the user side.
        formats: the formats of rows.
        common: the type of a model that all users receive; None: they receive sums.
    """

    def __init__(self, users: UserSide, formats: PlainRows | FewBits, common: torch.dtype | None = None) -> None:
        super().__init__(users, torch.int64)
        self.formats = formats
        self._received = common or torch.int64

    def read(self, users: Ids, overhead: Tensor, round: int) -> Read:
        end, receipts = unpacked(overhead[0].numpy(), self.formats.K)
        return Read(users, receipts[users], overhead[:1, :end])

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype) -> Tensor:
        return unpack(payload, extras, self._received, self._received).expand(len(users), -1)


def unpacked(content: NDArray[np.uint8], K: int) -> tuple[int, Ids]:
    """Return how many bytes come before the receipts of K users, and the receipts, as `SumCoder.receipts` packed them.

    Raises:
        CodingError: they are not there, or not of K users.
    """
    nbytes = int(bytes_to_numbers(content[-4:])[0]) if len(content) >= 4 else 0
    before, reader, receipts = len(content) - 4 - nbytes, zlib.decompressobj(), b""
    if nbytes > 0 and before >= 0:
        with suppress(zlib.error):
            receipts = reader.decompress(content[before:-4].tobytes(), 4 * K + 1)  # which may be bombs
    if len(receipts) != 4 * K or not reader.eof:
        raise CodingError(f"it has no receipts of K={K} users")
    return before, bytes_to_numbers(np.frombuffer(receipts, np.uint8))


class SumCoder(AggregatorCoder):
    """An aggregator's coder for sums of 64 bits.

    Args:
        numbers: m.
        common: the type of a model that all users receive; None: they receive sums.
    """

    adds = True

    def __init__(self, numbers: int, common: torch.dtype | None = None) -> None:
        super().__init__(numbers, torch.int64 if common is None else common)

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        """Return the sum; raise RangeError if no terms that users may send add up to it."""
        sums = unpack(payload, extras, torch.int64, torch.int64)
        if sums.numel() and max(-int(sums.min()), int(sums.max())) > 2 * LARGEST:
            raise RangeError("it exceeds what terms of 64 bits may add up to.")
        return sums

    def receipts(self, counted: Ids) -> Tensor:
        # Most users' last round is the same, so the compressed receipts take far less than 4 bytes for each user.
        packed = np.frombuffer(zlib.compress(numbers_to_bytes(counted).tobytes()), np.uint8)
        return torch.from_numpy(np.concatenate([packed, numbers_to_bytes([len(packed)])]))[None]


class FewBitTermCoder(TermCoder):
    """A host's coder that rounds terms to few bits, with leftovers.

    Args:
        users: the user side.
        formats: the formats of rows.
        members: the numbers of these users in the network [n], ascending.

    Attributes:
        owed: what rounding has left over, for each user: its terms that counted minus what it sent [n, m].
        owed_if_counted: the same if the user's pending update has counted [n, m].
        row: S, as the users received it last [1, m].
        scales: of the next terms, which follow from this row; all zero if none are known [2, B].
        held: the number of the last row that each user received [n]; 0 before the first one.
    """

    STATE = ("owed", "owed_if_counted", "row", "scales", "held")
    whole = True

    def __init__(self, users: UserSide, formats: FewBits, members: Ids) -> None:
        super().__init__(users, formats)
        self.formats: FewBits = formats
        self.members = members
        self.owed, self.owed_if_counted = torch.zeros(2, len(members), formats.numbers, dtype=torch.int64)
        self.row = torch.zeros(1, formats.numbers, dtype=torch.int64)
        self.scales = torch.zeros(2, formats.blocks, dtype=torch.int64)
        self.held = torch.zeros(len(members), dtype=torch.int64)
        self._number, self._absence = 0, 0  # of the row that arrives

    def encode(self, users: Ids, ivs: Tensor, first: int, further: Further | None = None) -> tuple[Tensor, Tensor]:
        payload, overhead = super().encode(users, ivs, first)
        terms, places = from_bytes(payload, torch.int64), self._places(users)
        row_format, _ = self.formats.up[self.format(ivs.dtype)]
        rows = torch.empty(len(terms), row_format.nbytes, dtype=torch.uint8)
        for at in portions(torch.arange(len(terms)), self.formats.L):
            numbers, rest = self.formats.rounded(terms[at] + self.owed[places[at]], self.scales)
            rows[at], self.owed_if_counted[places[at]] = row_format.pack(numbers), rest
        return rows, overhead

    def format(self, dtype: torch.dtype) -> str:
        return f"int{self.formats.bits}" if self.scales.any() else INT64

    def requesting(self, idle: Ids) -> Ids:
        return idle

    def commit(self, users: Ids) -> None:
        counted = self._places(users)
        self.owed[counted] = self.owed_if_counted[counted]

    def read(self, users: Ids, overhead: Tensor, round: int) -> Read:
        """Return what came with a row; if it is a sum to be added, leave out users who lack the row before it."""
        self._number = int(bytes_to_numbers(overhead[0, :STAMP].numpy())[0])
        everybody = np.arange(self.formats.K)
        _, receipts, extras = super().read(everybody, overhead[:, STAMP:], round)
        self._absence = longest_absence(receipts, round)
        if self._number > 0:
            users = users[self.held[self._places(users)].numpy() == self._number - 1]
        return Read(users, receipts[users], extras)

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype) -> Tensor:
        if len(users):
            if self._number > 0:
                total = self.formats.sums.unpack(payload)
                self.row = self.row + self.formats.values(total, self.scales)
                self.scales = self.formats.next_scales(total, self.scales, self._absence)
            else:
                row, *scales = self.formats.split(self.formats.whole.unpack(payload))
                self.row, self.scales = row.clone(), torch.cat(scales)
                if self.scales.any():
                    self.scales[0].clamp_(1, LARGEST)  # or a relay that lies could make users divide by zero
            self.held[self._places(users)] = abs(self._number)
        return super().decode(users, to_bytes(self.row), extras, dtype)

    def state_dict(self) -> State:
        return {name: each.clone() for name, each in super().state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict({name: state[name].clone() for name in self.STATE})

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
        self._total, self._change, self._next, self._requested = self.row, self.row, self.scales, True
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

    def hear(self, counted: Ids, round: int, requested: bool) -> None:
        self._requested = requested
        if self._few:
            self._next = self.formats.next_scales(self._total, self.scales, longest_absence(counted, round))

    def encode(self, heard: Ids, models: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the round's sum, or S if users need it, with its stamp before the further numbers."""
        payload, extras = super().encode(heard, models, dtype)
        row = from_bytes(payload, torch.int64)
        as_sum = self._few and len(heard) > 0 and not self._requested and torch.equal(row - self.row, self._change)
        if len(heard):
            self.scales = self._next
        self.row, self.number = row.clone(), self.number + 1
        stamp = torch.from_numpy(numbers_to_bytes([int(self.number if as_sum else -self.number)]))[None]
        if as_sum:
            packed = self.formats.sums.pack(self._total)
        else:
            packed = self.formats.whole.pack(torch.cat([row, self.scales.view(1, -1)], dim=1))
        return packed, torch.cat([stamp, extras], dim=1)
