"""Figs. 5 to 7: the time that MOCHA takes for 150 rounds, by (12) and (13) of the paper, and its two parts.

Models are the same whichever way the messages go, to the last bit; so a draw trains once for each number of users and
data set, and then plays a few rounds over each network and in each way.

Compute of a round is CPU time, each node by itself: the slowest user's local update, the global update, and what coding
costs the slowest relay and the server; the plan is made once, by all nodes at the same time. Communication is that of
the bits that were sent. Plans of the paper's allocation that would cut IVs into too many pieces cannot be played: their
communication is that of the formula, and their compute that of the equal allocation in the same network.
"""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from unittest.mock import patch

import numpy as np
import torch
from figures import (
    BOUND,
    CODED,
    EQUAL,
    STYLES,
    UNCODED,
    Panels,
    Point,
    Row,
    finish,
    kept,
    legend,
    lines,
    mean,
    network,
    options,
    points,
    save,
    savings,
    side_by_side,
)
from matplotlib.figure import Figure
from omegaconf import DictConfig

from hmtl.coding import Loads, bounds, loads, obstacle
from hmtl.communication import TIERS, CodedHierarchical, Communicator, Network, Uncoded
from hmtl.config.build import build_algorithm, build_problem, build_tasks, compose
from hmtl.cpu_time import cpu_seconds
from hmtl.mtl import Algorithm
from hmtl.reporting.console import Console
from hmtl.topology import Topology
from hmtl.tuning.grid import with_values

DATA = {"MNIST": "dataset=mnist", "HAR": "dataset=har lam=0.001"}  # λ by cross-validation, see README.md
QUICK = {"5,000 digits": "dataset=mnist5k dataset.rows_per_user=20 rounds=3"}
PLAYED = 4  # rounds of each way; the first is not counted, of the others the median
Ways = Mapping[str, Communicator]


@dataclass(frozen=True)
class Learner:
    """Trained, and what it took: seconds of a round, of the slowest user and of the global update."""

    algorithm: Algorithm
    local_s: float
    global_s: float
    facts: Row


def train(cfg: DictConfig) -> Learner:
    """All rounds, in which nothing is lost."""
    tasks, _ = build_tasks(cfg)
    algorithm = build_algorithm(cfg, build_problem(cfg, tasks))
    update, spent = algorithm.aggregator.update, 0.0

    def timed(users: np.ndarray, ivs: torch.Tensor) -> torch.Tensor:
        nonlocal spent
        start = cpu_seconds()
        models = update(users, ivs)
        spent += cpu_seconds() - start
        return models

    with patch.object(algorithm.aggregator, "update", timed):
        for round in range(cfg.rounds):
            algorithm.step(round)
    figures = algorithm.metrics()
    facts = {
        "lam": cfg.lam,
        "test_error": figures["test_error"],
        "relative_gap": figures["gap"] / abs(figures["primal"]),
    }
    return Learner(algorithm, algorithm.user_seconds(cfg.rounds, cfg.K), spent / cfg.rounds, facts)


def draw(name: str, data: Mapping[str, str], points: Sequence[tuple[str, Point]], seed: int) -> list[Row]:
    """Rows of all data sets, points and curves, with this seed.

    Args:
        name: of the experiment.
        data: settings of each data set.
        points: with their panels.
    """
    torch.set_num_threads(1)  # or CPU time would be that of all threads
    cfgs = {which: compose(f"experiment={name}", *shlex.split(words), "output_dir=.") for which, words in data.items()}
    first, rows = next(iter(cfgs.values())), []
    of_K: dict[int, list[tuple[str, Point]]] = {}
    for panel, point in points:
        of_K.setdefault(int(point.get("K", first.K)), []).append((panel, point))
    for K, here in of_K.items():
        learners = {which: train(with_values(cfg, {"K": K, "seed": seed})) for which, cfg in cfgs.items()}
        for panel, point in here:
            t = network(first, point, seed)
            ways, planning = plans(t)
            for which, learner in learners.items():
                facts = {"data": which, "panel": panel, **point}
                rows += [{**facts, **row} for row in times(t, ways, planning, learner)]
    return rows


def plans(t: Topology) -> tuple[Ways, dict[str, float]]:
    """Each way to send, those that cannot be played aside, and CPU seconds for its plan."""
    ways: dict[str, Communicator] = {UNCODED: Uncoded(t)}
    planning = {UNCODED: 0.0}
    for curve, (scheme, aggregators) in CODED.items():
        if aggregators == "all" and obstacle(t, scheme):
            continue
        start = cpu_seconds()
        ways[curve] = CodedHierarchical(t, scheme=scheme, aggregators=aggregators)
        planning[curve] = cpu_seconds() - start
    return ways, planning


