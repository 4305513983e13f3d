"""Rows of numbers by user, of which users who hold the same row share one. K users, n numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hmtl.io.arrays import Ids


class UserRows:
    """A row for each user; new ones are proposed, and count or not. Rows are never written into.

    Only users who have been given rows of their own hold any, so that users who never take part cost nothing.

    Args:
        start: the row of every user at first [n].
        K: number of users.
    """

    def __init__(self, start: Tensor, K: int) -> None:
        self._start, self._rows = start, [start] * K
        self._proposed: dict[int, Tensor] = {}

    def of(self, users: Ids) -> Tensor:
        """Return the rows of these users, [users, n]; an expanded view if they share one."""
        return self._stacked([self._rows[k] for k in users.tolist()])

    def all(self) -> Tensor:
        """Return the rows of all users [K, n]."""
        return self._stacked(self._rows)

    def alike(self) -> bool:
        """Return whether all users share one row."""
        return all(row is self._rows[0] for row in self._rows)

    def propose(self, users: Ids, rows: Tensor) -> None:
        """Take rows [users, n] that count once they are committed."""
        self._proposed |= zip(users.tolist(), own(rows), strict=True)

    def commit(self, users: Ids) -> None:
        """Replace the rows of these users by those proposed last."""
        for k in users.tolist():
            self._rows[k] = self._proposed.pop(k, self._rows[k])

    def roll_back(self, users: Ids) -> None:
        """Forget what was proposed for these users."""
        for k in users.tolist():
            self._proposed.pop(k, None)

    def proposed(self) -> Tensor:
        """Return the rows that would count if all proposals did [K, n]."""
        return self._stacked([self._proposed.get(k, row) for k, row in enumerate(self._rows)])

    def put(self, users: Ids, rows: Tensor) -> None:
        """Replace the rows of these users by [users, n]."""
        if len(users) == len(self._rows):
            self._rows = own(rows)
            return
        for k, row in zip(users.tolist(), own(rows), strict=True):
            self._rows[k] = row

    def _stacked(self, rows: Sequence[Tensor]) -> Tensor:
        """Return rows as one tensor [b, n]."""
        first = rows[0] if rows else self._start
        return first.expand(len(rows), -1) if all(row is first for row in rows) else torch.stack(list(rows))


def own(rows: Tensor) -> list[Tensor]:
    """Return rows [b, n] one by one: the same tensor for all if `rows` is expanded, and no views of a large one."""
    if len(rows) and (rows.stride(0) == 0 or len(rows) == 1):
        is_whole = rows.untyped_storage().nbytes() < 2 * rows[0].nbytes
        return [rows[0] if is_whole else rows[0].clone()] * len(rows)
    return [row.clone() for row in rows]


def with_rows(old: Tensor, users: Ids, rows: Tensor) -> Tensor:
    """Return `old` with the rows of these users replaced; `rows` itself if they are all users."""
    return rows if len(users) == len(old) else old.index_copy(0, torch.from_numpy(users).to(old.device), rows)


def of_rows(rows: Tensor, users: Ids) -> Tensor:
    """Return the rows of these users; `rows` itself if they are all users."""
    return rows if len(users) == len(rows) else rows[torch.from_numpy(users).to(rows.device)]
