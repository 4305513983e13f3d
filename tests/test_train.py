"""The main job through its entry point: results, resume, errors, a user's own parts."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import uci_har
from commands import Command, here, run, saved_rows
from omegaconf import DictConfig
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hmtl.communication import InProcess
from hmtl.communication.messages import Message
from hmtl.config.build import build, compose, load_run
from hmtl.errors import CheckpointError, ConfigError
from hmtl.mtl import mlp
from hmtl.reporting import run_pictures
from hmtl.reporting.run_comparison import find_runs
from hmtl.train import play, train
from hmtl.training.checkpoint import load_checkpoint
from hmtl.training.summary import Summary

Configure = Callable[..., DictConfig]
SMALL = ("K=10", "rounds=12", "dataset.rows_per_user=40", "algorithm.omega_every=4", "baseline=null", "logger=none")


@pytest.fixture(autouse=True)
def networks_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stub the picture of the network, because drawing it takes as long as a small run."""
    Image.new("RGBA", (1, 1)).save(picture := BytesIO(), "png")
    monkeypatch.setattr(run_pictures, "topology_picture", lambda communicator: picture.getvalue())


def models(folder: Path) -> torch.Tensor:
    users = load_checkpoint(folder)["algorithm"]["users"]
    W = next(users[name] for name in ("W", "averaged", "coupled") if name in users)
    assert isinstance(W, torch.Tensor)
    return W


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def history(folder: Path) -> list[dict[str, float]]:
    """The rows of the checkpoint, without what a clock measured."""
    clocks = ("local_s", "compute_s", "uncoded_s")
    return [{k: v for k, v in row.items() if k not in clocks} for row in saved_rows(folder)]


def wait_for_rounds(command: Command, folder: Path, rounds: int) -> None:
    """Until metrics.csv in `folder` has so many."""
    table, deadline = folder / "metrics.csv", time.monotonic() + 300
    while not table.exists() or len(table.read_text().splitlines()) <= rounds:
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_default_job_gives_the_same_models_coded_and_uncoded(configure: Configure, tmp_path: Path) -> None:
    results = {}
    server, helped, every = "server", [0, 1, 2], list(range(5))
    for number, (settings, up, down, aggregators) in enumerate(
        (
            (("communicator=coded",), 8, 8, helped),
            (("communicator=coded", "scheme=paper", "aggregators=all"), 10, 8, every),
            (("communicator=coded", "scheme=equal", "aggregators=all"), 10, 8, every),
            (("communicator=coded", "aggregators=server"), 20, 20, server),
            (("communicator=uncoded",), 20, 20, server),
        )
    ):
        communicator = settings[0].removeprefix("communicator=")
        folder = tmp_path / str(number)
        folder.mkdir()
        train(configure(*settings, "rounds=2", *FEW, f"output_dir={folder}"))
        results[settings] = models(folder)
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["aggregators"] == aggregators
        assert summary["communicator"] == communicator
        assert summary["loads"] == {
            "users_to_relays": 20,
            "relays_to_server": pytest.approx(up, rel=0.01),
            "server_to_relays": pytest.approx(down, rel=0.01),
            "relays_to_users": 20,
        }
        assert summary["loads_theory"] == {"relays_to_server": up, "server_to_relays": down}
        assert summary["bounds"] == {"relays_to_server": up, "server_to_relays": down}
        assert summary["V_bits"] == 784 * 64
        assert summary["gap"] >= -1e-9
        if communicator == "uncoded":
            assert summary["time"]["uncoded_total_s"] <= summary["time"]["total_s"]  # by what nodes took to forward
    first, *others = results.values()
    assert all(torch.equal(first, other) for other in others)
    assert first.abs().sum() > 0


