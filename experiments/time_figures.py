"""Figs. 5 to 7: the time that MOCHA takes for 150 rounds by eqs. (12) and (13) of the paper, and its two parts.

The models do not depend on the communicator, to the last bit. A draw therefore trains once per number of users and data
set, and then plays a few rounds over each network with each communicator.

The compute of a round is CPU time: the slowest user's local update, the global update, and the coding of the slowest
relay and the server. The plan is made once, by all nodes at the same time. Communication follows from the bits sent.
Plans of the paper's allocation that would cut IVs into too many pieces cannot be played: their communication is that of
the formula, and their compute is that of the equal allocation in the same network.
"""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from unittest.mock import patch

import matplotlib
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
    in_parallel,
    lines,
    mean_rows,
    network,
    points_of,
    read_options,
    recorded,
    save,
    savings,
    unfinished,
)
from omegaconf import DictConfig

from hmtl.coding import Loads, bounds, loads, obstacle
from hmtl.communication import TIERS, CodedHierarchical, Communicator, Network, Uncoded
from hmtl.config.build import build_algorithm, build_problem, build_tasks, compose
from hmtl.io.cpu_time import cpu_seconds
from hmtl.mtl import Algorithm
from hmtl.reporting.console import Console
from hmtl.reporting.style import PAGE, PRINT, Picture
from hmtl.topology import Topology
from hmtl.tuning.grid import with_values

DATA = {"MNIST": "dataset=mnist", "HAR": "dataset=har lam=0.001"}  # λ by cross-validation, see README.md
QUICK = {"5,000 digits": "dataset=mnist5k dataset.rows_per_user=20 rounds=3"}
PLAYED = 4  # rounds with each communicator: the median without the first
Communicators = Mapping[str, Communicator]  # by curve


@dataclass(frozen=True)
class Learner:
    """A trained algorithm.

    Attributes:
        local_s: seconds per round of the slowest user.
        global_s: seconds per round of the global update.
        facts: columns that all its rows share.
    """

    algorithm: Algorithm
    local_s: float
    global_s: float
    facts: Row


def train(cfg: DictConfig) -> Learner:
    """Train for all rounds without a network."""
    tasks, _ = build_tasks(cfg)
    algorithm = build_algorithm(cfg, build_problem(cfg, tasks))
    update, spent, local = algorithm.aggregator.update, 0.0, list[float]()

    def timed(users: np.ndarray, ivs: torch.Tensor) -> torch.Tensor:
        nonlocal spent
        start = cpu_seconds()
        models = update(users, ivs)
        spent += cpu_seconds() - start
        return models

    with patch.object(algorithm.aggregator, "update", timed):
        for round in range(cfg.rounds):
            algorithm.step(round)
            local.append(algorithm.users.seconds)
    figures = algorithm.metrics()
    facts = {
        "lam": cfg.lam,
        "test_error": figures["test_error"],
        "relative_gap": figures["gap"] / abs(figures["primal"]),
    }
    return Learner(algorithm, statistics.median(local), spent / cfg.rounds, facts)


def draw(name: str, data: Mapping[str, str], points: Sequence[tuple[str, Point]], seed: int) -> list[Row]:
    """Return the rows of all data sets, points and curves with this seed.

    Args:
        name: file in conf/experiment.
        data: settings of each data set.
        points: the points with their panels.
    """
    torch.set_num_threads(1)  # or CPU time would be that of all threads
    cfgs = {which: compose(f"experiment={name}", *shlex.split(words), "output_dir=.") for which, words in data.items()}
    first, rows = next(iter(cfgs.values())), []
    by_K: dict[int, list[tuple[str, Point]]] = {}
    for panel, point in points:
        by_K.setdefault(int(point.get("K", first.K)), []).append((panel, point))
    for K, points_of_K in by_K.items():
        learners = {which: train(with_values(cfg, {"K": K, "seed": seed})) for which, cfg in cfgs.items()}
        for panel, point in points_of_K:
            t = network(first, point, seed)
            communicators, planning = make_communicators(t)
            for which, learner in learners.items():
                facts = {"data": which, "panel": panel, **point}
                rows += [{**facts, **row} for row in times(t, communicators, planning, learner)]
    return rows


def make_communicators(t: Topology) -> tuple[Communicators, dict[str, float]]:
    """Return the communicators that can be played, and the CPU seconds of their plans."""
    communicators: dict[str, Communicator] = {UNCODED: Uncoded(t)}
    planning = {UNCODED: 0.0}
    for curve, (scheme, aggregators) in CODED.items():
        if aggregators == "all" and obstacle(t, scheme):
            continue
        start = cpu_seconds()
        communicators[curve] = CodedHierarchical(t, scheme=scheme, aggregators=aggregators)
        planning[curve] = cpu_seconds() - start
    return communicators, planning


