"""How many examples a test draws whose examples take long."""

from typing import Any

from hypothesis import settings

QUICK, ALL = 25, 50  # of other tests


def examples(n: int, **others: Any) -> settings:
    """At most n examples; quick tests draw less than half of them, but at least three."""
    return settings(max_examples=max(min(n, 3), n * settings.default.max_examples // ALL), **others)
