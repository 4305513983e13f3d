"""Tables of the shape of School: 139 schools, 22 to 251 pupils each, 28 columns, the exam score 1..70 to predict."""

import numpy as np
import pandas as pd


def school(rng: np.random.Generator, K: int = 139) -> pd.DataFrame:
    """Return the pupils of K schools. The same columns predict the score in all schools, and most of it is noise."""
    ethnicity, tables = rng.normal(0, 2, 11), []
    for k, n in enumerate([22, 251, *rng.integers(22, 252, K - 2)]):
        year, band, group = rng.integers(3, size=n), rng.choice(3, n, p=[0.25, 0.5, 0.25]), rng.integers(11, size=n)
        sex, earlier = rng.integers(2, size=n), rng.normal(100, 15, n)
        meals, mixed, church = rng.uniform(5, 60), rng.integers(3), rng.integers(3)
        x = np.column_stack(
            [np.eye(3)[year], np.eye(3)[band], sex, np.eye(11)[group], np.full(n, meals), earlier, rng.normal(size=n)]
            + [np.tile(np.eye(3)[column], (n, 1)) for column in (mixed, church)]
            + [np.ones(n)]
        )
        own = rng.normal(0, 1.5, 3)
        score = 20 + np.array([0, 0.5, 1.5])[year] + (np.array([11, 2, -6]) + own)[band] + 1.5 * sex
        score += ethnicity[group] - 0.1 * (meals - 30) + 0.1 * (earlier - 100) + rng.normal(0, 2.5)
        y = np.clip(np.rint(score + rng.normal(0, 9.5, n)), 1, 70).astype(int)
        tables.append(pd.DataFrame(x, columns=[f"x{j}" for j in range(x.shape[1])]).assign(score=y, school=k + 1))
    return pd.concat(tables, ignore_index=True)
