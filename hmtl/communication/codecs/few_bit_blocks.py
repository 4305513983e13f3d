"""Blocks: IVs and models in floats, rounded to few bits; hosts' coders keep the rest of IVs, in `held`.

Coders send differences to what the receiver is known to hold, so that a rounding error is part of the next difference,
and none is lost for good. Terms of sums are rounded in `few_bit_words`.

Up: to IVs that are changes, which aggregators add up, what rounding left over of the last one is added first. Other
IVs, such as models, travel as differences to what the aggregators made of the user's last one that counted. What is
left over, or what the aggregators hold, stays pending at the user until it learns whether its IV counted.

Down: the aggregators send differences to base_k, a model that user k is known to hold. An IV of user k proves that it
holds the model sent last, since a user without it takes no part; the receipt that comes with each model tells the user
whether that IV was heard. So a lost model needs no repair, and no message has to name its base.

K users, m numbers per IV or model, e further numbers.
"""

import numpy as np
import torch
from torch import Tensor

from hmtl.communication.codecs import block_loops
from hmtl.communication.codecs.formats import BLOCK, FEW_BITS, OWN, PLANES, Quantizer
from hmtl.communication.codecs.plain import AggregatorCoder, Further, HeardUsers, UserCoder
from hmtl.communication.codecs.rows import joined, pack, replaced, take
from hmtl.errors import ConfigError, RangeError
from hmtl.io.arrays import Ids
from hmtl.io.row_layout import RowLayout


