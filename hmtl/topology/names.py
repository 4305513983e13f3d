"""Names of relays and users, for everything that people read; inside, relays and users are numbers from 0."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hmtl.errors import TopologyError

T = TypeVar("T")
RANGE = re.compile(r"(\d{1,6})-(\d{1,6})")
"""Relays by their numbers, such as `0-9`; both ends are included."""


@dataclass(frozen=True)
class Names:
    """Names of relays and users.

    Args:
        relays, users: a name for each, in order of their numbers; (): they have none.

    Raises:
        TopologyError: a name is empty, or two relays or two users have the same name.
    """

    relays: tuple[str, ...] = ()
    users: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what in ("relay", "user"):
            names = tuple(map(str, getattr(self, f"{what}s")))
            object.__setattr__(self, f"{what}s", names)
            if len(set(names)) < len(names) or "" in names:
                wrong = next(name for name in names if not name or names.count(name) > 1)
                raise TopologyError(
                    f"The name {wrong!r} of a {what} is empty or occurs twice. Give each {what} a name of its own."
                )

    def relay(self, i: int) -> str | int:
        """Return the name of relay i, or its number if relays have no names."""
        return self.relays[i] if self.relays else i

    def user(self, k: int) -> str | int:
        """Return the name of user k, or its number if users have no names."""
        return self.users[k] if self.users else k

    def numbers(self, nodes: Iterable[str | int]) -> list[str | int]:
        """Return a list of nodes with the numbers of relays in place of their names, in any case, and of ranges: `0-9`.

        Other entries stay.
        """
        find = in_any_case(dict[str, str | int]({"server": "server"}) | {name: i for i, name in enumerate(self.relays)})
        numbers: list[str | int] = []
        for node in nodes:
            known = find(node) if isinstance(node, str) else node
            ends = RANGE.fullmatch(str(node)) if known is None else None
            numbers += range(int(ends[1]), int(ends[2]) + 1) if ends else [node if known is None else known]
        return numbers

    def of_relays(self, nodes: Sequence[str | int]) -> list[str | int]:
        """Return a list of nodes with the names of relays in place of their numbers; other entries stay."""
        return [node if isinstance(node, str) else self.relay(node) for node in nodes]

    def of_users(self, users: Iterable[int]) -> str:
        """Return `user 3` or `users 3, 5, 8 ...`, for messages."""
        known = [str(self.user(int(k))) for k in users]
        more = f" and {len(known) - 10} more" if len(known) > 10 else ""
        return f"user{'s' * (len(known) != 1)} {', '.join(known[:10])}{more}"


def in_any_case(known: Mapping[str, T]) -> Callable[[str], T | None]:
    """Return a function from a name to its value: of the name as written, else of the only one alike in another case.

    It returns None for other names.
    """
    counts = Counter(name.casefold() for name in known)
    alike = {name.casefold(): value for name, value in known.items() if counts[name.casefold()] == 1}
    return lambda name: known[name] if name in known else alike.get(name.casefold())


NAMELESS = Names()
"""Neither relays nor users have names."""
