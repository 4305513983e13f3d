"""The paper's partitions: one-vs-rest (MNIST) and even sets (HAR). No two users share a row.

Shapes: K users, C classes, n rows. In one-vs-rest, each user has `half` rows of its own class and `half` of the others;
user k's own class is number k mod C. (The paper counts from 1: digit Mod(k, 10) − 1 with Mod in 1..10. The same.)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmtl.errors import ConfigError, DataError

Ints = NDArray[np.int64]


def one_vs_rest(
    labels: NDArray[Any], K: int, rows_per_user: int | None, rng: np.random.Generator
) -> list[tuple[Any, Ints]]:
    """Deal rows to users: half own class, half others, these as evenly over the other classes as the data allow.

    Args:
        labels: [n], the class of each row.
        K: number of users.
        rows_per_user: even; None takes what the data give, up to the paper's 500.
        rng: draws which rows go to whom.

    Returns:
        For each user its own class and its rows [rows_per_user], own ones first.

    Raises:
        ConfigError: K < 1, or rows_per_user is not a positive even number.
        DataError: the data do not reach; the message says how far they do.

    Ref: Hu et al. 2022, numerical section.
    """
    if not K or K < 1:  # None: where a configuration leaves K to the data
        raise ConfigError(f"K={K}: there is nobody to learn. Choose K ≥ 1.")
    if rows_per_user is not None and (rows_per_user < 2 or rows_per_user % 2):
        raise ConfigError(f"rows_per_user={rows_per_user}: half are of the own class. Choose a positive even number.")
    classes, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
    C = len(classes)
    users = np.bincount(np.arange(K) % C, minlength=C)
    half = _half(classes, counts, users, rows_per_user)
    others = _others(users, counts - users * half, half, rng)

    # Each class's rows, shuffled and cut: first those for its own users, then those for the users of class 0, 1, ...
    cuts = np.column_stack([users * half, others.T]).cumsum(axis=1)
    parts = [np.split(rng.permutation(np.flatnonzero(number == c)), cuts[c]) for c in range(C)]
    rows = []
    for k in range(K):
        turn, own = divmod(k, C)
        rest = np.concatenate([part[1 + own] for part in parts])
        # Taking turns along the classes: two users with one own class differ by at most one row of any other.
        rows.append((classes[own], np.concatenate([p[turn :: users[own]] for p in (parts[own][0], rest)])))
    return rows


def even_sets(labels: NDArray[Any], K: int | None, rows_per_user: int | None, rng: np.random.Generator) -> list[Ints]:
    """Deal rows to users at random, each class in the same proportion to all, to within one row.

    Args, Returns, Raises: as for `one_vs_rest`, but the rows alone, in any number, and with K=None as many users as the
    rows reach for.

    Ref: Hu et al. 2022, numerical section.
    """
    n = len(labels)
    for name, value in (("K", K), ("rows_per_user", rows_per_user)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: choose {name} ≥ 1.")
    K = K or max(n // (rows_per_user or 500), 1)
    m = rows_per_user or max(min(500, n // K), 1)
    if K * m > n:
        remedy = f"At most rows_per_user={n // K}, or lower K." if n >= K else "Lower K."
        raise DataError(
            f"The data do not reach for K={K} users × {m} rows: {K * m} are needed, they hold {n}. {remedy}"
        )
    drawn = rng.permutation(n)[: K * m]
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    return [by_class[k::K] for k in range(K)]


def _half(classes: NDArray[Any], counts: Ints, users: Ints, rows_per_user: int | None) -> int:
    """Half of rows_per_user, checked to be feasible.

    Others can be dealt if and only if no set of users lacks rows (Hall). Users of two or more classes together may take
    any row, users of one class any but their own: hence one condition on all users and one for each class.
    """
    K, n = int(users.sum()), int(counts.sum())
    limits = [(n // (2 * K), f"2 × {K} × {{}} rows are needed, the data hold {n}")]
    for name, count, m in zip(classes, counts.tolist(), users.tolist(), strict=True):
        if m:
            limits += [
                (count // m, f"{m} × {{}} own rows of class {name} are needed, the data hold {count}"),
                ((n - count) // K, f"{K} × {{}} rows must not be of class {name}, the data hold {n - count} such"),
            ]
    most, why = min(limits)
    half = min(250, max(most, 1)) if rows_per_user is None else rows_per_user // 2
    if half > most:
        remedy = f"At most rows_per_user={2 * most}, or lower K." if most else "Lower K."
        raise DataError(f"The data do not reach for K={K} users × {2 * half} rows: {why.format(half)}. {remedy}")
    return half


def _others(users: Ints, spare: Ints, half: int, rng: np.random.Generator) -> Ints:
    """How many rows of each class the users of each class get as others: [C, C], zero on the diagonal.

    A transport problem: row sums users × half, column sums at most `spare` [C]. First the most even real solution
    (least squares per user), then a random one in whole numbers next to it: with integer bounds, vertices are integer.
    """
    import cvxpy as cp  # late: loading it and scipy.optimize takes a second
    from scipy.optimize import linprog

    C = len(users)
    own, of, to = np.eye(C, dtype=bool).ravel(), *np.divmod(np.arange(C * C), C)  # entries, row by row
    rows, columns = ((np.arange(C)[:, None] == places[~own]).astype(float) for places in (of, to))
    needed = (users * half).astype(float)
    even = cp.Variable(C * C - C, nonneg=True)
    spread = cp.sum_squares(cp.multiply(np.sqrt(1 / np.maximum(users, 1)[of[~own]]), even))
    cp.Problem(cp.Minimize(spread), [rows @ even == needed, columns @ even <= spare]).solve(solver=cp.CLARABEL)
    # The tolerance cannot make it infeasible: integer bounds miss a cut by a whole row or not at all (Hoffman).
    x = np.asarray(even.value)
    near = np.column_stack([np.floor(x + 1e-4).clip(min=0), np.ceil(x - 1e-4)])
    whole = linprog(rng.random(C * C)[~own], columns, spare, rows, needed, bounds=near, method="highs-ds")
    dealt = np.zeros(C * C, dtype=np.int64)
    dealt[~own] = np.rint(whole.x)
    return dealt.reshape(C, C)
