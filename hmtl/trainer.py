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
        self._forwarders = network.forwarders(communicator.topology)
        self.history: list[Row] = []
        self.interrupted = 0

    def fit(self, checkpoint: Mapping[str, Any] | None = None) -> list[Row]:
        """Run the rounds that are left and return one row for each round, those before a resume included.

        Ctrl-C, or SIGTERM, ends it after the round in work, with a checkpoint and `interrupted` set to the signal's
        number; a second one at once.

        Args:
            checkpoint: what `load_checkpoint` gave, to go on from there.
        """
        if checkpoint is not None:
            self.history = list(checkpoint["history"])
            self.communicator.V_bits = checkpoint["V_bits"]
            self.algorithm.load_state_dict(checkpoint["algorithm"])
            self.communicator.ledger.load_state_dict(checkpoint["ledger"])
        for row in self.history:
            for logger in self.loggers:
                logger.log(row)
        user_seconds = self.algorithm.user_seconds(len(self.history), TIMED_USERS)
        with _signals() as caught:
            while not self.interrupted and len(self.history) < self.rounds and not self._converged():
                row = self._round(len(self.history), user_seconds)
                self.history.append(row)
                for logger in self.loggers:
                    logger.log(row)
                self.interrupted = sum(caught[:1])
                if len(self.history) % self.checkpoint_every == 0:
                    self._save()
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
        watch, topology = self.communicator.stopwatch, self.communicator.topology
        learning = user_seconds + watch.slowest("global update")
        sent = {tier: self.communicator.ledger.per_link(tier, round=-1).sum(axis=1) for tier in TIERS}
        uncoded = sent | {  # what users send goes on to the server, and what they get, overhead included, comes from it
            RELAYS_TO_SERVER: np.bincount(self._forwarders, sent[USERS_TO_RELAYS], topology.H),
            SERVER_TO_RELAYS: sent[RELAYS_TO_USERS],
        }
        before = self.history[-1]["bits_total"] if self.history else 0
        return {
            "round": number,
            **self.algorithm.metrics(),
            **{f"bits/{tier}": int(bits.sum()) for tier, bits in sent.items()},
            "bits_total": before + sum(int(bits.sum()) for bits in sent.values()),
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


def save_atomically(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` holds, at any moment and after any crash, either the old or the new one, whole."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load_checkpoint(path: Path, identity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The state in the checkpoint `path`, or in the run folder `path`.

    Args:
        identity: the configuration that the checkpoint has to be of; None: whichever.

    Raises:
        CheckpointError: there is none, it cannot be read, or it is of another configuration.
    """
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}: give a run's folder or its checkpoint.pt as resume=PATH.")
    try:
        state = dict(torch.load(file, map_location="cpu", weights_only=True))
        there, *_ = state["identity"], state["history"], state["V_bits"], state["algorithm"], state["ledger"]
    except Exception as error:  # torch.load raises whatever zipfile and pickle meet in a damaged file
        raise CheckpointError(
            f"{file} is not a whole checkpoint of hmtl ({type(error).__name__}): it was cut off or is something else. "
            "Take another one, or start anew without resume."
        ) from error
    here = there if identity is None else identity
    differences = [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"{file} comes from another configuration ({'; '.join(differences)}): "
            "resume with the same values, or start anew without resume."
        )
    return state


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Holds the number of the first SIGINT (Ctrl-C) or SIGTERM that comes; a second one acts as usual."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals can be caught in the main thread only
        yield caught
        return

    def handler(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        restore()

    def restore() -> None:
        for number, usual in before.items():
            signal.signal(number, usual)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        restore()
