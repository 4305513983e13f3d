"""The loop: local updates, exchange, measurements, checkpoints. It knows no mathematics.

K users; times in seconds.
"""

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure

from hmtl.communication import TIERS, Communicator, Network
from hmtl.communication.ledger import RELAYS_TO_SERVER, RELAYS_TO_USERS, SERVER_TO_RELAYS, USERS_TO_RELAYS
from hmtl.errors import CheckpointError
from hmtl.mtl import Algorithm

TIMED_USERS = 3  # whose local update is timed alone, once before the first round
Row = dict[str, float]


class Logger(Protocol):
    """Takes what is measured."""

    def log(self, row: Row) -> None:
        """One round: see `Trainer.measure` for the keys. A resumed run first repeats the rounds it has behind it."""

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
        """The whole run: what `summary.json` holds, and pictures by name."""

    def close(self) -> None:
        """No more will come, whether the run was finished or not."""


class Trainer:
    """Trains `algorithm` over `communicator` and keeps one row of measurements for each round.

    Args:
        algorithm: what is learned; its two sides meet only through the communicator.
        communicator: how the messages travel.
        network: turns bits into seconds.
        rounds: how many to run in all, those before a resume included.
        gap_tolerance: stop when (primal − dual) ≤ gap_tolerance · |primal|; zero never stops early.
        checkpoint: file to be replaced every `checkpoint_every` rounds and at the end.
        identity: the configuration that a checkpoint has to share with the run that goes on from it.
        loggers: told of each round.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        communicator: Communicator,
        network: Network,
        *,
        rounds: int,
        gap_tolerance: float = 0.0,
        checkpoint: Path,
        checkpoint_every: int = 10,
        identity: Mapping[str, Any] | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.algorithm = algorithm
        self.communicator = communicator
        self.network = network
        self.rounds = rounds
        self.gap_tolerance = gap_tolerance
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.identity = dict(identity or {})
        self.loggers = loggers
        self.history: list[Row] = []
        self.interrupted = False

    def fit(self, resume: Path | None = None) -> list[Row]:
        """Run the rounds that are left and return one row for each round, those before a resume included.

        Ctrl-C ends it after the round in work, with a checkpoint and `interrupted` set; a second one at once.

        Raises:
            CheckpointError: `resume` is damaged, or of another configuration.
        """
        if resume is not None:
            self._load(resume)
        for row in self.history:
            for logger in self.loggers:
                logger.log(row)
        user_seconds = self.algorithm.user_seconds(len(self.history), TIMED_USERS)
        with _ctrl_c() as asked_to_stop:
            while len(self.history) < self.rounds and not self._converged():
                row = self._round(len(self.history), user_seconds)
                self.history.append(row)
                for logger in self.loggers:
                    logger.log(row)
                self.interrupted = asked_to_stop.is_set()
                if self.interrupted or len(self.history) % self.checkpoint_every == 0:
                    self._save()
                if self.interrupted:
                    return self.history
        self._save()
        return self.history

    def _round(self, number: int, user_seconds: float) -> Row:
        ivs = self.algorithm.local_update(number)
        absent = self.algorithm.absent(number)
        self.algorithm.receive(self.communicator.exchange(ivs, self.algorithm.global_update, absent))
        return self.measure(number, user_seconds)

    def measure(self, number: int, user_seconds: float) -> Row:
        """The row of the round just done.

        Keys: `round`; primal, dual, gap where the algorithm has them; train and test error, mean over the users and of
        the worst user; bits on each tier (`bits/...`, all that was sent) and in all so far; `compute_s` (measured: the
        slowest user's local update, the slowest relay's and the server's coding, the global update) and
        `communication_s` (Hu et al. 2022, eqs. (12), (13)); `uncoded_s`, what the round takes uncoded.
        """
        ledger, watch = self.communicator.ledger, self.communicator.stopwatch
        bits = {tier: ledger.bits(tier, round=-1) for tier in TIERS}
        learning = user_seconds + watch.slowest("global update")
        sent = {tier: ledger.per_link(tier, round=-1).sum(axis=1) for tier in TIERS}
        topology = self.communicator.topology
        uncoded: dict[str, Any] = dict.fromkeys(TIERS, topology.K * self.communicator.V_bits)
        uncoded[USERS_TO_RELAYS] = sent[USERS_TO_RELAYS]  # of those present
        uncoded[RELAYS_TO_SERVER] = np.bincount(topology.serving, sent[USERS_TO_RELAYS], topology.H)
        for tier in (SERVER_TO_RELAYS, RELAYS_TO_USERS):  # what travels with the models does so uncoded, too
            uncoded[tier] += bits[RELAYS_TO_USERS].overhead
        before = self.history[-1]["bits_total"] if self.history else 0
        return {
            "round": number,
            **self.algorithm.metrics(),
            **{f"bits/{tier}": b.total for tier, b in bits.items()},
            "bits_total": before + sum(b.total for b in bits.values()),
            "compute_s": learning + watch.slowest("relay") + watch.slowest("server"),
            "communication_s": self.network.seconds(sent),
            "uncoded_s": learning + self.network.seconds(uncoded),
        }

    def _converged(self) -> bool:
        if not (self.gap_tolerance and self.history and "gap" in self.history[-1]):
            return False
        return self.history[-1]["gap"] <= self.gap_tolerance * abs(self.history[-1]["primal"])

    def _save(self) -> None:
        save_atomically(
            self.checkpoint,
            {
                "identity": self.identity,
                "history": self.history,
                "V_bits": self.communicator.V_bits,
                "algorithm": self.algorithm.state_dict(),
                "ledger": self.communicator.ledger.state_dict(),
            },
        )

    def _load(self, path: Path) -> None:
        state = load_checkpoint(path)
        differences = [
            f"{key}: {state['identity'].get(key)!r} there, {self.identity.get(key)!r} here"
            for key in sorted(state["identity"].keys() | self.identity.keys())
            if state["identity"].get(key) != self.identity.get(key)
        ]
        if differences:
            raise CheckpointError(
                f"{path} comes from another configuration ({'; '.join(differences)}): "
                "resume with the same values, or start anew without resume."
            )
        self.history = list(state["history"])
        self.communicator.V_bits = state["V_bits"]
        self.algorithm.load_state_dict(state["algorithm"])
        self.communicator.ledger.load_state_dict(state["ledger"])


def save_atomically(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` holds, at any moment and after any crash, either the old or the new one, whole."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in the checkpoint `path`, or in the run folder `path`.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}: give a run's folder or its checkpoint.pt as resume=PATH.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        _ = state["identity"], state["history"], state["V_bits"], state["algorithm"], state["ledger"]
    except Exception as error:  # torch.load raises whatever zipfile and pickle meet in a damaged file
        raise CheckpointError(
            f"{file} is not a whole checkpoint of hmtl ({type(error).__name__}): it was cut off or is something else. "
            "Take another one, or start anew without resume."
        ) from error
    return dict(state)


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals can be caught in the main thread only
        yield asked
        return

    def handler(signum: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)
