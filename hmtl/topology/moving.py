"""Networks whose users move, so that the links change every few rounds.

A *stretch* is a series of rounds with the same links. Shapes: K users, H relays, G [H, K].
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import TopologyError
from hmtl.io.described import Described
from hmtl.rng import generator
from hmtl.topology.files import link_tables, naming, read_lines
from hmtl.topology.generators import geometric, within
from hmtl.topology.names import NAMELESS, Names
from hmtl.topology.topology import Topology

CONTACT_COLUMNS = ("round", "relay", "user")


class Moving(Described, ABC):
    """A network whose links change every few rounds, as all nodes know.

    In round 0 every user has a relay. A user without relay in a later stretch is *absent* in that stretch: it sends
    nothing that counts and gets no model.
    """

    _shown = ("K", "H")

    @property
    def K(self) -> int:
        """Number of users, including absent ones."""
        return self.at(0).K

    @property
    def H(self) -> int:
        """Number of relays."""
        return self.at(0).H

    def with_users(self, users: Sequence[str]) -> "Moving":
        """Return this network, whose users have names, with its users in another order."""
        raise TopologyError(f"The users of this network have no names, but {len(users)} names are given.")

    @abstractmethod
    def at(self, round: int) -> Topology:
        """Return the network of a round, the same object for all rounds of a stretch.

        Absent users have zero columns. Round -1, the set-up, has the network of round 0.
        """


class Walk(Moving):
    """A `geometric` network whose users walk.

    Before each stretch, a user moves by `step` in a random direction. Users are reflected at the edges of the square,
    so that their distribution stays uniform.

    Args:
        K, H, radius, seed: of the first stretch, see `geometric`.
        step: length of a move in sides of the square, from 0 to 1.
        every: rounds per stretch.

    Raises:
        TopologyError: see `geometric`; or `step` or `every` is out of its range.
    """

    def __init__(self, K: int, H: int, radius: float, seed: int = 0, *, step: float = 0.1, every: int = 5) -> None:
        if not 0 <= step <= 1:
            raise TopologyError(f"step={step} must be from 0 to 1, in sides of the square. Change step.")
        if not isinstance(every, int | np.integer) or every < 1:
            raise TopologyError(f"every={every} must be a whole number of rounds from 1. Change every.")
        self.radius, self.seed, self.step, self.every = radius, seed, step, every
        self._first = geometric(K, H, radius, seed)
        self._now, self._stretch = self._first, 0

    def at(self, round: int) -> Topology:
        stretch = max(round, 0) // self.every
        if stretch == 0:
            return self._first
        if stretch < self._stretch:
            self._now, self._stretch = self._first, 0
        if stretch > self._stretch:
            assert self._now.layout is not None
            users, relays = self._now.layout
            for number in range(self._stretch, stretch):
                users = self._moved(users, number)
            self._now, self._stretch = within(self.radius, users, relays), stretch
        return self._now

    def _moved(self, users: NDArray[np.float64], stretch: int) -> NDArray[np.float64]:
        """Return the positions of users [K, 2] in the next stretch."""
        angle = 2 * math.pi * generator(self.seed, "walk", stretch).random(len(users))
        moved = users + self.step * np.column_stack([np.cos(angle), np.sin(angle)])
        reflected: NDArray[np.float64] = 1 - np.abs(1 - np.abs(moved))
        return reflected


class Contacts(Moving):
    """A network with given links.

    Args:
        starts: the first round of each stretch, ascending from 0.
        tables: the links of each stretch [H, K], as 0 and 1.
        names: names of relays and users.

    Raises:
        TopologyError: a user has no relay in round 0, or the tables differ in shape or have other entries.
    """

    def __init__(self, starts: Sequence[int], tables: Sequence[NDArray[np.uint8]], names: Names = NAMELESS) -> None:
        self.starts = tuple(starts)
        first = Topology(tables[0], names=names)
        complete = Topology(np.ones_like(first.G), names=names)
        self._topologies = (first, *(complete.restricted(links=G) for G in tables[1:]))

    def with_users(self, users: Sequence[str]) -> "Contacts":
        parts = [t.with_users(users) for t in self._topologies]
        return Contacts(self.starts, [t.G for t in parts], parts[0].names)

    def at(self, round: int) -> Topology:
        return self._topologies[bisect_right(self.starts, max(round, 0)) - 1]


def from_contacts(path: str | PathLike[str]) -> Contacts:
    """Read a text file of contacts.

    The first line names the columns round, relay and user in any order. Each further line is a contact that begins in
    that round. The contacts listed for a round replace all earlier ones. Rounds are numbered from 0; relays and users
    from 0, or both from 1 if neither column has a 0, unless they have names.

    Raises:
        TopologyError: the file cannot be read, or is not a list of contacts; the message names file and line.
    """
    path = Path(path)
    with naming(path):
        lines = read_lines(path)
        header = [entry.lower() for entry in lines[0][1]] if lines else []
        if sorted(header) != sorted(CONTACT_COLUMNS) or len(lines) < 2:
            raise TopologyError(
                "It has no contacts below a first line round,relay,user. Write this line, then one contact per line."
            )
        return Contacts(*link_tables(lines[1:], header))


def moving(
    K: int | None = None,
    H: int | None = None,
    radius: float = 0.5,
    seed: int = 0,
    *,
    step: float = 0.1,
    every: int = 5,
    path: str | PathLike[str] | None = None,
) -> Moving:
    """Return a `Walk` or, if `path` is given, the contacts of that file; see `from_contacts`."""
    if path is not None:
        return from_contacts(path)
    return Walk(K, H, radius, seed, step=step, every=every)  # type: ignore[arg-type]  # None raises TopologyError