@pytest.mark.slow
def test_sums_are_added_where_that_takes_less_time(configure: Configure, tmp_path: Path) -> None:
    """Asked for, or by the coded communicator itself; models are those of forwarding, and the report says so."""
    found = {}
    for how in ("sums", "coded", "coded aggregators=all", "coded wire=float64", "uncoded"):
        train(
            configure("rounds=2", *FEW, "K=20", "algorithm=fedavg", "solver.epochs=1", *f"communicator={how}".split())
        )
        found[how] = models(tmp_path), json.loads((tmp_path / "summary.json").read_text())
    W = [model for model, _ in found.values()]
    assert all(torch.equal(W[0], other) for other in W)
    for how, (_, summary) in found.items():
        summed = how in ("sums", "coded")
        assert summary["communicator"] == ("sums" if summed else how.split()[0])
        assert ("sums replace coding" in summary.get("why", "")) == (how == "coded")
        between = summary["loads"]["relays_to_server"], summary["loads"]["server_to_relays"]
        assert between == (pytest.approx(5 / 3, rel=0.02), 1) if summed else min(between) > 3
        assert summary["loads"]["users_to_relays"] == 20
    (_, ours), (_, theirs) = found["sums"], found["uncoded"]
    assert ours["V_bits"] == 2 * theirs["V_bits"]  # int64 and float32
    assert list(ours["loads_uncoded"].values()) == [10, 10, 20, 20]  # in rows of int64 up and of float32 down
    took = ours["time"]["uncoded_total_s"] - ours["time"]["local_s"]
    assert took > theirs["time"]["communication_s"] * 0.99


def test_sums_in_few_bits_are_reported_in_their_own_rows(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uncoded = []
    for wire in ("null", "int4"):
        words = ("K=20", "algorithm=fedavg", "communicator=sums", f"wire={wire}", "logger.console.report=full")
        train(configure("rounds=3", *FEW[:-1], *words))
        (run,) = find_runs([tmp_path])
        uncoded.append(run.costs["bits uncoded"].tolist())
    assert uncoded[0] == pytest.approx(uncoded[1])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["bits_per_number"].values()) == pytest.approx([4.125, 9.28, 9.28, 9.28], rel=0.01)
    assert "4 bits" in summary["note"]
    _, whole, few = capsys.readouterr().out.split("users   ")
    for table, up, down in ((whole, "64", "32"), (few, "4.138", "9.304")):
        lines = {line.split("│")[1].strip(): line for line in table.splitlines() if line.startswith("│")}
        assert lines["users_to_relays"].endswith(f" {up} │")
        assert lines["relays_to_users"].endswith(f" {down} │")


