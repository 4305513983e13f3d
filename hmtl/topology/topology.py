"""Who hears whom: the network as one frozen value, and what follows from it.

Shapes: K users, H relays, G [H, K] of 0/1; users and relays are numbered from 0.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from hmtl.errors import TopologyError

Scalar = TypeVar("Scalar", bound=np.generic)
MOST_USERS, MOST_RELAYS, MOST_LINKS = 10_000_000, 10_000, 100_000_000  # so that no number alone fills the memory


@dataclass(frozen=True, eq=False, repr=False)
class Topology:
    """A two-hop network: users, the relays that hear them, and one server behind the relays.

    Two topologies are equal when the same relays hear the same users; positions are for drawing only.
    A relay may hear everybody or nobody, but every user must have a relay, unless `restricted` takes them away: who has
    none left is *absent*, sends nothing, and counts nowhere.

    Args:
        G: [H, K] array-like of 0/1, `G[i, k] = 1` iff relay i hears user k; kept as a read-only uint8 array.
        layout: positions (users [K, 2], relays [H, 2]) in units of length, or None.

    Raises:
        TopologyError: H < 1, K < 1, an entry other than 0 and 1, or a user without relay.

    Ref: Hu et al. 2022, Section II.
    """

    G: NDArray[np.uint8]
    layout: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "G", _frozen(_checked(self.G)))
        if self.layout is not None:
            users, relays = (np.array(xy, dtype=np.float64) for xy in self.layout)
            given, needed = (users.shape, relays.shape), ((self.K, 2), (self.H, 2))
            if given != needed:
                raise TopologyError(
                    f"layout has shapes {given}, but each user and relay needs one point. Give {needed}."
                )
            object.__setattr__(self, "layout", (_frozen(users), _frozen(relays)))

    def at(self, round: int) -> "Topology":
        """The network of a round: this one in all of them, as of a `Moving` it is not."""
        return self

    @property
    def H(self) -> int:
        """Number of relays."""
        return int(self.G.shape[0])

    @property
    def K(self) -> int:
        """Number of users, absent ones included."""
        return int(self.G.shape[1])

    @property
    def r(self) -> float:
        """Mean number of relays that hear a user who is present."""
        return float(self.degrees.sum() / max(1, len(self.present)))

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """[K] the number of relays that hear each user, `r_k`."""
        return _frozen(self.G.sum(axis=0, dtype=np.int64))

    @cached_property
    def active(self) -> tuple[int, ...]:
        """The relays that hear somebody; the others take part in nothing."""
        return _numbers(self.G.any(axis=1))

    @cached_property
    def present(self) -> tuple[int, ...]:
        """The users that some relay hears, which is all of them, but for topologies that were `restricted`."""
        return _numbers(self.G.any(axis=0))

    @cached_property
    def core(self) -> NDArray[np.uint8]:
        """G of the active relays and present users alone, so that no row and no column of it is zero."""
        return _frozen(self.G[np.ix_(self.active, self.present)])

    def N(self, i: int) -> tuple[int, ...]:
        """The users that relay i hears."""
        return _numbers(self.G[i])

    def relays_of(self, k: int) -> tuple[int, ...]:
        """The relays that hear user k, `N(k)`."""
        return _numbers(self.G[:, k])

    def I(self, z: int) -> tuple[int, ...]:  # noqa: E743 - the paper's symbol
        """The users that exactly z relays hear, `I_z`; those of z = 0 are absent."""
        return _numbers(self.degrees == z)

    @cached_property
    def types(self) -> Mapping[tuple[int, ...], tuple[int, ...]]:
        """Each distinct N(k) with its users, absent ones aside; a type is all that coding needs to know of a user."""
        present = np.array(self.present, dtype=np.int64)
        if not len(present):
            return MappingProxyType({})
        packed = np.packbits(self.G[:, present], axis=0)
        order = np.lexsort(~packed[::-1])  # equal columns become neighbours, and keep their order
        packed, order = packed[:, order], present[order]
        cuts = np.flatnonzero((packed[:, 1:] != packed[:, :-1]).any(axis=0)) + 1
        groups = np.split(order, cuts)
        return MappingProxyType({self.relays_of(users[0]): tuple(users.tolist()) for users in groups})

    @cached_property
    def serving(self) -> NDArray[np.int64]:
        """[K] the one relay of N(k) that forwards user k's IV in the uncoded scheme and sends it its model, or -1.

        Balanced: no choice has a smaller largest number of users per relay. Absent users have -1.
        """
        return _frozen(balanced(self.G))

    def restricted(
        self,
        users: Iterable[int] | None = None,
        relays: Iterable[int] | None = None,
        links: ArrayLike | None = None,
    ) -> "Topology":
        """The part of the network that took part in a round, `G_t`: as many users and relays, with the same numbers.

        Args:
            users: who may be heard; None: all.
            relays: who may hear; None: all.
            links: [H, K] of 0/1, the links that held; None: all. There is no link that G does not have.

        Returns:
            A topology in which other users have zero columns and other relays zero rows.

        Raises:
            TopologyError: a number that no user or relay has, or `links` of another shape or with other entries.
        """
        held = self.G if links is None else _zeros_and_ones(links, "links")
        if held.shape != self.G.shape:
            raise TopologyError(
                f"links has shape {held.shape}, but says of each relay and user whether a link held. "
                f"Give {self.G.shape}."
            )
        left = self.G * held * _mask(relays, self.H, "relays")[:, None] * _mask(users, self.K, "users")
        made = object.__new__(Topology)  # users without relay are an error only where a network is made
        made.__dict__.update(G=_frozen(left), layout=self.layout)
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topology) and np.array_equal(self.G, other.G)

    def __hash__(self) -> int:
        return hash((self.G.shape, self.G.tobytes()))

    def __repr__(self) -> str:
        return f"Topology(K={self.K}, H={self.H}, r={self.r:.4g})"


def check_size(K: int, H: int, tables: int = 1) -> None:
    """Refuse a network, or so many tables of one, that would not fit, before it is made.

    Raises:
        TopologyError: it is too large.
    """
    if K > MOST_USERS or H > MOST_RELAYS or K * H * tables > MOST_LINKS:
        times = f" at {tables} times" if tables > 1 else ""
        raise TopologyError(
            f"K={K} users and H={H} relays{times} are too many: there are at most {MOST_USERS:,} users, "
            f"{MOST_RELAYS:,} relays and {MOST_LINKS:,} pairs of them. Lower the numbers."
        )


def _checked(G: ArrayLike) -> NDArray[np.uint8]:
    """A copy of G as uint8, or an error that says what is wrong with it."""
    given = _zeros_and_ones(G, "G")
    unheard = np.flatnonzero(~given.any(axis=0))
    if len(unheard):
        raise TopologyError(
            f"No relay hears {name_users(unheard)}, counted from 0. Give every user a relay, or leave such users out."
        )
    return given


def _zeros_and_ones(table: ArrayLike, name: str) -> NDArray[np.uint8]:
    """A copy of the table [H, K] as uint8."""
    try:
        given = np.asarray(table)
    except ValueError:
        raise TopologyError(f"{name} is ragged: its rows differ in length. Give H rows of K entries each.") from None
    if given.ndim != 2 or given.size == 0:
        raise TopologyError(
            f"{name} has shape {given.shape}, which is no table. Give H rows of K entries, each 0 or 1."
        )
    bad = np.argwhere((given != 0) & (given != 1))
    if len(bad):
        i, k = bad[0].tolist()
        entry = given.tolist()[i][k]
        raise TopologyError(
            f"{name}[{i}, {k}] is {entry!r}, but it says whether relay {i} hears user {k}. Write the number 1 if so, "
            "else 0."
        )
    return given.astype(np.uint8)


def _mask(numbers: Iterable[int] | None, n: int, name: str) -> NDArray[np.uint8]:
    """[n] 1 at `numbers`, or everywhere for None."""
    if numbers is None:
        return np.ones(n, dtype=np.uint8)
    chosen = np.fromiter(numbers, dtype=np.int64)
    wrong = chosen[(chosen < 0) | (chosen >= n)]
    if len(wrong):
        raise TopologyError(f"{name} names {wrong[0]}, but they are numbered from 0 to {n - 1}. Give such numbers.")
    mask = np.zeros(n, dtype=np.uint8)
    mask[chosen] = 1
    return mask


def name_users(numbers: NDArray[np.integer[Any]]) -> str:
    """`user 3` or `users 3, 5, 8 ...`, for messages."""
    shown = ", ".join(str(k) for k in numbers[:10]) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
    return f"user {shown}" if len(numbers) == 1 else f"users {shown}"


def _numbers(mask: ArrayLike) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())


def _frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    array.flags.writeable = False
    return array


def balanced(G: NDArray[np.uint8], speeds: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """A relay for each user [K], such that the relay with most users for its speed has as few as can be.

    Users move along chains of relays from the slowest relay to one that stays faster even with one user more. When
    chains reach none, the users of all that they reach have no other relays, so that no choice does better. Who is
    absent gets -1.

    Args:
        G: who hears whom [H, K].
        speeds: of the relays [H], positive, in any unit; None: all alike.
    """
    present = np.flatnonzero(G.any(axis=0))
    if len(present) < G.shape[1]:
        chosen = np.full(G.shape[1], -1)
        chosen[present] = balanced(G[:, present], speeds)
        return chosen
    H, K = G.shape
    speed = np.ones(H) if speeds is None else speeds
    turn = np.arange(K) % G.sum(axis=0, dtype=np.int64)  # user k starts at the (k mod r_k)-th of its relays
    serving: NDArray[np.int64] = np.argmax(G.cumsum(axis=0, dtype=np.int32) > turn, axis=0)
    movable = np.stack([G[:, serving == i].sum(axis=1, dtype=np.int64) for i in range(H)])  # i serves, j hears too
    while True:
        load = movable.diagonal()
        source = int((load / speed).argmax())
        reached, previous = breadth_first_order(csr_array(movable > 0), source)
        target = min(reached.tolist(), key=lambda j: (load[j] + 1) / speed[j])
        if (load[target] + 1) / speed[target] >= load[source] / speed[source]:
            return serving
        even = (load[source] * speed[target] - load[target] * speed[source]) / (speed[source] + speed[target])
        surplus = max(1, int(even))
        chain = [target]
        while chain[0] != source:
            chain.insert(0, int(previous[chain[0]]))
        steps = list(pairwise(chain))
        amount = min(surplus, *(int(movable[step]) for step in steps))
        for i, j in steps:
            users = np.flatnonzero((serving == i) & (G[j] == 1))[:amount]
            heard = G[:, users].sum(axis=1, dtype=np.int64)
            movable[i] -= heard
            movable[j] += heard
            serving[users] = j
