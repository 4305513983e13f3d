"""`experiments/network`: the formula, the evaluation of clocks and counters, and a small run if possible."""

import argparse
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hmtl.coding import MOST_PIECES
from hmtl.communication import TIERS, Network
from hmtl.communication.round_costs import compare
from hmtl.topology import any_r

FOLDER = Path(__file__).parent.parent.parent / "experiments" / "network"
sys.path.insert(0, str(FOLDER))
try:
    run, lab = import_module("run"), import_module("lab")
finally:
    sys.path.pop(0)
FIRST_UP, UP, DOWN, LAST_DOWN = TIERS
BITS = 8 * 2**20


@pytest.fixture(scope="module")
def recorded() -> dict[tuple[str, str], dict[str, Any]]:
    rows = run.load(FOLDER / "results.csv")
    return {(row["transport"], row["scheme"]): row for row in rows}


@pytest.mark.parametrize("medium", ["unicast", "broadcast"])
@pytest.mark.parametrize("K", [9, 40])
def test_the_formula_is_that_of_the_plan(medium: str, K: int) -> None:
    t = any_r(K, 5, 3, 0)
    plan = compare(t, Network(medium=medium), BITS)
    expected = {
        "uncoded": plan.seconds[medium]["uncoded"],
        "all relays": plan.seconds[medium]["optimal"],
        "best aggregators": plan.aggregators[medium].seconds[medium],
        "sums": plan.sums.seconds[medium],
    }
    for scheme, seconds in expected.items():
        assert sum(run.formula(t, scheme, medium, BITS, 1, MOST_PIECES).values()) == pytest.approx(seconds)
    one, two = (run.formula(t, "sums", medium, BITS, workers) for workers in (1, 2))
    assert two == {**one, LAST_DOWN: 2 * one[LAST_DOWN]}


def node(name: str, sent: list[tuple[str, float]], received: list[tuple[str, float]], **more: object) -> dict[str, Any]:
    """Return a node's measurements; its frames to and from each peer are numbered from 0."""
    numbers: dict[tuple[str, str], int] = {}

    def numbered(direction: str, peer: str) -> int:
        numbers[direction, peer] = numbers.get((direction, peer), -1) + 1
        return numbers[direction, peer]

    return {
        "node": name,
        "sent": [{"receiver": to, "sequence": numbered("to", to), "at": at} for to, at in sent],
        "received": [{"sender": of, "sequence": numbered("of", of), "at": at} for of, at in received],
        **more,
    }


def test_a_tier_is_busy_while_a_frame_is_under_way() -> None:
    nodes = [
        node("host 0", [("relay 0", 0.0), ("relay 1", 0.5)], [("relay 1", 20.0)]),
        node("relay 0", [("server", 2.0), ("server", 2.5)], [("host 0", 2.0), ("server", 10.0)]),
        node("relay 1", [("server", 6.0), ("host 0", 13.0)], [("host 0", 4.0)]),
        node("server", [("relay 0", 8.0)], [("relay 0", 2.25), ("relay 0", 3.0), ("relay 1", 7.0)]),
    ]
    assert run.seconds(nodes) == {FIRST_UP: 4.0, UP: 0.25 + 0.5 + 1.0, DOWN: 2.0, LAST_DOWN: 7.0}


def test_bytes_of_links() -> None:
    """A packet's headers are not counted: 66 bytes of Ethernet, IP and TCP, or 42 with UDP."""
    none = {"tx_packets": 0, "rx_packets": 0}
    relay = {"tx_bytes": 2000, "tx_packets": 2, "rx_bytes": 1566, "rx_packets": 2}
    server = {"tx_bytes": 3000, "tx_packets": 3, "rx_bytes": 2000, "rx_packets": 2}
    nodes = [
        node(
            "server",
            [],
            [],
            ledger={UP: [0, 0], DOWN: [7, 500, 2300]},
            kernel={"hop2": server, "multicast": {"tx_packets": 2, "rx_packets": 0}},
        ),
        node(
            "relay 1",
            [],
            [],
            ledger={UP: [0, 1800], DOWN: [0, 0, 0]},
            kernel={"hop2": relay, "multicast": {"tx_packets": 0, "rx_packets": 1}},
        ),
        node("host 0", [], [], ledger={UP: [0, 0], DOWN: [0, 0, 0]}, kernel={"hop1": relay, "multicast": none}),
    ]
    assert run.link_bytes(nodes, "unicast") == {(UP, 1): (1800, 2000 - 2 * 66), (DOWN, 1): (500, 1566 - 66 - 42)}
    assert run.link_bytes(nodes, "broadcast") == {(UP, 1): (1800, 1868), (DOWN, 1): (2807, 3000 - 66 - 2 * 42)}
    assert run.server_bytes(nodes) == {UP: (1800, 2000 - 2 * 66), DOWN: (2807, 2850)}


def test_what_is_printed_fits_and_what_is_drawn_has_all(recorded: dict[tuple[str, str], dict[str, Any]]) -> None:
    rows, console = list(recorded.values()), Console(record=True, width=80)
    for shown in run.tables(rows):
        console.print(shown)
    text = console.export_text()
    assert "…" not in text
    assert text.count("best aggregators") == 2 * len(run.TRANSPORTS)
    assert text.count("uncoded") == 2
    (axes,) = run.draw(rows).axes
    assert len(axes.get_yticklabels()) == len(rows)
    assert len(axes.patches) == 2 * len(TIERS) * len(rows)


