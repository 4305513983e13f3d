"""The ledger has what nodes really handed over, whoever is delayed, suspended or killed, at sites and by Ray."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tap as tap_module
from cells import SMALL, trained
from omegaconf import DictConfig
from tap import AFTER, BEFORE, KILLED, STOPPED, Failure, Tap, Tapped

from hmtl.communication import TIERS
from hmtl.config.build import Run
from hmtl.distributed import ray as ray_module
from hmtl.distributed import site
from hmtl.distributed.cell import Cell

SITE = {"_target_": "hmtl.distributed.site.Site", "processes": 7, "seconds": 2.0}
RAY = {"_target_": "hmtl.distributed.ray.RayCluster", "hosts": 2, "seconds": 2.0}
UNEVEN = "1,1,1,0,0,0,1\n0,0,1,1,1,1,1\n0,0,0,0,0,0,1\n0,0,0,0,0,0,0\n"
FAILURES = {
    "delayed": [
        Failure("relay 0", "report", 1, AFTER),
        Failure("host 1", "update", 2, AFTER),
        Failure("relay 1", "up", 3, BEFORE),
        Failure("host 0", "conclude", 5, AFTER),
        Failure("relay 0", "confirm", 5, AFTER),
        Failure("relay 1", "deliver", 6, BEFORE),
        Failure("relay 1", "deliver", 9, AFTER),
    ],
    "two at once": [
        Failure("host 0", "update", 1, AFTER, 2.5),
        Failure("relay 0", "report", 1, AFTER, 2.5),
        Failure("relay 0", "attend", 3, BEFORE),
        Failure("relay 1", "attend", 3, AFTER),
        Failure("relay 0", "deliver", 9, AFTER),
        Failure("relay 1", "deliver", 9, AFTER),
    ],
    "suspended": [
        Failure("relay 0", "report", 1, STOPPED, 6),
        Failure("host 1", "update", 2, STOPPED),
        Failure("host 0", "update", 2, STOPPED),
        Failure("relay 1", "up", 4, STOPPED),
        Failure("relay 1", "deliver", 9, STOPPED),
    ],
    "killed": [Failure("relay 0", "report", 2, KILLED), Failure("relay 1", "deliver", 4, KILLED)],
}
BY_RAY = [
    Failure("relay 0", "report", 1, AFTER),
    Failure("host 0", "update", 2, STOPPED),
    Failure("relay 1", "up", 4, STOPPED),
    Failure("relay 1", "deliver", 5, BEFORE),
    Failure("host 1", "update", 7, KILLED),
    Failure("relay 0", "deliver", 9, KILLED),
]


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "links.csv").write_text(UNEVEN)
    network = ("topology=file", f"topology.path={tmp_path}/links.csv", "K=7", "H=4", "r=null", "aggregators=all")
    return (*SMALL[3:], *network, "rounds=10", "checkpoint_every=2", "dataset.rows_per_user=10")


def check(cfg: DictConfig, tap: Tap) -> None:
    runs: list[Run] = []

    def begin(run: Run) -> None:
        runs.append(run)
        tap.watch(run.engine)

    try:
        ended = trained(cfg, begin)
    finally:
        for run in runs:
            run.engine.close()
    bits, unsaid = tap.read()
    ledger = runs[0].communicator.ledger
    for tier in TIERS:
        for row in ended.rows:
            assert row[f"bits/{tier}"] == sum(n for key, n in bits.items() if key[:2] == (row["round"], tier)), row
    by_link = Counter[tuple[str, str, str]]()
    for (_, tier, link, kind), n in bits.items():
        by_link[tier, ledger.links[tier][link], kind] += n
    assert {tuple(row[:3]): sum(row[3:]) for row in ledger.table().itertuples(index=False)} == +by_link
    assert ended.rows[-1]["bits_total"] == bits.total()
    kills = any(each.how == KILLED for each in tap.failures)
    assert (unsaid > 0) == kills, "what a killed process handed over is unknown"
    happened = [not tap.once(each) for each in tap.failures]
    assert sum(happened) > len(happened) / 2, "others were due while their nodes were still away"
    assert any(row["users"] < 7 for row in ended.rows) or tap.replays, (
        "some users were missing, for good or for a while"
    )


@pytest.mark.slow
@pytest.mark.parametrize("failures", FAILURES)
def test_at_a_site(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    failures: str,
) -> None:
    tap = Tap(tmp_path, FAILURES[failures])

    def tapped(work: Callable[..., Any], *args: Any, **values: Any) -> Any:
        call = partial(work, *args, **values)
        return Tapped(tap, call) if work is site.serve else call

    monkeypatch.setattr(site, "partial", tapped)
    for name in ("_handed", "play"):
        monkeypatch.setattr(Cell, name, getattr(Cell, name))  # which it gets back
    tap.install()  # the server's cell is in this process
    cfg = configure(*words)
    cfg.engine = SITE
    check(cfg, tap)


@pytest.mark.slow
def test_by_ray(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """All kinds of failures in one run, since Ray takes long to start."""
    ray = pytest.importorskip("ray")
    tap = Tap(tmp_path, BY_RAY)

    class TappedActor(ray_module.Actor):
        def __init__(self, *args: Any) -> None:
            tap.install()
            super().__init__(*args)

    ray.cloudpickle.register_pickle_by_value(tap_module)
    monkeypatch.setattr(ray_module, "Actor", TappedActor)
    cfg = configure(*words)
    cfg.engine = RAY
    check(cfg, tap)