def times(t: Topology, communicators: Communicators, planning: Mapping[str, float], learner: Learner) -> list[Row]:
    """Return a row per curve: loads [IVs], seconds of a round, and the seconds of planning, which happens once."""
    rows = []
    coding = {curve: coding_seconds(each, learner.algorithm) for curve, each in communicators.items()}
    V_bits = communicators[UNCODED].V_bits
    for curve in STYLES:
        like = UNCODED if curve == BOUND else curve if curve in communicators else EQUAL
        if curve in communicators:
            load, sending = communicators[curve].theory, communicators[curve].seconds()
        else:
            load = bounds(t) if curve == BOUND else loads(t, CODED[curve][0])
            sending = formula(t, load, V_bits)
        own = learner.local_s + learner.global_s + coding[like]
        played = curve in communicators or curve == BOUND
        rows.append(
            {"curve": curve, "up": load.uplink, "down": load.downlink, "played": played}
            | {"communication_s": sending, "local_s": learner.local_s, "global_s": learner.global_s}
            | {"coding_s": coding[like], "compute_s": own, "planning_s": planning[like], **learner.facts}
        )
    return rows


def coding_seconds(communicator: Communicator, algorithm: Algorithm) -> float:
    """Return the seconds per round that the slowest relay and the server take for coding."""
    spent = []
    for number in range(PLAYED):
        communicator.round(number, algorithm.users, algorithm.aggregator)
        spent.append(communicator.stopwatch.slowest("relay") + communicator.stopwatch.slowest("server"))
    return statistics.median(spent[1:])


def formula(t: Topology, load: Loads, V_bits: int) -> float:
    """Return the seconds that the IVs and models of a load take.  Ref: Hu et al. 2022, eq. (13)."""
    ivs = t.K, load.uplink, load.downlink, t.K
    return Network().seconds({tier: V_bits * load for tier, load in zip(TIERS, ivs, strict=True)})


def with_totals(rows: Sequence[Row], rounds: int) -> list[Row]:
    """Add the time of all rounds, and the share that it saves of the uncoded time in the same draw."""
    extended, uncoded = [], 0.0
    for row in rows:  # the uncoded curve is the first of each point and draw
        total = rounds * (row["compute_s"] + row["communication_s"]) + row["planning_s"]
        uncoded = total if row["curve"] == UNCODED else uncoded
        extended.append({**row, "total_s": total, "saved %": 100 * (1 - total / uncoded)})
    return extended


@matplotlib.rc_context(PRINT)
def picture(x: str, rows: Sequence[Row], rounds: int) -> Picture:
    """Draw a row of axes for each panel: the total time for each data set, and the compute in it."""
    panels, sets = (list(dict.fromkeys(row[column] for row in rows)) for column in ("panel", "data"))
    figure = Picture(figsize=(PAGE, 2 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 2 * len(sets), sharex=True, sharey="col", squeeze=False)
    for axes_row, panel in zip(grid, panels, strict=True):
        for n, which in enumerate(sets):
            selected = [row for row in rows if (row["panel"], row["data"]) == (panel, which)]
            total, compute = axes_row[2 * n : 2 * n + 2]
            lines(total, x, selected, "total_s", STYLES)
            total.set(title=f"{which}, {panel}", ylabel="time [s]")
            computes = [{**row, "all_compute_s": rounds * row["compute_s"] + row["planning_s"]} for row in selected]
            lines(compute, x, computes, "all_compute_s", [UNCODED, *CODED])
            users = [row for row in selected if row["curve"] == UNCODED]
            positions, local = [row[x] for row in users], [rounds * row["local_s"] for row in users]
            compute.fill_between(positions, local, color="0.85", label="users' local updates alone")
            compute.set(title=f"{which}, {panel}", ylabel="compute [CPU s]")
    finish(figure, x)
    return figure


def main(name: str, description: str, x: str, panels: Panels) -> None:
    """Make the figure as the command line says."""
    options = read_options(description, DATA)
    data, points = (QUICK if options.quick else options.data), points_of(panels, options.quick)
    cfg = compose(f"experiment={name}", *shlex.split(next(iter(data.values()))), "output_dir=.")
    rounds = int(cfg.rounds)
    if options.redraw:
        rows = recorded(name, options.out)
    else:
        with unfinished(name, options.quick) as memory:
            arguments = [(name, data, points, seed) for seed in range(options.draws)]
            draws = in_parallel(f"{name}, draws", options.jobs, memory, draw, arguments)
        rows = with_totals(list(chain.from_iterable(draws)), rounds)
        rows = mean_rows(rows, ["data", "panel", *points[0][1], "curve"], ["total_s"])
        save(name, options.out, rows)
    picture(x, rows, rounds).write(options.out / name, "png", "pdf")
    coded = [row for row in rows if row["curve"] in CODED]
    Console().table(savings("Saved time [%]", x, coded, ["data", "panel"], "saved %"))
