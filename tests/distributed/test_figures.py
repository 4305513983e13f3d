"""With secure=true, users mask their terms of figures, and only the sum over all users is known."""

import csv
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from control_frames import in_figures, listening
from omegaconf import DictConfig
from thread_runs import SMALL, train, train_in_threads
from threads import Killed
from torch import Tensor

from hmtl.communication import TIERS
from hmtl.communication.messages import IVS, KEYS, SHARED, SHARES, UNMASK
from hmtl.distributed.peers import Peers
from hmtl.errors import ProcessLost

SECURE = (*SMALL, "K=20", "communicator=sums", "aggregators=server", "metrics=sums", "secure=true", "algorithm=cocoa")
STEPS = {KEYS: 10, SHARES: 10, SHARED: 10, IVS: 10, UNMASK: 20}
"""What a host sends in a round of figures, and whose figures are known if it ends instead."""


def test_masked_sums_are_unmasked_exactly(configure: Callable[..., DictConfig]) -> None:
    """Each row is uniform, and so is the sum of the rows of all users before the masks are removed."""
    totals: list[list[Tensor]] = []
    cfg = configure(*SECURE)
    for secure in (True, False):
        told: dict[str, list[Any]] = defaultdict(list)
        cfg.secure = secure
        _, history = train_in_threads(cfg, prepare=listening(told))["server"]
        rows: list[dict[int, Tensor]] = [{} for _ in range(cfg.rounds)]
        for values in (*told["host 0"], *told["host 1"]):
            rows[values.get("round", 0)].update(values.get("rows", {}))
        totals.append([torch.stack(list(each.values())).sum(0) for each in rows])
        assert [len(each) for each in rows] == [20 if secure else 2] * cfg.rounds
        if secure:
            masked = history
            assert all(row.abs().double().log2().median() > 60 for each in rows for row in each.values())
    assert masked == history
    for hidden, plain in zip(*totals, strict=True):
        assert (hidden != plain).all()
        assert hidden.abs().double().log2().median() > 60


@pytest.mark.parametrize("step", [IVS, *(pytest.param(step, marks=pytest.mark.slow) for step in STEPS if step != IVS)])
def test_a_host_that_ends_takes_its_users_along(configure: Callable[..., DictConfig], step: str) -> None:
    """Means of the round are over the users whose masked rows arrived; wrong masks would give random numbers."""

    def end(peers: Peers, rank: int) -> None:
        send = peers.send

        def send_or_end(to: str, frame: Any, *cast: Any) -> None:
            if peers.name == "host 1" and in_figures(peers, 1) and frame.kind == step:
                raise Killed
            send(to, frame, *cast)

        peers.send = send_or_end  # type: ignore[method-assign]

    cfg = configure(*SECURE)
    _, history = train_in_threads(cfg, prepare=end)["server"]
    cfg.output_dir += "/alone"
    cfg.secure = False
    _, alone = train(cfg)
    assert history[0] == alone[0]
    assert ("gap" in history[1]) == (STEPS[step] == 20)
    assert "gap" not in history[2]
    for row in history[1:]:
        errors = [each for name, each in row.items() if name.endswith("_error")]
        assert len(errors) == 4
        assert all(0 <= error <= 1 for error in errors)
    if STEPS[step] == 20:
        assert history[1]["train_error"] == alone[1]["train_error"]


@pytest.mark.slow
@pytest.mark.parametrize("step", [KEYS, IVS])
def test_a_late_host_takes_part_again(configure: Callable[..., DictConfig], step: str) -> None:
    """Its users are missing in some sums, but it does not mistake what the server sends next for a late answer."""

    def delay(peers: Peers, rank: int) -> None:
        peers.seconds, send = 1.0, peers.send

        def send_late(to: str, frame: Any, *cast: Any) -> None:
            if (peers.name, to) == ("host 1", "relay 0") and in_figures(peers, 1) and frame.kind == step:
                time.sleep(6.5)  # relays wait for 1 s, the server for 5 s
            send(to, frame, *cast)

        peers.send = send_late  # type: ignore[method-assign]

    _, history = train_in_threads(configure(*SECURE, "rounds=40"), prepare=delay)["server"]
    assert any(row["users"] < 20 or "gap" not in row for row in history)
    assert any("gap" in row for row in history[3:])


def end_in(round: int) -> Callable[[Peers, int], None]:
    """Host 1 ends when it would send terms, or keys for them, of a round's figures."""

    def prepare(peers: Peers, rank: int) -> None:
        send = peers.send

        def send_or_end(to: str, frame: Any, *cast: Any) -> None:
            if peers.name == "host 1" and in_figures(peers, round) and frame.kind in (KEYS, IVS):
                raise Killed
            send(to, frame, *cast)

        peers.send = send_or_end  # type: ignore[method-assign]

    return prepare


def test_too_few_users_show_no_figures(configure: Callable[..., DictConfig]) -> None:
    """Half of the users are fewer than `least`: their host reveals nothing, and the round has no figures."""
    cfg = configure(*SECURE)
    cfg.communicator.least = 15
    _, history = train_in_threads(cfg, prepare=end_in(1))["server"]
    assert "train_error" in history[0]
    assert all("train_error" not in row for row in history[1:])


@pytest.mark.parametrize("secure", [True, False], ids=["secure", "plain"])
def test_a_run_ends_without_its_first_figures(configure: Callable[..., DictConfig], secure: bool) -> None:
    cfg = configure(*SECURE)
    cfg.secure = secure
    with pytest.raises(ProcessLost):
        train_in_threads(cfg, prepare=end_in(0))


@pytest.mark.parametrize("words", ["secure=true", "secure=false", "sums=coded"])
def test_figures_are_not_among_the_bits_of_a_run(
    configure: Callable[..., DictConfig], tmp_path: Path, words: str
) -> None:
    tables = []
    for metrics in ("users", "sums"):
        train_in_threads(configure(*SECURE, "secure=false", words, f"metrics={metrics}"))
        with (tmp_path / "metrics.csv").open() as file:
            tables.append([[row[f"bits/{tier}"] for tier in TIERS] for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 3