def times(t: Topology, ways: Ways, planning: Mapping[str, float], learner: Learner) -> list[Row]:
    """A row for each curve: loads [IVs], and seconds of a round, but for those of planning, which are once."""
    rows = []
    coding = {curve: play(way, learner.algorithm) for curve, way in ways.items()}
    V_bits = ways[UNCODED].V_bits
    for curve in STYLES:
        like = UNCODED if curve == BOUND else curve if curve in ways else EQUAL
        if curve in ways:
            load, sending = ways[curve].theory, ways[curve].seconds()
        else:
            load = bounds(t) if curve == BOUND else loads(t, CODED[curve][0])
            sending = formula(t, load, V_bits)
        own = learner.local_s + learner.global_s + coding[like]
        rows.append(
            {"curve": curve, "up": load.uplink, "down": load.downlink, "played": curve in ways or curve == BOUND}
            | {"communication_s": sending, "local_s": learner.local_s, "global_s": learner.global_s}
            | {"coding_s": coding[like], "compute_s": own, "planning_s": planning[like], **learner.facts}
        )
    return rows


def play(way: Communicator, algorithm: Algorithm) -> float:
    """Seconds of a round for coding: the slowest relay's and the server's, median over the rounds played."""
    spent = []
    for number in range(PLAYED):
        way.round(number, algorithm.users, algorithm.aggregator)
        spent.append(way.stopwatch.slowest("relay") + way.stopwatch.slowest("server"))
    return statistics.median(spent[1:])


def formula(t: Topology, load: Loads, V_bits: int) -> float:
    """Seconds to send a load, nothing but IVs and models.  Ref: Hu et al. 2022, eq. (13)."""
    ivs = t.K, load.uplink, load.downlink, t.K
    return Network().seconds({tier: V_bits * load for tier, load in zip(TIERS, ivs, strict=True)})


def totals(rows: Sequence[Row], rounds: int) -> list[Row]:
    """With the time of all rounds, and what is saved of the uncoded, draw by draw."""
    done, uncoded = [], 0.0
    for row in rows:  # the uncoded first, of each point and draw
        total = rounds * (row["compute_s"] + row["communication_s"]) + row["planning_s"]
        uncoded = total if row["curve"] == UNCODED else uncoded
        done.append({**row, "total_s": total, "saved %": 100 * (1 - total / uncoded)})
    return done


def picture(title: str, x: str, rows: Sequence[Row], rounds: int) -> Figure:
    """For each panel a line of axes: of each data set the whole time, and the compute in it."""
    panels, sets = (list(dict.fromkeys(row[column] for row in rows)) for column in ("panel", "data"))
    figure = Figure(figsize=(15 if len(sets) > 1 else 8, 0.9 + 3.1 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 2 * len(sets), sharex=True, sharey="col", squeeze=False)
    for at, panel in zip(grid, panels, strict=True):
        for n, which in enumerate(sets):
            here = [row for row in rows if (row["panel"], row["data"]) == (panel, which)]
            whole, part = at[2 * n : 2 * n + 2]
            lines(whole, x, here, "total_s", STYLES)
            whole.set(title=f"{which}, {panel}", ylabel=f"time of {rounds} rounds [s]")
            shares = [{**row, "in_all": rounds * row["compute_s"] + row["planning_s"]} for row in here]
            lines(part, x, shares, "in_all", [UNCODED, *CODED])
            users = [row for row in here if row["curve"] == UNCODED]
            at_x, local = [row[x] for row in users], [rounds * row["local_s"] for row in users]
            part.fill_between(at_x, local, color="0.85", label="users' local updates alone")
            part.set(title=f"{which}, {panel}", ylabel="of which compute [CPU s]")
    finish(figure, title, legend(grid[0, 0]) | legend(grid[0, 1]), 2 * len(sets))
    return figure


def main(name: str, about: str, x: str, panels: Panels) -> None:
    """Make the figure as the command line says."""
    ask = options(about, DATA)
    data, wanted = (QUICK if ask.quick else ask.data), points(panels, ask.quick)
    cfg = compose(f"experiment={name}", *shlex.split(next(iter(data.values()))), "output_dir=.")
    rounds = int(cfg.rounds)
    with kept(name, ask.quick) as memory:
        parts = [(name, data, wanted, seed) for seed in range(ask.draws)]
        drawn = side_by_side(f"{name}, draws", ask, memory, draw, parts)
    rows = totals(list(chain.from_iterable(drawn)), rounds)
    rows = mean(rows, ["data", "panel", *wanted[0][1], "curve"], ["total_s"])
    title = f"{name.replace('fig', 'Fig. ')}: time of training, links of 100 Mbit/s, mean of {ask.draws} draws"
    save(name, ask.out, rows, picture(title, x, rows, rounds))
    coded = [row for row in rows if row["curve"] in CODED]
    Console().table(savings("Saved of all time [%]", x, coded, ["data", "panel"], "saved %"))
