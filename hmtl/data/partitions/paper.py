"""The paper's partitions: one-vs-rest (MNIST) and even sets (HAR).

Shapes: K users, C classes, n rows. User k's own class is class k mod C. (The paper counts from 1: digit Mod(k, 10) − 1
with Mod in 1..10, which is the same.)

Ref: Hu et al. 2022, numerical section.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import ConfigError, DataError
from hmtl.io.arrays import Floats, Ints

USUAL_ROWS = 500  # of each user in the paper


def one_vs_rest(
    labels: NDArray[Any], K: int | None, rows_per_user: int | None, rng: np.random.Generator
) -> list[tuple[Any, Ints]]:
    """Deal rows to users, half from the user's own class and half from all others, as evenly as the data allow.

    Args:
        labels: the class of each row, [n].
        rows_per_user: an even number; None: as many as there are, at most the paper's 500.

    Returns:
        For each user its own class and the numbers of its rows [rows_per_user], those of its own class first.

    Raises:
        ConfigError: if K < 1, or rows_per_user is not a positive even number.
        DataError: if there are too few rows; the message gives the largest possible number.
    """
    if not K or K < 1:  # None: a configuration without K
        raise ConfigError(f"K={K}: there must be at least one user. Choose K ≥ 1.")
    if rows_per_user is not None and (rows_per_user < 2 or rows_per_user % 2):
        raise ConfigError(
            f"rows_per_user={rows_per_user}: half of a user's rows are from its own class. Choose a positive even "
            "number."
        )
    classes, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
    C = len(classes)
    users = np.bincount(np.arange(K) % C, minlength=C)
    half = _half(counts, users, rows_per_user)
    rest = _rest(users, counts - users * half, half, rng)

    # Each class's rows, shuffled and cut: first those for its own users, then those for the users of class 0, 1, ...
    cuts = np.column_stack([users * half, rest.T]).cumsum(axis=1)
    parts = [np.split(rng.permutation(np.flatnonzero(number == c)), cuts[c]) for c in range(C)]
    dealt = []
    for k in range(K):
        turn, own = divmod(k, C)
        of_rest = np.concatenate([part[1 + own] for part in parts])
        # Strided slices: how many rows the users of one class have from any other class differs by at most one.
        rows = [pool[turn :: users[own]] for pool in (parts[own][0], of_rest)]
        dealt.append((classes[own], np.concatenate(rows)))
    return dealt


def even_sets(labels: NDArray[Any], K: int | None, rows_per_user: int | None, rng: np.random.Generator) -> list[Ints]:
    """Deal random rows to users so that all have the same proportion of each class, to within one row.

    Return the numbers of each user's rows [rows_per_user]; see `one_vs_rest`. If K is None, it is as large as the rows
    allow.

    Raises:
        ConfigError: if K or rows_per_user is below 1.
        DataError: if there are too few rows; the message gives the largest possible number.
    """
    n = len(labels)
    for name, value in (("K", K), ("rows_per_user", rows_per_user)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: the number must be at least 1. Choose {name} ≥ 1.")
    K = K or max(n // (rows_per_user or USUAL_ROWS), 1)
    m = rows_per_user or max(min(USUAL_ROWS, n // K), 1)
    if K * m > n:
        remedy = f"Choose at most rows_per_user={n // K}, or lower K." if n >= K else "Lower K."
        raise DataError(f"K={K} users with {m} rows each need {K * m} rows, but there are {n}. {remedy}")
    drawn = rng.permutation(n)[: K * m]
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    return [by_class[k::K] for k in range(K)]


def _half(counts: Ints, users: Ints, rows_per_user: int | None) -> int:
    """Return half of rows_per_user.

    The rows suffice if and only if no set of users lacks rows (Hall). Users of two or more classes may together take
    any row; users of one class may take any row that is not of their own. Hence there is one condition on all users and
    one for each class.

    Raises:
        DataError: if the rows do not suffice.
    """
    K, n, has_users = int(users.sum()), int(counts.sum()), users > 0
    own, others = counts[has_users] // users[has_users], (n - counts[has_users]) // K
    most = int(min(n // (2 * K), own.min(), others.min()))
    half = min(USUAL_ROWS // 2, max(most, 1)) if rows_per_user is None else rows_per_user // 2
    if half > most:
        remedy = f"Choose at most rows_per_user={2 * most}, or lower K." if most else "Lower K."
        raise DataError(
            f"The {n} rows are too few for K={K} users with {2 * half} each, half of them of the user's own class and "
            f"half of the others. {remedy}"
        )
    return half


def _rest(users: Ints, spare: Ints, half: int, rng: np.random.Generator) -> Ints:
    """Return how many rows of each other class the users of each class get, [C, C] with a zero diagonal.

    This is a transport problem: row sums are users × half, column sums at most `spare` [C]. It is solved first for the
    most even real solution (least squares per user), then for a random integer solution next to it, which exists since
    the vertices of a transport problem with integer bounds are integers.
    """
    from scipy.optimize import linprog  # late: loading it takes a second

    C = len(users)
    other = ~np.eye(C, dtype=bool).ravel()  # the entries off the diagonal, row by row
    receiver, giver = (classes[other] for classes in np.divmod(np.arange(C * C), C))
    rows, columns = ((np.arange(C)[:, None] == classes).astype(float) for classes in (receiver, giver))
    needed = (users * half).astype(float)
    even = needed[receiver] / (C - 1)
    if (columns @ even > spare + 1e-6).any():  # else equal shares are the most even ones
        even = _most_even(rows, columns, needed, spare, 1 / np.maximum(users, 1)[receiver])
    # The tolerance cannot make the problem infeasible: integer bounds miss a cut by a whole row, or not (Hoffman).
    bounds = np.column_stack([np.floor(even + 1e-4).clip(min=0), np.ceil(even - 1e-4)])
    vertex = linprog(rng.random(C * C)[other], columns, spare, rows, needed, bounds=bounds, method="highs-ds")
    rest = np.zeros(C * C, dtype=np.int64)
    rest[other] = np.rint(vertex.x)
    return rest.reshape(C, C)


def _most_even(rows: Floats, columns: Floats, needed: Floats, spare: Ints, weights: Floats) -> Floats:
    """Return x ≥ 0 with rows @ x = needed and columns @ x ≤ spare that minimizes Σ weights · x²."""
    import cvxpy as cp  # late: loading it takes a second

    x = cp.Variable(len(weights), nonneg=True)
    spread = cp.sum_squares(cp.multiply(np.sqrt(weights), x))
    cp.Problem(cp.Minimize(spread), [rows @ x == needed, columns @ x <= spare]).solve(solver=cp.CLARABEL)
    return np.asarray(x.value)