def test_rows_are_of_all_rounds_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SCHEMES", ("uncoded",))

    def seen(repetition: int, seconds: float, kernel: int, correct: int) -> list[dict[str, Any]]:
        device = {"tx_bytes": kernel + 66, "tx_packets": 1, "rx_bytes": 0, "rx_packets": 0}
        counted = {"hop2": device, "multicast": {"tx_packets": 0, "rx_packets": 0}}
        about = {"scheme": "uncoded", "repetition": repetition, "kernel": counted, "start": 1.0}
        ledger = {UP: [1000, 0, 0], DOWN: [0, 0, 0, 0]}
        return [
            node(
                "server", [], [("relay 0", 2.0 + seconds)], **about, end=3.0, correct=0, ledger={**ledger, UP: [0] * 3}
            ),
            node("relay 0", [("server", 2.0)], [], **about, end=4.0 + seconds, correct=correct, ledger=ledger),
        ]

    rounds = [seen(0, 99.0, 9999, 0), seen(1, 1.0, 1010, 8), seen(2, 5.0, 980, 7), seen(3, 2.0, 1000, 8)]
    (row,) = run.summary(settings(bytes=1000), "TCP", [each for round in rounds for each in round])
    assert (row["rounds"], row["lossless"], row["measured_s"], row["clock_s"]) == (3, 2, 2.0, 5.0)
    assert row["formula_s"] == pytest.approx(4 * 8 * 8000 / 1e8)
    assert row["worst_link"] == pytest.approx(0.02)
    assert row[f"counted_bytes/{UP}"] == 1000


def test_what_tables_say(recorded: dict[tuple[str, str], dict[str, Any]]) -> None:
    plain = recorded["TCP", "uncoded"] | {"formula_s": 10.0, "measured_s": 11.0}
    best = recorded["TCP", "best aggregators"] | {"formula_s": 8.0, "measured_s": 8.36}
    console = Console(record=True, width=80)
    console.print(run.tables([plain, best])[0])
    *_, first, second, _ = console.export_text().splitlines()
    assert first.split() == ["TCP", "uncoded", "10.00", "11.00", "10.0%"]
    assert second.split() == ["best", "aggregators", "8.00", "8.36", "4.5%", "20.0%", "24.0%"]


def test_what_is_saved_is_loaded(tmp_path: Path, recorded: dict[tuple[str, str], dict[str, Any]]) -> None:
    run.save(tmp_path / "again.csv", list(recorded.values()))
    assert (tmp_path / "again.csv").read_bytes() == (FOLDER / "results.csv").read_bytes()


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(lab.shutil, "which", lambda name: name)
    monkeypatch.setattr(lab.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert run.main() == 2
    assert capsys.readouterr().err == "error: network namespaces need root: try sudo.\n"


def test_recorded_seconds_are_those_of_the_formula(recorded: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Within 6 % over TCP, of which 4.6 are headers below, and within 15 % with multicast; and every bit is right."""
    t = any_r(40, 5, 3, 0)
    assert len(recorded) == 4 + 3 * 3
    for (transport, scheme), row in recorded.items():
        medium, loss = run.TRANSPORTS[transport]
        assert row["lossless"] == row["rounds"] >= 5
        assert row["formula_s"] == pytest.approx(sum(run.formula(t, scheme, medium, BITS, 2).values()))
        assert row["worst_link"] < 0.03
        if scheme != "sums" and not loss:
            assert row["measured_s"] == pytest.approx(row["formula_s"], rel=0.06 if transport == "TCP" else 0.15)


def test_recorded_savings_are_those_of_the_plan(recorded: dict[tuple[str, str], dict[str, Any]]) -> None:
    plain, best = recorded["TCP", "uncoded"], recorded["TCP", "best aggregators"]
    plan = compare(any_r(40, 5, 3, 0), Network(medium="unicast"), BITS)
    saved = 1 - plan.aggregators["unicast"].seconds["unicast"] / plan.seconds["unicast"]["uncoded"]
    assert 1 - best["measured_s"] / plain["measured_s"] == pytest.approx(saved, abs=0.03)


def test_recorded_losses_cost_little(recorded: dict[tuple[str, str], dict[str, Any]]) -> None:
    for scheme in run.SCHEMES[1:]:
        free, few, many = (
            recorded[transport, scheme][f"kernel_bytes/{DOWN}"] for transport in ("multicast", "0.1 % lost", "1 % lost")
        )
        assert free < few < many < 1.08 * free


def settings(**sizes: int) -> argparse.Namespace:
    return argparse.Namespace(**{"K": 8, "H": 3, "r": 2, "seed": 0, "bytes": 2**18, "rounds": 1, "workers": 2} | sizes)


def left_behind() -> list[str]:
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [name for name in names.split() if name.startswith("hmtl-")]


@pytest.fixture
def root() -> None:
    if reason := lab.obstacle():
        pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("transport", ["TCP", "1 % lost"])
def test_a_small_run(transport: str) -> None:
    rows = run.summary(settings(), transport, run.play(settings(), transport))
    assert not left_behind()
    assert [row["scheme"] for row in rows] == list(run.SCHEMES)[transport != "TCP" :]
    for row in rows:
        assert row["lossless"] == row["rounds"] == 1
        assert row["measured_s"] > 0.7 * row["formula_s"], "links are no faster than they are, but for a first burst"
        assert row["worst_link"] < 0.03
    if transport == "TCP":
        assert rows[0][f"counted_bytes/{UP}"] == pytest.approx(8 * 2**18, rel=0.001)


@pytest.mark.slow
@pytest.mark.usefixtures("root")
def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(FOLDER / "run.py"), str(tmp_path)], stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while not any(
            subprocess.run(["ip", "netns", "pids", name], capture_output=True).stdout for name in left_behind()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) != 0
    assert not left_behind()
    assert not list(tmp_path.iterdir())
