"""The network as one immutable value, and what follows from it.

Shapes: K users, H relays, G [H, K] of 0 and 1; users and relays are numbered from 0.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hmtl.errors import TopologyError
from hmtl.topology.matching import balanced
from hmtl.topology.names import NAMELESS, Names

Scalar = TypeVar("Scalar", bound=np.generic)
MAX_USERS, MAX_RELAYS, MAX_LINKS = 10_000_000, 10_000, 100_000_000  # so that no setting alone fills the memory


@dataclass(frozen=True, eq=False, repr=False)
class Topology:
    """A two-hop network: users, the relays that hear them, and one server behind the relays.

    Two topologies are equal if the same relays hear the same users; positions are only for drawing, and names only for
    printing. A relay may hear all users or none. Every user needs a relay, except in a topology made by `restricted`,
    where a user without relay is *absent*: it sends nothing and is not counted.

    Args:
        G: [H, K] array-like of 0 and 1, `G[i, k] = 1` if relay i hears user k; stored as a read-only uint8 array.
        layout: positions (users [K, 2], relays [H, 2]) in units of length, or None.
        names: names of relays and users.

    Raises:
        TopologyError: G has no rows or columns, an entry other than 0 and 1, or a user without relay; or the names are
            not one for each relay or user.

    Ref: Hu et al. 2022, Section II.
    """

    G: NDArray[np.uint8]
    layout: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    names: Names = NAMELESS

    def __post_init__(self) -> None:
        G = _zeros_and_ones(self.G, "G")
        for what, names, count in zip(("relay", "user"), (self.names.relays, self.names.users), G.shape, strict=True):
            if names and len(names) != count:
                raise TopologyError(f"There are {len(names)} names for {count} {what}s. Give one name per {what}.")
        unheard = np.flatnonzero(~G.any(axis=0))
        if len(unheard):
            counted = "" if self.names.users else ", counted from 0"
            raise TopologyError(
                f"No relay hears {self.names.of_users(unheard)}{counted}. Give every user a relay, or omit these users."
            )
        object.__setattr__(self, "G", _frozen(G))
        if self.layout is not None:
            users, relays = (_frozen(np.array(points, dtype=np.float64)) for points in self.layout)
            object.__setattr__(self, "layout", (users, relays))

    def at(self, round: int) -> "Topology":
        """Return the network of a round: always this one. `Moving` has the same method."""
        return self

    @cached_property
    def H(self) -> int:
        """Number of relays."""
        return int(self.G.shape[0])

    @cached_property
    def K(self) -> int:
        """Number of users, including absent ones."""
        return int(self.G.shape[1])

    @property
    def r(self) -> float:
        """Mean number of relays that hear a present user."""
        return float(self.degrees.sum() / max(1, len(self.present)))

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """[K] the number of relays that hear each user, `r_k`."""
        return _frozen(self.G.sum(axis=0, dtype=np.int64))

    @cached_property
    def active(self) -> tuple[int, ...]:
        """The relays that hear at least one user; the others do not take part."""
        return _numbers(self.G.any(axis=1))

    @cached_property
    def present(self) -> tuple[int, ...]:
        """The users that a relay hears: all of them, unless the topology is `restricted`."""
        return _numbers(self.G.any(axis=0))

    @cached_property
    def core(self) -> NDArray[np.uint8]:
        """The rows of active relays and the columns of present users of G."""
        return _frozen(self.G[np.ix_(self.active, self.present)])

    def N(self, i: int) -> tuple[int, ...]:
        """Return the users that relay i hears."""
        return _numbers(self.G[i])

    def relays_of(self, k: int) -> tuple[int, ...]:
        """Return the relays that hear user k, `N(k)`."""
        return _numbers(self.G[:, k])

    def I(self, z: int) -> tuple[int, ...]:  # noqa: E743 - the paper's symbol
        """Return the users that exactly z relays hear, `I_z`; z = 0 gives the absent users."""
        return _numbers(self.degrees == z)

    @cached_property
    def types(self) -> Mapping[tuple[int, ...], tuple[int, ...]]:
        """The present users by type, which is their N(k): a code depends only on the users' types."""
        types: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for k in self.present:
            types[self.relays_of(k)].append(k)
        return MappingProxyType({relays: tuple(users) for relays, users in types.items()})

    @cached_property
    def serving(self) -> NDArray[np.int64]:
        """[K] the relay that forwards user k's IV without coding and sends its model.

        Balanced: no other choice has a smaller largest number of users per relay. Absent users have -1.
        """
        return _frozen(balanced(self.G))

    def restricted(
        self,
        users: Iterable[int] | None = None,
        relays: Iterable[int] | None = None,
        links: ArrayLike | None = None,
    ) -> "Topology":
        """Return the part of the network that takes part in a round, `G_t`.

        Users and relays keep their numbers.

        Args:
            users: users that may be heard; None: all.
            relays: relays that may hear; None: all.
            links: [H, K] of 0 and 1, the links that exist, besides those missing in G; None: all.

        Returns:
            A topology in which all other users have zero columns and all other relays zero rows.

        Raises:
            TopologyError: `links` has another shape or other entries.
        """
        existing = self.G if links is None else _zeros_and_ones(links, "links")
        if existing.shape != self.G.shape:
            raise TopologyError(
                f"links has shape {existing.shape}, but needs an entry for each relay and user. Give {self.G.shape}."
            )
        G = self.G * existing
        if relays is not None:
            G[np.setdiff1d(np.arange(self.H), list(relays))] = 0
        if users is not None:
            G[:, np.setdiff1d(np.arange(self.K), list(users))] = 0
        if np.array_equal(G, self.G):
            return self  # with what was computed for it
        part = object.__new__(Topology)  # without the check that every user has a relay
        part.__dict__.update(G=_frozen(G), layout=self.layout, names=self.names)
        return part

    def with_users(self, users: Sequence[str]) -> "Topology":
        """Return this network with its users, who have names, in another order."""
        at = [self.names.users.index(name) for name in users]
        part = object.__new__(Topology)
        layout = self.layout and (_frozen(self.layout[0][at]), self.layout[1])
        part.__dict__.update(G=_frozen(self.G[:, at]), layout=layout, names=Names(self.names.relays, tuple(users)))
        return part

    def __getstate__(self) -> dict[str, object]:
        """Return what the network is, without what was computed for it: copies and pickles compute it again."""
        return {"G": self.G, "layout": self.layout, "names": self.names}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topology) and np.array_equal(self.G, other.G)

    def __hash__(self) -> int:
        return hash((self.G.shape, self.G.tobytes()))

    def __repr__(self) -> str:
        return f"Topology(K={self.K}, H={self.H}, r={self.r:.4g})"


