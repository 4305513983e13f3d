"""Kill and suspend the nodes of a run at random, start each again, and compare with a run that nobody disturbs.

`python experiments/network/kills.py FOLDER [kills=40] [seed=0] [signal=SIGKILL|SIGSTOP] [seconds=8] [engine=site|ray]
[SETTING ...]` makes a site of a server, three relays and two hosts on this machine, and starts its nodes by
`python -m hmtl.node`; or it starts them as actors of Ray. Every few seconds, one of them gets SIGKILL and starts again
under its name, or gets SIGSTOP and, at most `seconds` later, SIGCONT; each gets its turn. Once all of this has
happened, the run is left alone. Prints what it did and what came out, and exits with 1 if the run did not end, if
rounds or bits are missing, if a gap is below -1e-9, or if the optimum differs by more than 1e-6 from that of the same
run in one process.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from hmtl.distributed.launching import free_port

NAMES = ("server", "relay-0", "relay-1", "relay-2", "host-0", "host-1")
USUAL = ("K=12", "H=3", "r=2", "dataset.rows_per_user=20", "rounds=200", "loss=smooth_hinge", "lam=0.01")
MOCHA = ("algorithm=mocha", "algorithm.omega_every=0")  # so that there is one optimum
PAUSE = 2.0  # seconds that a host rests in each round while nodes are killed, so that they can come back before the end
LONG = 100.0  # seconds that the run may take for a few rounds, before the next node is killed
ALONE = 3000.0  # seconds after the last kill until the run has to be over


def rest(predictions: torch.Tensor, targets: torch.Tensor) -> float:
    """Wait a moment: a measure that slows the rounds down."""
    time.sleep(float(Path("pause.txt").read_text()) / 6 / 2)  # for each user, on training and test rows
    return 0.0


class Site:
    """The processes of a site.

    Args:
        folder: gets the site's file, and logs and results.
        settings: of the training.
    """

    def __init__(self, folder: Path, settings: list[str]) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True)
        self.pause(PAUSE)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.begin([*settings, "+measures.rest._target_=kills.rest", "engine.seconds=3"])

    def begin(self, training: list[str]) -> None:
        """Start all nodes for the first time."""
        nodes = [{"name": name, "address": f"127.0.0.1:{free_port()}"} for name in NAMES[:4]]
        content = {"server": nodes[0], "relays": nodes[1:], "hosts": [{"name": name} for name in NAMES[4:]]}
        OmegaConf.save(OmegaConf.create({**content, "training": training}), self.folder / "site.yaml")
        self.run("hmtl.certificates", "deployment=site.yaml").wait()
        for name in NAMES:
            self.start(name)

    def run(self, module: str, *words: str, log: str = "log") -> subprocess.Popen[bytes]:
        paths = os.pathsep.join([str(Path(__file__).parent), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{log}.txt").open("ab") as file:
            command = [sys.executable, "-m", module, *words]
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=file, stderr=file)

    def pause(self, seconds: float) -> None:
        new = self.folder / "pause.new"
        new.write_text(str(seconds))
        new.replace(self.folder / "pause.txt")  # at once, since nodes may be reading it

    def start(self, name: str) -> None:
        """Start a node, whether for the first time or again."""
        self.processes[name] = self.run("hmtl.node", f"name={name}", "deployment=site.yaml", log=name)

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a node, and wait until it has ended if this is SIGKILL."""
        self.processes[name].send_signal(number)
        if number == signal.SIGKILL:
            self.processes[name].wait()

    @property
    def rounds(self) -> list[dict[str, str]]:
        """The rows of all rounds so far."""
        file = self.folder / "runs" / "server" / "metrics.csv"
        return list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []

    @property
    def finished(self) -> bool:
        return (self.folder / "runs" / "server" / "summary.json").exists()

    def revive(self) -> None:
        """Start nodes again that have ended by themselves, as a service manager would."""
        for name, process in self.processes.items():
            if process.poll() and not self.finished:
                print(f"  {name} ended with {process.returncode}: started again", flush=True)
                self.start(name)

    def wait(self, seconds: float) -> None:
        """Wait, or until the run has finished."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.finished:
            self.revive()
            time.sleep(0.2)

    def end(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


class Cluster(Site):
    """The actors of a run by Ray, which starts them again."""

    def begin(self, training: list[str]) -> None:
        words = [*training, "engine=ray", "engine.hosts=2", "logger=none", "hydra.run.dir=runs/server"]
        self.processes["trainer"] = self.run("hmtl.train", *words, log="server")

    def start(self, name: str) -> None:
        assert name in NAMES, "the trainer ended"

    def signal(self, name: str, number: int) -> None:
        while not self.finished:
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    title = (process / "cmdline").read_text().partition(".")[0].strip(" \0")
                    if title == f"ray::{name.replace('-', ' ')}" and (process / "cwd").readlink() == self.folder:
                        os.kill(int(process.name), number)
                        return
            self.wait(0.5)  # it starts again


def disturb(site: Site, kills: int, dice: random.Random, longest: float, only: str | None) -> None:
    """Kill or suspend one node after another."""
    names: list[str] = []
    while len(site.rounds) < 3:
        site.wait(1)
    for n in range(kills):
        names = names or dice.sample(NAMES, len(NAMES))
        name, suspend = names.pop(), only == "SIGSTOP" if only else dice.random() < 0.3
        at, seconds = len(site.rounds), dice.uniform(longest / 16, longest)
        print(f"{n + 1}: round {at}: {name} {f'suspended for {seconds:.0f} s' if suspend else 'killed'}", flush=True)
        if suspend:
            site.signal(name, signal.SIGSTOP)
            time.sleep(seconds)
            site.signal(name, signal.SIGCONT)
        else:
            site.signal(name, signal.SIGKILL)
            time.sleep(dice.choice([0.0, seconds]))
            site.start(name)
        reached, deadline = at + dice.randint(0, 4), time.monotonic() + LONG
        site.wait(dice.uniform(1.0, 8.0))
        while len(site.rounds) < reached and time.monotonic() < deadline:
            site.wait(1)


def main(words: list[str]) -> int:
    keys = ("kills", "seed", "signal", "seconds", "engine")
    own = dict(word.split("=") for word in words[1:] if word.split("=")[0] in keys)
    given = [word for word in words[1:] if word.split("=")[0] not in own]
    settings = [*USUAL, *(given if any(word.startswith("algorithm=") for word in given) else (*MOCHA, *given))]
    dice = random.Random(int(own.get("seed", 0)))
    site = (Cluster if own.get("engine") == "ray" else Site)(Path(words[0]), settings)
    try:
        disturb(site, int(own.get("kills", 40)), dice, float(own.get("seconds", 8)), own.get("signal"))
        print(f"left alone after round {len(site.rounds)}", flush=True)
        site.pause(0)
        site.wait(ALONE)
        site.wait(5)
    finally:
        site.end()
    alone = site.folder / "alone"
    settings = [word for word in settings if not word.startswith("engine")]
    site.run("hmtl.train", *settings, "logger=none", f"hydra.run.dir={alone}", log="alone").wait()
    return judge(site, alone)


def judge(site: Site, alone: Path) -> int:
    """Print what came out, and return the exit status."""
    if not site.finished:
        print(f"did not end: {len(site.rounds)} rounds")
        return 1
    rows = site.rounds
    summaries: list[dict[str, Any]] = [
        json.loads((folder / "summary.json").read_text()) for folder in (site.folder / "runs" / "server", alone)
    ]
    gaps = [float(row["gap"]) for row in rows if row.get("gap")]
    primal, expected = (summary["primal"] for summary in summaries)
    off = abs(primal - expected) / abs(expected)
    print(f"{len(rows)} rounds, {sum(row['users'] != '12' for row in rows)} without all users")
    print(f"gap: least {min(gaps):.2g}, last {gaps[-1]:.2g}, alone {summaries[1]['gap']:.2g}")
    print(f"primal {primal:.9g}, alone {expected:.9g}, relative difference {off:.2g}")
    bits = sum(int(row[key]) for row in rows[1:] for key in row if key.startswith("bits/")) + int(rows[0]["bits_total"])
    whole = len(rows) == summaries[1]["rounds"] and bits == summaries[0]["bits_total"]
    print("the ledger is whole" if whole else f"the rounds have {bits} bits, the summary {summaries[0]['bits_total']}")
    return int(not whole or min(gaps) < -1e-9 or off > 1e-6)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
