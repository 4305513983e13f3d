"""A round of secure sums without a network, with everything that is said in it."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from hmtl.communication.secure.masking import Mask, MaskingUser, Parts, Roster
from hmtl.communication.secure.neighbors import Degree

Numbers = np.ndarray


@dataclass
class UnmaskingServer(Roster):
    """A server in one round that all users talk to directly. The arguments are those of `Roster`."""

    def pass_on(self, users: np.ndarray, sealed: np.ndarray) -> np.ndarray:
        """Return, for each user, what its neighbors sealed for it [n, k, 48], given who sent shares [n', k, 48]."""
        return self.table(users, sealed)[self.around, self.opposite]

    def counted(self, users: np.ndarray) -> np.ndarray:
        """Return, for each user, which neighbors counted [n, k], given all users who did."""
        return np.isin(self.neighbors, users)

    def seeds(self, counted: np.ndarray, answers: np.ndarray, revealed: np.ndarray) -> np.ndarray:
        """Return the needed seeds [n', 16], given what users revealed, [n'] and [n', k, 16]; see `join`."""
        shares = self.table(answers, revealed)
        return self.join(counted, np.asarray(shares.any(axis=2)), shares)

    def table(self, users: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return a row for each user, given the rows of some; zeros for the others."""
        table = np.zeros((len(self.users), *rows.shape[1:]), rows.dtype)
        table[np.searchsorted(self.users, users)] = rows
        return table


@dataclass
class MaskedRound:
    """What happens to n users, who are numbers 3, 5, 7, ..., each with k neighbors.

    Args:
        n, degree: see there.
        silent: places of the users whose shares do not reach the server.
        order: of the places on the circle.

    Attributes:
        sealed: what each user who is not silent sent to its neighbors [k, 48], by place.
        sharing: the places of those whose shares enough neighbors read.
        neighbors, keys: what each user was told, by place.
        received: which neighbors shared, and what they sealed for the user, by place.
        revealed: the shares that a user revealed [k, 16], and which neighbors it was told had counted [k], by place.
    """

    n: int
    degree: Degree
    silent: Collection[int] = ()
    order: Numbers | None = None
    sealed: dict[int, Numbers] = field(default_factory=dict)
    received: dict[int, tuple[Numbers, Numbers]] = field(default_factory=dict)
    revealed: dict[int, tuple[Numbers, Numbers]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numbers = 3 + 2 * np.arange(self.n)
        self.users = [MaskingUser(int(number)) for number in self.numbers]
        advertised = np.stack([user.advertised for user in self.users])
        order = np.arange(self.n) if self.order is None else self.order
        self.server = UnmaskingServer(self.numbers, advertised, self.degree, order)
        self.neighbors, self.keys = self.server.neighbors, self.server.keys
        told = zip(self.users, self.neighbors, self.keys, strict=True)
        shares = [
            user.share(neighbors, keys, self.degree.threshold, np.ones(len(keys), bool))
            for user, neighbors, keys in told
        ]
        self.sealed = {place: shares[place] for place in range(self.n) if place not in self.silent}
        senders = self.numbers[list(self.sealed)]
        if self.sealed:
            sealed = self.server.pass_on(senders, np.stack([*self.sealed.values()]))
            read = np.stack([self.users[place].take(sealed[place]) for place in self.sealed])
            self.server.choose_sharers(self.server.table(senders, read), np.ones(self.n, bool))
        self.sharing = np.flatnonzero(self.server.shared).tolist()
        shared = self.server.shared[self.server.around]
        self.received = {place: (shared[place], sealed[place]) for place in self.sharing}
        self.masks([])  # users reveal shares only if they have sent a term

    def masks(self, parts: Parts) -> dict[int, list[Mask]]:
        """Return the mask of each user who shared seeds, by place."""
        return {place: self.users[place].mask(self.received[place][0], parts) for place in self.sharing}

    def unmask(self, counted: Collection[int], answering: Collection[int], parts: Parts) -> list[Mask]:
        """Return the sum of the masks of those who counted, given who answers."""
        counts = self.server.counted(self.numbers[sorted(counted)])
        for place in sorted(answering):
            shares = self.users[place].reveal(counts[place])
            assert shares is not None
            self.revealed[place] = shares, counts[place]
        rows = [shares for shares, _ in self.revealed.values()]
        revealed = np.array(rows, np.uint8).reshape(len(rows), self.neighbors.shape[1], 16)
        users = self.numbers[sorted(counted)]
        return self.server.unmask(users, self.server.seeds(users, self.numbers[sorted(answering)], revealed), parts)