def check_size(K: int, H: int, tables: int = 1) -> None:
    """Raise TopologyError if `tables` matrices [H, K] are too large to be stored."""
    if K > MAX_USERS or H > MAX_RELAYS or K * H * tables > MAX_LINKS:
        times = f" at {tables} times" if tables > 1 else ""
        raise TopologyError(
            f"K={K} users and H={H} relays{times} are too many: there are at most {MAX_USERS:,} users, "
            f"{MAX_RELAYS:,} relays and {MAX_LINKS:,} pairs of them. Lower K or H."
        )


def _zeros_and_ones(table: ArrayLike, name: str) -> NDArray[np.uint8]:
    """Return a uint8 copy of a table [H, K] of 0 and 1."""
    try:
        given = np.asarray(table)
    except ValueError:
        raise TopologyError(f"{name} is ragged: its rows differ in length. Give H rows of K entries each.") from None
    if given.ndim != 2 or given.size == 0:
        raise TopologyError(
            f"{name} has shape {given.shape}, but must be a table. Give H rows of K entries, each 0 or 1."
        )
    bad = np.argwhere((given != 0) & (given != 1))
    if len(bad):
        i, k = bad[0].tolist()
        raise TopologyError(
            f"{name}[{i}, {k}] is {given.tolist()[i][k]!r}, but must be 1 if relay {i} hears user {k}, else 0. "
            "Change it to 0 or 1."
        )
    return given.astype(np.uint8)


def _numbers(mask: ArrayLike) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())


def _frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    array.flags.writeable = False
    return array