class Blocks:
    """A quantizer to integers of few bits; each block of numbers has a scale of its own.

    A number x becomes round(x/s), where s is the largest |x| of its block divided by 2^(b-1) - 1, rounded up to a
    bfloat16. Before that, a whole block is rotated, so that what rounding leaves out has no preferred direction, see
    `block_loops`.

    Args:
        width: b, the bits of an integer: 8, 4, 3 or 2.
    """

    def __init__(self, width: int) -> None:
        if width not in PLANES:
            raise ConfigError(f"Blocks of {width}-bit numbers: choose a width of {', '.join(map(str, PLANES))} bits.")
        self.width = width

    def bits(self, m: int) -> int:
        full, rest = divmod(m, BLOCK)
        return full * self._block_bits(BLOCK) + (self._block_bits(rest) if rest else 0)

    def encode(self, x: Tensor) -> Tensor:
        rows = np.empty((len(x), self.bits(x.shape[1]) // 8), np.uint8)
        if block_loops.encode(_compiled(x).contiguous().numpy(), self.width, np.array(PLANES[self.width]), rows):
            raise RangeError(
                "an update or model is not finite, or too large for a number of few bits: training diverges. Lower "
                "solver.step or solver.passes, raise lam, or scale the data."
            )
        return torch.from_numpy(rows)

    def decode(self, rows: Tensor, out: Tensor) -> None:
        numbers = _compiled(out)
        block_loops.decode(rows.contiguous().numpy(), self.width, np.array(PLANES[self.width]), numbers.numpy())
        if numbers is not out:
            out.copy_(numbers)

    def _block_bits(self, size: int) -> int:
        return 16 + sum(8 * -(-size * plane // 8) for plane in PLANES[self.width])


def _compiled(x: Tensor) -> Tensor:
    """Return x in a type that the compiled loops know."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


QUANTIZERS = {name: Blocks(width) for name, width in FEW_BITS.items()}
"""Quantizers by the name that `wire` gives them."""


def name_of_quantizer(quantizer: Quantizer) -> str:
    """Return the format of rows that a quantizer rounds, one of FORMATS."""
    return f"blocks{quantizer.width}" if type(quantizer) is Blocks else OWN


class QuantizedUserCoder(UserCoder):
    """A host's coder for numbers of few bits.

    Args:
        layout: of the rows.
        quantizer: rounds numbers.
        members: the numbers of these users in the network [n], ascending.

    Attributes:
        held: each user's last IV that counted, as aggregators hold it [n, m]; if IVs are changes, what rounding left
            over, with the opposite sign, which is what aggregators hold beyond the sum of all changes.
        pending: the same, if the IV that was sent last counts [n, m].
        base: the model that aggregators know each user to hold [n, m].
        newest: the model that each user received last [n, m].
    """

    STATE = ("held", "pending", "base", "newest")
    whole = True

    def __init__(self, layout: RowLayout, quantizer: Quantizer, members: Ids) -> None:
        super().__init__(layout, None)
        self.quantizer = quantizer
        self.members = members
        origin = layout.origin.cpu().contiguous()
        self.newest = self.base = origin.expand(len(members), -1)
        self.pending = self.held = (torch.zeros_like(origin) if layout.changes else origin).expand_as(self.base)

    def encode(self, users: Ids, ivs: Tensor, first: int, further: Further | None = None) -> tuple[Tensor, Tensor]:
        at, m = self._rows(users), self.row_layout.numbers
        held, numbers = take(self.held, at), ivs[:, :m].cpu()
        wanted = numbers - held
        payload, sent = self.quantizer.encode(wanted), torch.empty_like(wanted)
        self.quantizer.decode(payload, sent)
        self.pending = replaced(self.pending, at, sent - wanted if self.row_layout.changes else sent + held)
        extras = further(sent.to(ivs.device)) if further else ivs[:, m:]
        return payload, pack(extras, 0, ivs.dtype)[1]

    def format(self, dtype: torch.dtype) -> str:
        return name_of_quantizer(self.quantizer)

    def commit(self, users: Ids) -> None:
        at = self._rows(users)
        self.base = replaced(self.base, at, take(self.newest, at))
        self.held = replaced(self.held, at, take(self.pending, at))

    def rescale(self, users: Ids, factors: Tensor) -> None:
        at = self._rows(users)
        self.held = replaced(self.held, at, factors[:, None].to(self.held) * take(self.held, at))

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        at, m = self._rows(users), self.row_layout.numbers
        models = torch.empty(len(users), m, dtype=dtype)
        self.quantizer.decode(payload, models)
        models += take(self.base, at)
        self.newest = replaced(self.newest, at, models)
        return joined(models, extras, dtype)

    def _rows(self, users: Ids) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.members, users))


class QuantizedAggregatorCoder(AggregatorCoder):
    """An aggregator's coder for numbers of few bits.

    Args:
        layout: of the rows.
        quantizer: rounds numbers.
        K: number of users.

    Attributes:
        held: each user's last IV that counted [K, m]; empty if IVs are changes.
        base: the model that each user is known to hold [K, m].
        sent: the difference to it that was sent to each user last, as it traveled, uint8 [K, bytes].
    """

    STATE = ("held", "base", "sent")

    def __init__(self, layout: RowLayout, quantizer: Quantizer, K: int) -> None:
        super().__init__(layout.numbers, None)
        self.changes = layout.changes
        self.quantizer = quantizer
        origin = layout.origin.cpu().contiguous()
        self.held = origin.expand(0 if self.changes else K, -1)
        self.base = origin.expand(K, -1)
        self.sent = quantizer.encode(torch.zeros_like(origin)[None]).expand(K, -1)

    @property
    def newest(self) -> Tensor:
        """The model that was sent to each user last [K, m]."""
        change = torch.empty_like(self.base, memory_format=torch.contiguous_format)
        self.quantizer.decode(self.sent, change)
        return change.add_(self.base)

    def decode(self, users: Ids, payload: Tensor, extras: Tensor, dtype: torch.dtype, row_format: str) -> Tensor:
        numbers = torch.empty(len(users), self.numbers, dtype=dtype)
        self.quantizer.decode(payload, numbers)
        if not self.changes:
            at = torch.from_numpy(users)
            numbers += take(self.held, at)
            self.held = replaced(self.held, at, numbers.clone())
        return joined(numbers, extras, dtype)

    def encode(self, models: Tensor, dtype: torch.dtype, heard: HeardUsers) -> tuple[Tensor, Tensor, str]:
        known = torch.from_numpy(heard.users)
        self.base = replaced(self.base, known, take(self.newest, known))
        self.sent = self.quantizer.encode(models[:, : self.numbers].to(self.base) - self.base)
        _, extras = pack(models[:, self.numbers :], 0, dtype)
        return self.sent, torch.cat([extras, self._receipts(heard.last)], dim=1), name_of_quantizer(self.quantizer)
