"""Who hears whom: the network as one frozen value, and what follows from it.

Shapes: K users, H relays, G [H, K] of 0/1; users and relays are numbered from 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeVar

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hmtl.errors import TopologyError

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False, repr=False)
class Topology:
    """A two-hop network: users, the relays that hear them, and one server behind the relays.

    Two topologies are equal when the same relays hear the same users; positions are for drawing only.
    A relay may hear everybody or nobody, but every user must have a relay.

    Args:
        G: [H, K] array-like of 0/1, `G[i, k] = 1` iff relay i hears user k; kept as a read-only uint8 array.
        layout: positions (users [K, 2], relays [H, 2]) in units of length, or None.

    Raises:
        TopologyError: H < 2, K < 1, an entry other than 0 and 1, or a user without relay.

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

    @property
    def H(self) -> int:
        """Number of relays."""
        return int(self.G.shape[0])

    @property
    def K(self) -> int:
        """Number of users."""
        return int(self.G.shape[1])

    @property
    def r(self) -> float:
        """Mean number of relays that hear a user."""
        return float(self.degrees.mean())

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """[K] the number of relays that hear each user, `r_k`."""
        return _frozen(self.G.sum(axis=0, dtype=np.int64))

    @cached_property
    def active(self) -> tuple[int, ...]:
        """The relays that hear somebody; the others take part in nothing."""
        return _numbers(self.G.any(axis=1))

    def N(self, i: int) -> tuple[int, ...]:
        """The users that relay i hears."""
        return _numbers(self.G[i])

    def relays_of(self, k: int) -> tuple[int, ...]:
        """The relays that hear user k, `N(k)`."""
        return _numbers(self.G[:, k])

    def I(self, z: int) -> tuple[int, ...]:  # noqa: E743 - the paper's symbol
        """The users that exactly z relays hear, `I_z`."""
        return _numbers(self.degrees == z)

    @cached_property
    def types(self) -> Mapping[tuple[int, ...], tuple[int, ...]]:
        """Each distinct N(k) with its users: a type is all that coding needs to know of a user."""
        packed = np.packbits(self.G, axis=0)
        order = np.lexsort(~packed[::-1])  # equal columns become neighbours, and keep their order
        packed = packed[:, order]
        cuts = np.flatnonzero((packed[:, 1:] != packed[:, :-1]).any(axis=0)) + 1
        groups = np.split(order, cuts)
        return MappingProxyType({self.relays_of(users[0]): tuple(users.tolist()) for users in groups})

    @cached_property
    def serving(self) -> NDArray[np.int64]:
        """[K] the one relay of N(k) that forwards user k's IV in the uncoded scheme and sends it its model.

        Balanced: no choice has a smaller largest number of users per relay.
        """
        return _frozen(balanced(self.G))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topology) and np.array_equal(self.G, other.G)

    def __hash__(self) -> int:
        return hash((self.G.shape, self.G.tobytes()))

    def __repr__(self) -> str:
        return f"Topology(K={self.K}, H={self.H}, r={self.r:.4g})"


def _checked(G: ArrayLike) -> NDArray[np.uint8]:
    """A copy of G as uint8, or an error that says what is wrong with it."""
    try:
        given = np.asarray(G)
    except ValueError:
        raise TopologyError("G is ragged: its rows differ in length. Give H rows of K entries each.") from None
    if given.ndim != 2 or given.size == 0:
        raise TopologyError(f"G has shape {given.shape}, which is no table. Give H rows of K entries, each 0 or 1.")
    bad = np.argwhere((given != 0) & (given != 1))
    if len(bad):
        i, k = bad[0].tolist()
        entry = given.tolist()[i][k]
        raise TopologyError(
            f"G[{i}, {k}] is {entry!r}, but it says whether relay {i} hears user {k}. Write the number 1 if so, else 0."
        )
    H, _ = given.shape
    if H < 2:
        raise TopologyError(f"H={H}, but coding needs relays that hear different users. Give at least 2 rows.")
    deaf = np.flatnonzero(~given.any(axis=0))
    if len(deaf):
        raise TopologyError(
            f"No relay hears {name_users(deaf)}, counted from 0. Give every user a relay, or leave such users out."
        )
    return given.astype(np.uint8)


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
    chains reach none, the users of all that they reach have no other relays, so that no choice does better.

    Args:
        G: who hears whom [H, K].
        speeds: of the relays [H], positive, in any unit; None: all alike.
    """
    H, K = G.shape
    speed = np.ones(H) if speeds is None else speeds
    turn = np.arange(K) % G.sum(axis=0, dtype=np.int64)  # user k starts at the (k mod r_k)-th of its relays
    serving: NDArray[np.int64] = np.argmax(G.cumsum(axis=0, dtype=np.int32) > turn, axis=0)
    movable = np.stack([G[:, serving == i].sum(axis=1, dtype=np.int64) for i in range(H)])  # i serves, j hears too
    while True:
        load = movable.diagonal()
        source = int((load / speed).argmax())
        paths = nx.single_source_shortest_path(nx.from_numpy_array(movable > 0, create_using=nx.DiGraph), source)
        target = min(paths, key=lambda j: (load[j] + 1) / speed[j])
        if (load[target] + 1) / speed[target] >= load[source] / speed[source]:
            return serving
        even = (load[source] * speed[target] - load[target] * speed[source]) / (speed[source] + speed[target])
        surplus = max(1, int(even))
        steps = list(pairwise(paths[target]))
        amount = min(surplus, *(int(movable[step]) for step in steps))
        for i, j in steps:
            users = np.flatnonzero((serving == i) & (G[j] == 1))[:amount]
            heard = G[:, users].sum(axis=1, dtype=np.int64)
            movable[i] -= heard
            movable[j] += heard
            serving[users] = j
