"""Masks of secure sums: who makes, shares and removes them in one round. Nothing here knows a network.

A user's masked term is its term, plus a mask of its own, plus or minus a mask for each of its neighbors, all modulo
2^w in each number. The masks of two neighbors cancel in the sum. The four steps have the names of the paper:

    AdvertiseKeys: users send public keys, and the server tells each its neighbors' keys.
    ShareKeys: each user shares the seeds of its masks among its neighbors; the server passes on what it cannot read.
        Users say whose shares they could read. A user whose shares too few could read did not share.
    MaskedInputCollection: users send masked terms. These add up in relays and server; the sum is still masked.
    Unmasking: the server says whose terms counted. For these users, neighbors reveal shares of the seed of their own
        mask; for the users that dropped out since ShareKeys, of the seed of the masks that they have in common. They
        reveal only one of the two, so that the term of a single user stays masked.

Keys and seeds serve for one round only, since those of users that drop out become known.

K users; n of them advertise keys, each has k neighbors; L numbers of w bits in each part of a term.

Ref: Bonawitz et al. 2017; Bell et al. 2020 for the neighbors, chosen by the server, and for k and t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from hmtl.coding import shamir
from hmtl.communication.secure.crypto import (
    KEY_BYTES,
    SEED_BYTES,
    TAG_BYTES,
    agree,
    expand,
    key_from,
    new_seed,
    seal,
    unseal,
)
from hmtl.communication.secure.neighbors import Degree, circle
from hmtl.errors import HmtlError
from hmtl.io.arrays import NOBODY, Bytes, Ids

Mask = NDArray[np.unsignedinteger]
Parts = Sequence[tuple[int, int]]
"""The parts of a term: how many numbers, and how many bits each has."""
PUBLIC_KEYS_BYTES = 2 * KEY_BYTES  # bytes that a user advertises
SHARE_BYTES = SEED_BYTES  # bytes of a share
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES  # bytes of a sealed pair of shares


class UnmaskingError(HmtlError):
    """The sum cannot be unmasked."""


class MaskingUser:
    """A user in one round.

    Args:
        number: its number.

    Attributes:
        advertised: its two public keys, for sealing and for masks [64].
        neighbors: their numbers, once it has shared its seeds [k].
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._own, self._common = new_seed(), new_seed()  # of its own mask, and of its key for masks in common
        self._sealing, self._masking = X25519PrivateKey.generate(), key_from(self._common)
        keys = self._sealing.public_key(), self._masking.public_key()
        self.advertised: Bytes = _bytes(b"".join(key.public_bytes_raw() for key in keys))
        self.neighbors: Ids = NOBODY
        self._keys: list[tuple[bytes, bytes]] = []  # agreed with each neighbor
        self._strangers: NDArray[np.bool_] = np.empty(0, bool)  # neighbors without usable keys
        self._threshold = 0
        self._shares: dict[int, bytes] = {}  # of the seeds of neighbors, by their places
        self._shared: NDArray[np.bool_] = np.empty(0, bool)  # which neighbors shared their seeds
        self._revealed = False

    def share(self, neighbors: Ids, keys: Bytes, threshold: int, holds: NDArray[np.bool_]) -> Bytes | None:
        """Return a sealed pair of shares for each neighbor [k, 48], given what these advertised [k, 64].

        Rows are zero for neighbors that hold no shares [k]. Nobody reads what is sealed for a neighbor whose keys are
        zero. None: it refuses. A user shares its seeds only once, and with each neighbor once: more shares would tell
        more of them.
        """
        if len(self.neighbors) or len({self.number, *neighbors.tolist()}) <= len(neighbors):
            return None
        self.neighbors, self._threshold = neighbors, threshold
        agreed = [self._agreed(key[:KEY_BYTES].tobytes(), key[KEY_BYTES:].tobytes()) for key in keys]
        self._strangers = np.array([each is None for each in agreed])
        self._keys = [each or (2 * new_seed(), 2 * new_seed()) for each in agreed]
        own, common = shamir.split(np.stack([_bytes(self._own), _bytes(self._common)]), len(neighbors), threshold)
        contents = np.concatenate([own, common], axis=1)
        sealed = [
            seal(key, self.number < j, content.tobytes())
            for j, (key, _), content in zip(neighbors.tolist(), self._keys, contents, strict=True)
        ]
        return np.stack([_bytes(each) for each in sealed]) * holds[:, None]

    def take(self, sealed: Bytes) -> NDArray[np.bool_]:
        """Take the sealed shares of the neighbors [k, 48], and return which of them it can read [k].

        Rows of shares that did not arrive are zero.
        """
        for place, (j, (key, _), row) in enumerate(zip(self.neighbors.tolist(), self._keys, sealed, strict=True)):
            if content := unseal(key, j < self.number, row.tobytes()):
                self._shares[place] = content
        return np.isin(np.arange(len(sealed)), list(self._shares))

    def can_mask(self, shared: NDArray[np.bool_]) -> bool:
        """Return whether its masks can cancel, given which neighbors shared their seeds [k].

        It needs keys agreed with all of these, and t of them to reveal its seeds; honest nodes never report fewer.
        """
        usable = not (shared & self._strangers).any()
        return usable and int(shared.sum()) >= self._threshold

    def mask(self, shared: NDArray[np.bool_], parts: Parts) -> list[Mask]:
        """Return the mask of each part of the term [L], given which neighbors shared their seeds [k]."""
        self._shared = shared
        masks = [expand(self._own, part, *shape).copy() for part, shape in enumerate(parts)]
        for place in np.flatnonzero(self._shared).tolist():
            _add_common(masks, self._keys[place][1], self.number, int(self.neighbors[place]), parts)
        return masks

    def reveal(self, counted: NDArray[np.bool_]) -> Bytes | None:
        """Return a share of one of the seeds of each neighbor, given which of them counted [k, 16]; None: it refuses.

        A user reveals shares only once, if it takes part. Rows are zero where it has none.
        """
        if self._revealed or not len(self._shared):
            return None
        self._revealed = True
        shares = np.zeros((len(self.neighbors), SEED_BYTES), np.uint8)
        for place, content in self._shares.items():
            if self._shared[place]:
                shares[place] = _bytes(content[:SEED_BYTES] if counted[place] else content[SEED_BYTES:])
        return shares

    def _agreed(self, sealing: bytes, masking: bytes) -> tuple[bytes, bytes] | None:
        """Return what it agrees on with the owner of two keys, for sealing and for masks; None: nothing secret."""
        try:
            return agree(self._sealing, sealing), agree(self._masking, masking)
        except ValueError:  # a point of small order, with which all agree on zeros
            return None


