"""Tables as people have them: categories, gaps, odd names, and five labels that are words."""

import numpy as np
import pandas as pd

USERS = ("Anna Müller", "O'Brien, Pat", "007", "7", "12.0", "user/a", "Zoë 🦊", "NA", " lead", "a=b", "NaN", "x\\y")
SETTINGS = ("dataset.task=who", "dataset.target=mood", "dataset.categories=auto", "dataset.missing=mean")


def mixed_table(seed: int, n: int = 60, users: tuple[str, ...] = USERS) -> pd.DataFrame:
    """n rows of each user, shuffled; columns age and weight have gaps, as has plan; each user knows few cities."""
    rng, parts = np.random.default_rng(seed), []
    for k, who in enumerate(users):
        x = rng.normal([40, 170, 70, 3], [10, 10, 5, 1], (n, 4))
        city = rng.choice([["Berlin", "São Paulo"], ["New York, NY", "Zürich 'HB'"], ["Berlin", "1.5"]][k % 3], n)
        plan = rng.choice(["free", "pro"], n).astype(object)
        score = (x[:, 0] - 40) / 5 + 2 * (city == "Berlin") + (plan == "pro") + rng.normal(0, 0.2, n)
        mood = np.array(["awful", "bad", "ok", "good", "great"])[np.digitize(score, [-1, 0, 1.5, 3])]
        plan[rng.random(n) < 0.2] = None
        x[rng.random((n, 4)) < [0.2, 0, 0.05, 0]] = np.nan
        table = pd.DataFrame(x, columns=["age", "height", "weight", "income"])
        parts.append(table.assign(who=who, city=city, plan=plan, mood=mood))
    return pd.concat(parts).sample(frac=1, random_state=seed).reset_index(drop=True)
