"""Further combinations of what the server received, so that every aggregator can do without any e of its messages.

Aggregator j has need_j messages to decode from; e further ones make up for any e that are lost iff every e columns of
[P_j | 1] are independent, where P_j [e, need_j] makes the further messages of the others (a parity check of a code that
is MDS: MacWilliams and Sloane 1977, ch. 11). GF(2^8) has too few elements for that with more than 257 - e messages,
and for a random draw with far fewer. So a message is split into s parts, which are one number of GF(2^8s).

Shapes: numbers of GF(2^8s) are uint8 arrays [.., s], s a power of 2; R messages received, n pieces.
"""

from collections.abc import Sequence
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmtl.errors import CodingError
from hmtl.gf256 import field as gf256
from hmtl.gf256.field import matmul
from hmtl.rng import generator

SPLITS = (1, 2, 4)  # s
TRIES = 20  # a draw fails with a probability of at most 1/2
MOST_CHECKED = 10_000  # sets of e - 2 columns that are gone through, about a second
TRACE_ONE = 32  # an element of GF(2^8) with trace 1 over GF(2)
PRODUCTS, INVERSES = gf256.PRODUCTS.numpy(), gf256.INVERSES.numpy()

Numbers = NDArray[np.uint8]


def check_margin(margin: int) -> None:
    """Refuse what is no number of messages.

    Raises:
        CodingError: it is below 0.
    """
    if margin < 0:
        raise CodingError(f"margin={margin} messages cannot be spare. Set it to 0 or more.")


def further(
    margin: int,
    uplink: Tensor,
    missing: Sequence[Tensor],
    inverses: Sequence[Tensor],
    seed: int,
    *name: str | int,
) -> tuple[int, Tensor]:
    """The first draw of e = `margin` further combinations that makes up for any e messages of any aggregator.

    Args:
        uplink: the messages received, acting on all pieces [R, n].
        missing: of each aggregator, the pieces that it misses [need_j].
        inverses: how it gets them of its first need_j messages, what it heard apart [need_j, need_j].

    Returns:
        s, and the combinations as they act on the parts of messages [e·s, R·s]: part h of message r is row r·s + h.

    Raises:
        CodingError: there are too many messages for such a margin.
    """
    needs = [len(pieces) for pieces in missing]
    if too_much := obstacle(margin, needs):
        raise CodingError(too_much)
    s = _split(margin, needs)
    for attempt in range(TRIES):
        X = generator(seed, "further", *name, attempt).integers(0, 256, (margin, len(uplink), s), np.uint8)
        rows = torch.from_numpy(X.transpose(0, 2, 1).reshape(margin * s, -1))  # part by part, numbers of GF(2^8)
        made = matmul(rows, uplink)
        checks = (matmul(made[:, pieces], inverse) for pieces, inverse in zip(missing, inverses, strict=True))
        if all(_independent(_columns(P.numpy(), margin)) for P in checks):
            return s, torch.from_numpy(_on_parts(X))
    raise CodingError(f"margin={margin}: in each of {TRIES} draws some messages were not spare. Try another seed.")


def obstacle(margin: int, needs: Sequence[int]) -> str:
    """Why aggregators that need so many messages each cannot have such a margin; empty where they can."""
    if not margin or _split(margin, needs):
        return ""
    return (
        f"margin={margin} is too much for a code of {max(needs)} messages to {len(needs)} aggregators: that any "
        f"{margin} of them are spare cannot be made sure of. Lower it, max_pieces or generation."
    )


def _split(margin: int, needs: Sequence[int]) -> int:
    """The least s with which a draw succeeds at least every other time, as each set fails with a probability of 2^-8s.

    0 where there is none, or it takes too long to check.
    """
    sets = sum(comb(need + margin, margin) for need in needs)
    checked = sum(comb(need + margin, margin - 2) for need in needs) if margin > 2 else 0
    return next((s for s in SPLITS if 2 * sets <= 256**s), 0) if checked <= MOST_CHECKED else 0


def _columns(P: Numbers, e: int) -> Numbers:
    """The columns of [P | 1], of P part by part [e·s, need]: [need + e, e, s]."""
    s = len(P) // e
    unit = np.zeros((e, e, s), np.uint8)
    unit[:, :, 0] = np.eye(e, dtype=np.uint8)
    return np.concatenate([P.reshape(e, s, -1).transpose(2, 0, 1), unit])


def _independent(columns: Numbers) -> bool:
    """Whether every e of the columns [n, e, s] are independent."""
    n, e, _ = columns.shape
    if n < e:
        return True
    if not np.all(columns.any(axis=(1, 2))):
        return False
    if e == 1:
        return True
    if e == 2:  # no two are multiples of each other
        first, second = columns[:, 0], columns[:, 1]
        slopes = np.concatenate([np.any(first, axis=1, keepdims=True), _product(second, _inverse(first))], axis=1)
        return bool(len(np.unique(slopes, axis=0)) == n)
    for t, column in enumerate(columns[: n - e + 1]):  # the first of e columns: others have to be so without its part
        pivot = int(np.flatnonzero(column)[0]) // column.shape[1]
        factors = _product(columns[t + 1 :, pivot], _inverse(column[pivot])[None])
        rest = columns[t + 1 :] ^ _product(factors[:, None], column[None])
        if not _independent(np.delete(rest, pivot, axis=1)):
            return False
    return True


def _on_parts(X: Numbers) -> Numbers:
    """What multiplies by X [e, R, s] does to the s parts of the other factors: [e·s, R·s]."""
    e, R, s = X.shape
    by_part = [_product(X, part) for part in np.eye(s, dtype=np.uint8)]  # of each [e, R, s]
    return np.stack(by_part, axis=-1).transpose(0, 2, 1, 3).reshape(e * s, R * s)


def _product(a: Numbers, b: Numbers) -> Numbers:
    """The elementwise products over GF(2^8s): a0 + a1·β of two numbers of half the parts, where β² = β + γ.

    With γ of trace 1 over GF(2) β² + β + γ has no root; so has γ·β in turn, which starts from `TRACE_ONE`.
    """
    half = a.shape[-1] // 2
    if not half:
        return np.asarray(PRODUCTS[a, b])
    (a0, a1), (b0, b1) = (np.split(x, 2, axis=-1) for x in (a, b))
    low = _product(a0, b0)
    return np.concatenate([low ^ _product(_product(a1, b1), _gamma(half)), low ^ _product(a0 ^ a1, b0 ^ b1)], axis=-1)


def _inverse(a: Numbers) -> Numbers:
    """The elementwise inverses over GF(2^8s), with 0 for 0: conjugates by norms, β and β + 1 being conjugate."""
    half = a.shape[-1] // 2
    if not half:
        return np.asarray(INVERSES[a])
    a0, a1 = np.split(a, 2, axis=-1)
    scale = _inverse(_product(a0, a0 ^ a1) ^ _product(_product(a1, a1), _gamma(half)))
    return np.concatenate([_product(a0 ^ a1, scale), _product(a1, scale)], axis=-1)


def _gamma(s: int) -> Numbers:
    return np.array([0] * (s - 1) + [TRACE_ONE], np.uint8)