def test_a_run_far_from_the_optimum_says_so(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    for lam, far in (("0.1", False), ("1e-12", True)):
        train(configure("rounds=3", *FEW[:-1], "K=6", f"lam={lam}"))
        assert ("Far from the optimum" in capsys.readouterr().out) == far


def test_coding_stays_where_it_takes_less_time(configure: Configure, tmp_path: Path) -> None:
    """One relay hears everybody: it aggregates, and hardly anything has to travel."""
    (tmp_path / "links.csv").write_text("1,1,1,1\n0,1,1,0\n")
    network = ("topology=file", f"topology.path={tmp_path / 'links.csv'}", "K=4", "H=2", "r=null")
    train(configure("rounds=3", *FEW, *network, "regularizer=mean", "wire=bfloat16"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["communicator"], summary["loads"]["relays_to_server"]) == ("coded", 0)
    assert summary["V_bits"] == 784 * 16
    assert "bfloat16" in summary["note"]


def test_what_a_run_leaves(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    train(configure(*SMALL[:-2], "baseline=local"))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "relays to server" in out
    table = rows(tmp_path)
    assert [int(row["round"]) for row in table] == list(range(12))
    learned = {"primal", "dual", "gap", "train_error", "train_error_worst", "test_error", "test_error_worst"}
    assert learned | {"users"} <= table[0].keys()
    assert all(float(row["gap"]) >= -1e-9 for row in table)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["bits_total"] == int(table[-1]["bits_total"])
    files = {
        "summary.json",
        "metrics.csv",
        "topology.png",
        "omega.png",
        "checkpoint.pt",
        "models.npz",
        "users.csv",
        "links.csv",
    }
    assert {p.name for p in tmp_path.iterdir()} >= files
    assert not list(tmp_path.glob("*.tmp"))

    events = board(tmp_path)
    tags = events.Tags()
    assert {"topology", "omega"} <= set(tags["images"])
    assert {
        "1 overview/1 test_error [%]",
        "1 overview/2 log10 of gap",
        "3 kbit/relays_to_server",
        "3 kbit/total, so far",
        "4 seconds/compute_s",
    } <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("1 overview/2 log10 of gap")] == [*range(12), 11]
    assert events.Scalars("2 learning/primal")[-1].value == pytest.approx(summary["primal"], rel=1e-6)
    assert all(len(events.Scalars(tag)[:12]) == 12 for tag in tags["scalars"] if "links" not in tag), (
        "no chart of one point"
    )
    middle = [float(row["bits/relays_to_server"]) + float(row["bits/server_to_relays"]) for row in table]
    errors, gaps = [100 * float(row["test_error"]) for row in table], [float(row["gap"]) for row in table]
    seconds = [float(row["compute_s"]) + float(row["communication_s"]) for row in table]
    first = sorted(tags["scalars"])[:5]
    for tag, want in zip(
        first, (errors, np.log10(gaps), np.cumsum(middle) / 1e3, np.cumsum(seconds), errors), strict=True
    ):
        assert [event.value for event in events.Scalars(tag)[:12]] == pytest.approx(list(want))
    assert [event.step for event in events.Scalars(first[4])] == pytest.approx(np.cumsum(middle) / 1e3, abs=0.51)


def board(folder: Path) -> EventAccumulator:
    """The events of a run, in the one folder that has them."""
    (place,) = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    return EventAccumulator(str(place), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


@pytest.mark.parametrize(
    "words",
    [
        "participation.dropout=0.3",
        "communicator=uncoded topology=any_r dataset.standardize=all",
        "algorithm=cocoa communicator=sums secure=true",
        "wire=int8 regularizer=mean participation.dropout=0.3",
    ],
)
def test_links_have_the_bits_of_each_message(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """Against a tap that cuts the rows of every message, those of the set-up included."""
    carried, send = Counter[tuple[str, str, str]](), InProcess.send

    def tapped(self: InProcess, message: Message) -> None:
        links = [message.links] * len(message) if isinstance(message.links, int) else message.links
        counts = self.ledger is run.communicator.ledger and not message.announces  # not those of a price
        for link, row in zip(links, message.rows().tolist(), strict=True) if counts else ():
            size = message.payload[row].numel() + message.overhead[row].numel()
            carried[message.tier, self.ledger.links[message.tier][link], message.kind] += 8 * size
        send(self, message)

    cfg = configure("K=12", "H=4", "r=2", "rounds=3", "dataset.rows_per_user=20", "logger=none", *words.split())
    run = build(cfg)
    monkeypatch.setattr(InProcess, "send", tapped)
    play(run, cfg)
    table = pd.read_csv(tmp_path / "links.csv")
    in_file = {tuple(row[:3]): row[3] + row[4] for row in table.itertuples(index=False)}
    assert in_file == +carried
    total = json.loads((tmp_path / "summary.json").read_text())["bits_total"]
    assert sum(in_file.values()) == total == carried.total()
    assert run.communicator.ledger.table().equals(table)


@pytest.mark.slow
def test_going_on_in_the_same_folder_doubles_nothing(configure: Configure, tmp_path: Path) -> None:
    """After a run that was killed with rounds, and events, behind it that no checkpoint has."""
    settings = (*SMALL[:-1], "algorithm.rounds=6")
    train(configure(*settings, "~logger.console", "rounds=3"))
    with (tmp_path / "metrics.csv").open() as file:
        later = [row.replace("2,", f"{n},", 1) for row in file.readlines()[-1:] for n in (3, 4)]
    with (tmp_path / "metrics.csv").open("a") as file:
        file.writelines([*later, "5,10"])
    time.sleep(1.1 - time.time() % 1)  # TensorBoard sorts files of one second by a count without leading zeros
    train(configure(*settings, "~logger.console", "rounds=6", f"resume={tmp_path}"))
    assert [int(row["round"]) for row in rows(tmp_path)] == list(range(6))
    events = board(tmp_path)
    for tag in (tag for tag in events.Tags()["scalars"] if "links" not in tag):  # those are by rank
        steps = [event.step for event in events.Scalars(tag)]
        assert len(steps[:6]) == 6, tag
        assert "against" in tag or steps[:6] == list(range(6))
        assert steps[6:] in ([], [5]), "HParams repeats the last point of results"
    assert len(events.Images("topology")) == 1
    whole = tmp_path / "whole"
    whole.mkdir()
    train(configure(*settings, "rounds=6", f"output_dir={whole}", "logger=none"))
    assert history(tmp_path) == history(whole)


def test_same_seed_same_run_other_seed_other_run(configure: Configure, tmp_path: Path) -> None:
    W = []
    for n, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(n)
        folder.mkdir()
        train(configure(*SMALL, "rounds=2", f"seed={seed}", f"output_dir={folder}"))
        W.append(models(folder))
    assert torch.equal(W[0], W[1])
    assert not torch.equal(W[0], W[2])


FEW = ("dataset.rows_per_user=40", "baseline=null", "logger=none")
RESUMED = [  # one of each way to keep a state; tests/mtl/algorithms/test_base.py has the states of all learners
    "mocha",
    "local",
    "mocha communicator=sums regularizer=mean wire=int4",
    "fedavg communicator=sums wire=int4 solver.epochs=1",
    "scaffold solver.epochs=1",
    "ditto communicator=sums solver.epochs=1",
    "fedu regularizer=common solver.epochs=1",
    "fedper algorithm.coupled=true regularizer=graph solver.epochs=1",
]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", RESUMED)
def test_killed_and_resumed_equals_uninterrupted(configure: Configure, tmp_path: Path, algorithm: str) -> None:
    """kill -9 between two checkpoints, with stragglers and with users and relays that drop out of rounds."""
    dropout = ("participation=uniform", "participation.dropout=0.2", "participation.relays=0.2")
    settings = ("K=10", *FEW, *dropout, *f"algorithm={algorithm}".split(), "rounds=12", "checkpoint_every=3")
    whole, killed, resumed = (tmp_path / name for name in ("whole", "killed", "resumed"))
    killer = "+logger={killer:{_target_:commands.Killer,rounds:8}}"
    assert run("hmtl.train", *settings, killer, f"hydra.run.dir={killed}").returncode == -signal.SIGKILL
    assert load_checkpoint(killed)["history"]["rounds"] == 6
    for folder, more in ((whole, ()), (resumed, (f"resume={killed}",))):
        folder.mkdir()
        train(configure(*settings, f"output_dir={folder}", *more))
    ours, theirs = (load_checkpoint(folder)["algorithm"] for folder in (resumed, whole))
    for side in theirs:  # models that never travel among them
        assert ours[side].keys() == theirs[side].keys()
        assert all(torch.equal(tensor, theirs[side][name]) for name, tensor in ours[side].items())
    assert history(resumed) == history(whole)
    users = {row["users"] for row in history(whole)}
    assert min(users) < 10
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (resumed, whole))
    assert ours.pop("time")["communication_s"] == theirs.pop("time")["communication_s"]
    assert ours == theirs


def test_a_round_without_relays_is_empty_and_said_so(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = [[1, relay] for relay in range(5)] + [[3, 0]]
    train(configure(*SMALL[:-1], "rounds=5", f"participation.relays={schedule}".replace(" ", "")))
    printed = capsys.readouterr().out
    assert re.search(r"empty rounds\W+1\b", printed)
    assert "Ω was never updated" in printed, "the last 4 of 5 rounds keep it fixed"
    assert json.loads((tmp_path / "summary.json").read_text())["empty_rounds"] == 1
    table = history(tmp_path)
    assert [row["empty"] for row in table] == [0, 1, 0, 0, 0]
    assert [row["users"] for row in table[:2] + table[3:]] == [10, 0, 10, 10]
    assert table[1]["gap"] == table[0]["gap"]
    assert table[1]["bits/relays_to_users"] == 0
    assert table[4]["gap"] < table[0]["gap"]


@pytest.mark.parametrize(
    ("algorithm", "coupled"),
    [("mocha", True), pytest.param("fedu", True, marks=pytest.mark.slow), ("fedavg", False)],
)
def test_the_summary_names_what_plays_a_part(
    configure: Configure, tmp_path: Path, algorithm: str, coupled: bool
) -> None:
    train(configure("K=10", *FEW, "rounds=1", f"algorithm={algorithm}"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"K", "H", "r", "communicator", "scheme", "medium", "algorithm", "loss", "error_measure"} <= summary.keys()
    assert {"dataset", "rounds", "seed", "V_bits", "loads", "loads_theory", "bounds", "bits_total"} <= summary.keys()
    assert ({"regularizer", "lam"} <= summary.keys()) is coupled
    assert coupled or not {"regularizer", "lam"} & summary.keys()
    assert "empty_rounds" not in summary


@pytest.mark.parametrize(
    ("algorithm", "weight"),
    [
        ("ditto", "lam"),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("fedprox", "mu"), ("pfedme", "lam"))),
    ],
)
def test_personal_and_proximal_learners_through_the_command(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], algorithm: str, weight: str
) -> None:
    train(configure("K=10", *FEW[:-1], "~logger.tensorboard", "rounds=2", f"algorithm={algorithm}", "lam=0.3"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["algorithm"], summary[weight]) == (algorithm, 0.3)
    assert "regularizer" not in summary
    assert summary["loads"]["users_to_relays"] == 10  # one model each: what is a user's own never travels
    own = algorithm != "fedprox"
    assert ("global_test_error" in summary) is own
    assert ("test error of the global model" in capsys.readouterr().out) is own


def test_personal_layers_stay_with_their_users(configure: Configure, tmp_path: Path) -> None:
    """A run hands out whole models, and counts the bits of the shared layer only."""
    settings = ("K=10", *FEW, "rounds=2", "algorithm=lg_fedavg", "participation.dropout=0.2")
    train(configure(*settings, "communicator=sums"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["personal"] == ["0.bias", "0.weight"]
    assert summary["V_bits"] == 64 * (64 + 1)
    m, shared = 784 * 64 + 64, slice(-65, None)
    W = load_run(tmp_path, mlp).W
    assert W.shape == (10, m + 65)
    assert not np.ptp(W[:, shared], axis=0).any()
    assert len(np.unique(W[:, :m], axis=0)) == 10


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_keeps_a_checkpoint(tmp_path: Path, asked: signal.Signals) -> None:
    settings = ("K=10", "rounds=100000", "dataset.rows_per_user=40", "checkpoint_every=100000")
    with Command("hmtl.train", *settings, "~logger.tensorboard", f"hydra.run.dir={tmp_path}") as command:
        wait_for_rounds(command, tmp_path, 4)
        command.send_signal(asked)
        assert command.done().poll() == 128 + asked
    assert command.stdout.splitlines()[-1].startswith("Stopped after")
    assert "resume=" in command.stdout
    assert load_checkpoint(tmp_path)["history"]["rounds"] == len(rows(tmp_path))


@pytest.mark.slow
def test_a_user_error_is_one_line_and_exit_2(tmp_path: Path) -> None:
    """In an interpreter of its own, where other commands of the tests are forked."""
    command = [sys.executable, "-m", "hmtl.train", "r=9", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: r=9")
    assert len(done.stderr.splitlines()) == 1


def test_a_bad_resume_touches_nothing(configure: Configure, tmp_path: Path) -> None:
    """Not even in the folder of the run itself, which a user may well name as the place for the results."""
    settings = (*SMALL[:-1], "rounds=3")
    train(configure(*settings))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for other, where, kind, message in (
        ("lam=0.5", tmp_path, CheckpointError, r"lam was 0\.01, is 0\.5"),
        ("rounds=4", tmp_path / "nothing", CheckpointError, "nothing"),
        ("rounds=2", tmp_path, ConfigError, "rounds=2"),  # has been done
    ):
        with pytest.raises(kind, match=message):
            train(configure(*settings, other, f"resume={where}"))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    "overrides",
    [
        ("r=5",),
        pytest.param(("H=1", "r=1"), marks=pytest.mark.slow),
        pytest.param(("H=2", "r=2"), marks=pytest.mark.slow),
        pytest.param(("topology=any_r", "r=5"), marks=pytest.mark.slow),
        pytest.param(("communicator=uncoded",), marks=pytest.mark.slow),
    ],
)
def test_idle_tiers_are_no_trouble(configure: Configure, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    train(configure(*SMALL[:-1], "rounds=2", *overrides))
    summary = json.loads((tmp_path / "summary.json").read_text())
    idle = "communicator=uncoded" not in overrides
    assert (summary["loads"]["relays_to_server"] == 0) is idle


@pytest.mark.slow
def test_threads_compose_and_train_side_by_side(tmp_path: Path) -> None:
    """As in a server or a notebook: not in the main thread, and without a command line."""
    jobs = [(seed, algorithm) for seed in (0, 1) for algorithm in ("mocha", "local", "fedu")]

    def job(folder: Path, seed: int, algorithm: str) -> torch.Tensor:
        folder.mkdir(parents=True)
        train(compose("K=10", "rounds=2", *FEW, f"seed={seed}", f"algorithm={algorithm}", f"output_dir={folder}"))
        return models(folder)

    with ThreadPoolExecutor(len(jobs)) as pool:
        together = [pool.submit(job, tmp_path / "together" / f"{seed}{name}", seed, name) for seed, name in jobs]
    alone = [job(tmp_path / "alone" / f"{seed}{name}", seed, name) for seed, name in jobs]
    assert all(torch.equal(one.result(), other) for one, other in zip(together, alone, strict=True))


@pytest.mark.slow
@pytest.mark.skipif("HMTL_DATA" not in os.environ, reason="needs the folder with har561.npz")
def test_har_by_subject(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 subjects of real windows; float32 features beside float64 models."""
    with np.load(Path(os.environ["HMTL_DATA"]) / "har561.npz") as file:
        x, y, subject, test = (file[name] for name in ("x", "y", "subject", "official_test"))
    uci_har.write(tmp_path / "UCI HAR Dataset", x, y, subject, ~test)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train(configure("dataset=har_subjects", f"dataset.path={tmp_path}", "topology=any_r", "rounds=10", *FEW[1:]))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["K"] == 30
    assert summary["V_bits"] == 561 * 64
    assert summary["test_error"] < 0.1


class Notes:
    """A logger that writes down what it gets."""

    def __init__(self, file: str) -> None:
        self.file, self.notes = Path(file), dict[str, object]()

    def log(self, row: dict[str, float]) -> None:
        self.notes[str(int(row["round"]))] = row["gap"]

    def finish(self, summary: Summary, draw: Callable[[], dict[str, bytes]]) -> None:
        self.notes["bits"] = summary.to_dict()["bits_total"]

    def close(self) -> None:
        self.file.write_text(json.dumps(self.notes))


def test_a_logger_of_ones_own_gets_each_round_and_the_summary(configure: Configure, tmp_path: Path) -> None:
    own = (f"+logger.own._target_={__name__}.Notes", f"+logger.own.file={tmp_path}/notes")
    train(configure("K=4", "H=2", "r=1", "rounds=3", "dataset.rows_per_user=20", *FEW[1:], *own))
    every = rows(tmp_path)
    bits = json.loads((tmp_path / "summary.json").read_text())["bits_total"]
    gaps = {row["round"]: float(row["gap"]) for row in every}
    assert len(every) >= 3
    assert json.loads((tmp_path / "notes").read_text()) == gaps | {"bits": bits}


OWN = """
from hmtl.mtl import Dense, Regularizer

class Neighbors(Regularizer):
    '''Each user close to the next one, on a ring.'''

    def coupling(self, Omega):
        return Dense(self.lam * (2.1 * Omega.eye - Omega.eye.roll(1, 0) - Omega.eye.roll(-1, 0)))
"""


def test_a_regularizer_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from a module and a configuration folder outside the package, by `_target_`."""
    (tmp_path / "own_regularizer.py").write_text(OWN)
    (tmp_path / "conf" / "regularizer").mkdir(parents=True)
    (tmp_path / "conf" / "regularizer" / "own.yaml").write_text("_target_: own_regularizer.Neighbors\nlam: ${lam}\n")
    own = ("--config-dir", "conf", "regularizer=own", "hydra.run.dir=out")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    done = here("hmtl.train", *own, *SMALL, "rounds=20", "lam=0.1", "communicator=uncoded")
    assert done.returncode == 0, done.stderr
    learned = history(tmp_path / "out")
    assert learned[-1]["gap"] < 0.5 * learned[0]["gap"]
    assert learned[-1]["gap"] >= -1e-9
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["primal"] == learned[-1]["primal"]


WALKS = ("topology=moving", "topology.every=3", "H=4", "topology.radius=0.4")


@pytest.mark.slow
def test_users_that_move_learn_the_same(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coded, uncoded, and where nobody moves; a run that stopped within a stretch goes on to the same."""
    monkeypatch.setenv("COLUMNS", "80")
    contacts = [f"{3 * n},{k // (n + 1) % 3},{k}\n" for n in range(4) for k in range(10)]
    (tmp_path / "contacts.csv").write_text("round,relay,user\n" + "".join(contacts))
    from_file = ("topology=moving", f"topology.path={tmp_path / 'contacts.csv'}", "H=null")
    results = {}
    for name, settings in {
        "coded": WALKS,
        "from a file": (*from_file, "aggregators=all"),
        "uncoded": (*WALKS, "communicator=uncoded"),
        "still": ("topology=geometric", "H=4", "topology.radius=0.4"),
        "stopped": (*WALKS, "rounds=7", "algorithm.rounds=12"),
        "resumed": (*WALKS, f"resume={tmp_path / 'stopped'}"),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        full = ("~logger.tensorboard", "logger.console.report=full")
        train(configure(*SMALL[:-1], *full, *settings, f"output_dir={folder}"))
        results[name] = models(folder)
        told = " ".join(capsys.readouterr().out.split())
        summary = json.loads((folder / "summary.json").read_text())
        if name in ("uncoded", "still"):
            assert (summary["time"]["plans"], summary["time"]["planning_s"]) == (0, 0)
            assert re.search(r"time\.plans\W+0\b", told)
        elif name != "resumed":  # which plans anew what the stopped one had planned already
            assert summary["time"]["plans"] == (2 if name == "stopped" else 3)
            assert 0 < summary["time"]["planning_s"] < summary["time"]["compute_s"]
            assert re.search(rf"time\.plans\W+{summary['time']['plans']}\b", told)
    del results["stopped"]
    assert [name for name, W in results.items() if not torch.equal(results["coded"], W)] == []
    assert history(tmp_path / "resumed") == history(tmp_path / "coded")


def test_a_file_of_contacts_tells_the_sizes(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "contacts.csv"
    path.write_text("round,relay,user\n0,0,0\n0,1,1\n5,0,1\n")
    with pytest.raises(ConfigError, match="K=20"):
        train(configure("topology=moving", f"topology.path={path}"))


@pytest.mark.slow
def test_evaluated_every_few_rounds(configure: Configure, tmp_path: Path) -> None:
    """The report has the last round's figures, as that of a run that is evaluated each time."""
    small = (
        "K=6",
        "H=2",
        "r=1",
        "dataset.rows_per_user=20",
        "rounds=6",
        "logger=none",
        "algorithm=fedu",
        "regularizer=mean",
    )
    summaries = []
    for every in (1, 4):
        folder = tmp_path / str(every)
        folder.mkdir()
        train(configure(*small, f"evaluate_every={every}", f"output_dir={folder}"))
        summaries.append(json.loads((folder / "summary.json").read_text()) | {"time": None})
    assert summaries[0] == summaries[1]
    table = rows(tmp_path / "4")
    assert [row["round"] for row in table if row["primal"] and row["train_error"]] == ["0", "4", "5"]
    assert all(row["bits_total"] for row in table)


@pytest.mark.slow
def test_names_of_a_topology_are_those_of_the_data(configure: Configure, tmp_path: Path) -> None:
    """Users are matched by name; others get the topology's names."""
    rng, names = np.random.default_rng(0), ["alice", "bob", "carol", "dave"]
    (tmp_path / "data").mkdir()
    for k, name in enumerate(names):
        x = rng.normal(size=(8 + 2 * k, 2))
        np.savez(tmp_path / "data" / f"{name}.npz", x=x, y=np.sign(x[:, 0]))
    (tmp_path / "G.csv").write_text("user,roof,barn\ndave,1,0\nbob,0,1\nalice,1,1\ncarol,0,1\n")
    network = ("topology=file", f"topology.path={tmp_path}/G.csv")
    data = ("dataset=files", f"dataset.path={tmp_path}/data", "rounds=1")
    train(configure(*network, *data, "aggregators=[barn]"))
    rows = (tmp_path / "users.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == names
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["aggregators"], summary["r"]) == (["barn"], 1.25)
    train(configure(*network, "K=4", "rounds=1", "dataset=mnist5k"))
    assert (tmp_path / "users.csv").read_text().splitlines()[1].startswith("dave,")
    (tmp_path / "G.csv").write_text("relay,alice,bob,carol,erin\nroof,1,1,1,1\n")
    with pytest.raises(ConfigError, match=r"erin.*dave"):
        train(configure(*network, *data))
