"""Networks whose users move: who hears whom changes every few rounds.

As long as the contacts stay the same is called a *stretch*. Shapes: K users, H relays, G [H, K].
"""

import math
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import TopologyError
from hmtl.rng import generator
from hmtl.topology.files import naming, read_lines
from hmtl.topology.generators import geometric, within
from hmtl.topology.topology import Topology, check_size, name_users

COLUMNS = ("round", "relay", "user")


class Moving(ABC):
    """As many users and relays in all rounds, and other links every few rounds; all nodes know which.

    In round 0 every user has a relay. Who has none later is *absent* until it has: it sends nothing that counts, and
    gets no model.
    """

    @property
    def K(self) -> int:
        """Number of users, absent ones included."""
        return self.at(0).K

    @property
    def H(self) -> int:
        """Number of relays."""
        return self.at(0).H

    @abstractmethod
    def at(self, round: int) -> Topology:
        """The network of a round, the same object in a whole stretch; of the set-up, round -1, it is that of round 0.

        In the topology of a later stretch, absent users have zero columns.
        """


class Walk(Moving):
    """Users of `geometric` that walk: at each change a user goes `step` in a direction of its own, drawn evenly.

    At the edges of the square they turn back, so that at any time they are spread as evenly as in the beginning.

    Args:
        K, H, radius, seed: see `geometric`, which gives the first contacts.
        step: in sides of the square, from 0 to 1.
        every: rounds of a stretch.

    Raises:
        TopologyError: see `geometric`; or a step or number of rounds out of its range.
    """

    def __init__(self, K: int, H: int, radius: float, seed: int = 0, *, step: float = 0.1, every: int = 5) -> None:
        if not 0 <= step <= 1:
            raise TopologyError(f"step={step} is no way within the square. Take one from 0 to 1, in sides of it.")
        if not isinstance(every, int | np.integer) or every < 1:
            raise TopologyError(f"every={every} is no number of rounds between changes. Take a whole number from 1.")
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
        """Where users [K, 2] of a stretch are in the next."""
        angle = 2 * math.pi * generator(self.seed, "walk", stretch).random(len(users))
        there = users + self.step * np.column_stack([np.cos(angle), np.sin(angle)])
        inside: NDArray[np.float64] = 1 - np.abs(1 - np.abs(there))
        return inside


@dataclass(frozen=True)
class Contacts(Moving):
    """Given contacts.

    Args:
        starts: the rounds in which stretches begin, ascending from 0.
        tables: of each stretch, who hears whom [H, K] as 0/1.

    Raises:
        TopologyError: they begin later or are not ascending; tables of several shapes; a user without relay in round 0.
    """

    starts: Sequence[int]
    tables: Sequence[NDArray[np.uint8]]

    def __post_init__(self) -> None:
        starts = tuple(self.starts)
        if len(starts) != len(self.tables) or starts[:1] != (0,) or list(starts) != sorted(set(starts)):
            raise TopologyError(
                f"starts={starts} for {len(self.tables)} tables: contacts begin in round 0, and change in later "
                "rounds, ascending. Give a start for each table."
            )
        first = Topology(self.tables[0])
        whole = Topology(np.ones_like(first.G))
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "_topologies", (first, *(whole.restricted(links=G) for G in self.tables[1:])))

    def at(self, round: int) -> Topology:
        found: tuple[Topology, ...] = self._topologies  # type: ignore[attr-defined]  # set where it was validated
        return found[bisect_right(self.starts, max(round, 0)) - 1]


def from_contacts(path: str | PathLike[str]) -> Contacts:
    """Reads contacts: a text whose first line names its columns round, relay, user, in any order.

    Each other line is a contact that holds from that round on. The contacts of a round that the file names are all that
    there are, until the next one that it names. Rounds count from 0; relays and users from 0, or both from 1 if no 0
    appears among them.

    Raises:
        TopologyError: no such file, or what it holds are no contacts; the message names file and line.
    """
    path = Path(path)
    with naming(path):
        lines = read_lines(path)
        header = [entry.lower() for entry in lines[0][1]] if lines else []
        if sorted(header) != sorted(COLUMNS) or len(lines) < 2:
            raise TopologyError(
                "It has no contacts below a first line round,relay,user. Write this line, and then a contact a line."
            )
        for number, entries in lines[1:]:
            if len(entries) != 3 or not all(re.fullmatch(r"[0-9]{1,7}", entry) for entry in entries):
                raise TopologyError(
                    f"Line {number} is {' '.join(entries)!r}, but a contact is three whole numbers of at most 7 "
                    f"digits, {', '.join(header)}. Write one contact a line."
                )
        given = np.array([entries for _, entries in lines[1:]]).astype(np.int64)
        rounds, relays, users = (given[:, header.index(name)] for name in COLUMNS)
        start = int(min(relays.min(), users.min()) > 0)
        if rounds.min() > 0:
            raise TopologyError(
                f"The first contacts are of round {rounds.min()}, and nobody hears anybody before. Rounds count from "
                "0: write down those of round 0."
            )
        unheard = np.setdiff1d(np.arange(start, users.max() + 1), users[rounds == 0])
        if len(unheard):
            raise TopologyError(
                f"No relay hears {name_users(unheard)}, counted from {start} as in the file, in round 0, when "
                "all tell what is needed to begin. Give every user a contact in round 0."
            )
        shape = int(relays.max()) + 1 - start, int(users.max()) + 1 - start
        check_size(shape[1], shape[0], len(np.unique(rounds)))
        tables: dict[int, NDArray[np.uint8]] = defaultdict(lambda: np.zeros(shape, np.uint8))
        for round, relay, user in zip(rounds.tolist(), relays.tolist(), users.tolist(), strict=True):
            tables[round][relay - start, user - start] = 1
        return Contacts(sorted(tables), [tables[round] for round in sorted(tables)])


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
    """A `Walk`, or the contacts of a file, see `from_contacts`, to which the other settings mean nothing."""
    if path is not None:
        return from_contacts(path)
    return Walk(K, H, radius, seed, step=step, every=every)  # type: ignore[arg-type]  # None is refused with a reason