@dataclass
class Roster:
    """The users of a round, who is whose neighbor, and what follows from it: whose seeds are needed for which masks.

    Args:
        users: the users that advertised keys, ascending [n].
        advertised: what they advertised [n, 64].
        degree: k and t.
        order: the n places in `users`, in the order of the circle.

    Attributes:
        around: the neighbors of each user, places in `users` [n, k].
        shared: which users shared their seeds [n].
    """

    users: Ids
    advertised: Bytes
    degree: Degree
    order: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.users)
        self.shared: NDArray[np.bool_] = np.zeros(n, bool)
        self.around = self.order[circle(n, self.degree.neighbors)[np.argsort(self.order)]]

    @property
    def neighbors(self) -> Ids:
        """The neighbors of each user [n, k]."""
        return self.users[self.around]

    @property
    def keys(self) -> Bytes:
        """What the neighbors of each user advertised [n, k, 64]."""
        return self.advertised[self.around]

    @property
    def opposite(self) -> NDArray[np.int64]:
        """The number of each user among the neighbors of its first, second, ... neighbor [k]."""
        return np.arange(self.degree.neighbors)[::-1]

    def choose_sharers(self, read: NDArray[np.bool_], holds: NDArray[np.bool_]) -> None:
        """Decide which users shared their seeds.

        Args:
            read: which neighbors' shares each user could read [n, k].
            holds: which users hold shares [n].
        """
        holding = holds[self.around]
        there = read[self.around, self.opposite] & holding
        self.shared = there.sum(axis=1) >= self.degree.readers(holding.sum(axis=1))

    def needed(self, counted: Ids) -> NDArray[np.int64]:
        """Return the places of the users who have a mask in the sum, given the users whose terms counted."""
        counts = np.isin(self.users, counted)
        meets = counts[self.around].any(axis=1)
        return np.flatnonzero(counts | (self.shared & meets))

    def holders(self, counted: Ids, revealed: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return whose shares reveal the needed seeds: which of its neighbors, and their places [n', t] each.

        Args:
            counted: the users whose terms counted.
            revealed: of which neighbors each user revealed a share [n, k].

        Raises:
            UnmaskingError: too few shares of a seed were revealed.
        """
        needed, t = self.needed(counted), self.degree.threshold
        around = self.around[needed]
        there = revealed[around, self.opposite]
        short = np.flatnonzero(there.sum(axis=1) < t)
        if len(short):
            user, many = self.users[needed[short[0]]], int(there[short[0]].sum())
            raise UnmaskingError(
                f"{many} of {self.degree.neighbors} neighbors of user {user} revealed shares, but {t} are needed"
            )
        chosen = np.argsort(~there, axis=1, kind="stable")[:, :t]
        return chosen, np.take_along_axis(around, chosen, axis=1)

    def join(self, counted: Ids, revealed: NDArray[np.bool_], shares: Bytes) -> Bytes:
        """Return the needed seeds [n', 16], given all shares [n, k, 16].

        This is linear: given some of the shares, and zeros for the others, it returns parts that add up to the seeds.
        The arguments and errors are those of `holders`.
        """
        chosen, holders = self.holders(counted, revealed)
        return shamir.join(chosen, shares[holders, self.opposite[chosen]])

    def unmask(self, counted: Ids, seeds: Bytes, parts: Parts) -> list[Mask]:
        """Return the sum of the masks of all terms that counted, for each part [L], given the needed seeds."""
        counts = np.isin(self.users, counted)
        masks = [np.zeros(L, np.min_scalar_type(2**w - 1)) for L, w in parts]
        for place, seed in zip(self.needed(counted).tolist(), seeds, strict=True):
            if counts[place]:
                for part, shape in enumerate(parts):
                    masks[part] += expand(seed.tobytes(), part, *shape)
                continue
            key, number = key_from(seed.tobytes()), int(self.users[place])
            for other in self.around[place][counts[self.around[place]]].tolist():
                agreed = agree(key, self.advertised[other, KEY_BYTES:].tobytes())
                _add_common(masks, agreed, int(self.users[other]), number, parts)
        return masks


def _add_common(masks: list[Mask], agreed: bytes, number: int, other: int, parts: Parts) -> None:
    """Add to a user's masks the mask that it has in common with another."""
    for part, shape in enumerate(parts):
        if number < other:
            masks[part] += expand(agreed, part, *shape)
        else:
            masks[part] -= expand(agreed, part, *shape)


def _bytes(content: bytes) -> Bytes:
    return np.frombuffer(content, np.uint8)
