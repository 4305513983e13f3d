"""Flows as tables: who sends, who receives and who learns in each step."""

import numpy as np
import pytest

from hmtl.communication import Network
from hmtl.communication.attendance import Report, decide
from hmtl.communication.planning.flow import Recipe
from hmtl.communication.planning.ivs import IVs
from hmtl.communication.planning.planner import Planner
from hmtl.communication.planning.sums import SumsOfRows
from hmtl.communication.row_formats import PlainRows
from hmtl.topology import symmetric

ALL = "0 1 2 3 4"


@pytest.mark.parametrize(
    ("recipe", "preferred", "server", "rows"),
    [
        (IVs(), (), True, [("Forwarded", ALL, "", "server")]),
        (IVs(), (1, 3), False, [("Coded", ALL, "1 3", "1 3"), ("Completed", "", "", "1 3")]),
        (
            IVs(),
            (1, 3),
            True,
            [
                ("Forwarded", ALL, "", "server"),
                ("Coded", "", "1 3", "server 1 3"),
                ("Completed", "", "", "server 1 3"),
            ],
        ),
        (SumsOfRows(PlainRows(8)), (), True, [("Added", "0 1 2", "", "server")]),
        (SumsOfRows(PlainRows(8)), (0, 1, 2), False, [("Added", "3 4", "0 1 2", "0 1 2")]),
    ],
)
def test_a_flow_prints_as_a_table(
    recipe: Recipe, preferred: tuple[int, ...], server: bool, rows: list[tuple[str, ...]]
) -> None:
    t = symmetric(K=20, H=5, r=3)
    planner = Planner(t, Network(), preferred, sums="whole", server=server)
    reports = {i: Report(np.array(t.N(i)), 0, 64, 0) for i in range(t.H)}
    flow = planner.flow(recipe, decide(t, reports, 0, preferred, server), (64, 0))
    head, *lines = str(flow).splitlines()
    ends = [head.index(title) for title in ("step", "relays send", "relays receive", "learn")]
    cells = [tuple(line[i:j].strip() for i, j in zip(ends, [*ends[1:], None], strict=True)) for line in lines]
    assert [(cell.partition(" × ")[0], *nodes) for cell, *nodes in cells] == rows
