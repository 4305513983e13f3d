"""The training loop: rounds, measurements, checkpoints. It knows neither the mathematics nor the nodes."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hmtl.communication import TIERS, Communicator
from hmtl.communication.accounting.ledger import Sent
from hmtl.communication.round import Outcome
from hmtl.errors import CheckpointError, ConfigError, EngineError, StateLost
from hmtl.inference.models import models_of
from hmtl.io.files import as_csv, write_sums, write_whole
from hmtl.training.checkpoint import RESTART, load_checkpoint, save_checkpoint
from hmtl.training.engine import Engine, Training
from hmtl.training.folder import READ_LATER, remove_results
from hmtl.training.history import History, Measurements, is_evaluated
from hmtl.training.signals import catch_signals
from hmtl.training.summary import Summary, summarize, user_rows
from hmtl.training.sums_of_figures import SumsOfFigures

log = logging.getLogger(__name__)
UNCOUNTED = "Without it, ε is unknown. Restore it, or start a new run without resume, whose ε adds to that of this one."


@runtime_checkable
class Logger(Protocol):
    """A receiver of measurements."""

    def log(self, row: Measurements) -> None:
        """Take the measurements of a round (see `measure_round`); a resumed run first repeats its earlier rounds."""

    def finish(self, summary: Summary, draw: Callable[[], Mapping[str, bytes]]) -> None:
        """Take the summary of a finished run; `draw()` returns its pictures, PNG files by name."""

    def close(self) -> None:
        """Release resources; called once at the end, whether the run has finished or not."""


@dataclass(frozen=True)
class TrainerSettings:
    """How long to train, and what to write when.

    Args:
        folder: the run's folder, which gets `metrics.csv` and `checkpoint.pt`.
        rounds: number of rounds in total, those before a resume included.
        gap_tolerance: stop once (primal − dual) ≤ gap_tolerance · |primal| in an evaluated round; 0: never.
        checkpoint_every: rounds from one checkpoint to the next; there is always one at the end.
        evaluate_every: rounds from one evaluation of objective and errors to the next; the first and the last round
            always have one, and so has each round that may turn out to be the last by ε.
        early_stopping: rounds without a smaller validation error after which training stops; None: never.
        identity: the configuration that a checkpoint has to share with the run that resumes it.
    """

    folder: Path
    rounds: int
    gap_tolerance: float = 0.0
    checkpoint_every: int = 10
    evaluate_every: int = 1
    early_stopping: int | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


def measure_round(
    number: int, communicator: Communicator, outcome: Outcome, user_seconds: float, figures: Mapping[str, float]
) -> Measurements:
    """Return the row of the round that has just ended.

    Bits are all that was sent, payload and overhead. Seconds of nodes are CPU time (see `hmtl.io.cpu_time`); seconds of
    communication follow from the bits on each link (Hu et al. 2022, eqs. (12), (13)).

    Returns:
        `round`; `users`, the number of users whose IVs counted; `empty`, 1 if nobody counted, see `Outcome`; objective
        and measures, if the round is evaluated; `bits/TIER` for each tier; `bits_total` so far, with the set-up;
        `local_s`, the time of the slowest user's local update; `compute_s`, which adds the time of the slowest relay,
        the server, planning and the global update; `communication_s`; `uncoded_s`, the total time if the same round
        were uncoded, and `uncoded_communication_s`, its communication.
    """
    watch, ledger = communicator.stopwatch, communicator.ledger
    learning_s = user_seconds + watch.slowest("global update")
    coding_s = [watch.slowest(who) for who in ("relay", "server", "planning")]
    uncoded = communicator.uncoded_seconds()
    return {
        "round": number,
        "users": len(outcome.users),
        "empty": int(outcome.empty),
        **figures,
        **{f"bits/{tier}": int(ledger.per_link(tier, -1).sum()) for tier in TIERS},
        "bits_total": sum(int(ledger.per_link(tier).sum()) for tier in TIERS),
        "local_s": user_seconds,
        "compute_s": learning_s + sum(coding_s),
        "communication_s": communicator.seconds(),
        "uncoded_s": learning_s + uncoded,
        "uncoded_communication_s": uncoded,
    }


class Trainer:
    """Trains an algorithm over a communicator, and keeps one row of measurements per round.

    Args:
        training: what is trained, and how its messages travel.
        settings: how long to train, and what to write when.
        engine: where the nodes are; by default, in this process.
        loggers: receivers of each round's measurements.

    Attributes:
        history: one row per round.
        record: the file with what secret noise and samples have released; None: the run has none.
        interrupted: number of the signal that ended training; 0: none.
        state: the last checkpoint's state of algorithm and communicator.
        stopped_early: whether `early_stopping` ended training.
        best: the round with the models that the run hands out; None: the last, or none so far.
        user_figures: the measures of all users in that round, see `Users.measure`; empty before the first evaluation.
    """

    def __init__(
        self,
        training: Training,
        settings: TrainerSettings,
        *,
        engine: Engine | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.training = training
        self.algorithm, self.communicator = training.algorithm, training.communicator
        self.accountant = training.accountant
        self.settings = settings
        self.engine = engine or Engine()
        self.loggers = loggers
        self.sums: SumsOfFigures | None = None
        if training.only_sums:
            self.sums = SumsOfFigures(self.algorithm, self.communicator, self.engine)
        self.checkpoint = settings.folder / "checkpoint.pt"
        self.record = settings.folder / "privacy.pt" if self.accountant and training.secret_samples else None
        self.history = History(settings.folder / "metrics.csv")
        self.interrupted = 0
        self.stopped_early = False
        self.state: Mapping[str, Any] = {}
        self.best: int | None = None
        self.user_figures: Mapping[str, Tensor] = {}
        self._latest_figures: Mapping[str, Tensor] | None = None  # of the last evaluation; None: before the first
        self._ends = False  # whether the next round may be the last by ε
        self._caught: Sequence[int] = ()  # signals
        self._saved = 0  # rounds in the checkpoint that this run continued from
        self._late: list[Sent] = []  # what was counted later than in its round, since the last checkpoint

    def fit(self, checkpoint: Mapping[str, Any] | None = None) -> list[Measurements]:
        """Run the remaining rounds, and return one row per round, those before a resume included.

        The first Ctrl-C or SIGTERM ends training after the current round: the checkpoint is saved and `interrupted` is
        the signal's number. A second one acts at once.

        Args:
            checkpoint: what `load_checkpoint` returned, to resume from it.

        Raises:
            CheckpointError: the checkpoint does not fit.
        """
        self.state = {}
        if checkpoint is None:
            for number, (users, aggregator) in enumerate(self.training.all_setups()):
                self.communicator.setup(users, aggregator, number)
        if "validation" in self.algorithm.problem.splits:
            self.engine.keep(self.algorithm)  # so that they can be part of every checkpoint
        if checkpoint is not None:
            self._resume(checkpoint)
        if self.engine.nodes or self.record:  # for nodes that are lost, or sums released, before the next one
            self._count_late(wait=True)
            try:
                self._save()
            except StateLost as lost:
                raise EngineError(f"{lost} Start the run again.") from lost
        remove_results(self.settings.folder, resumed=checkpoint is not None)
        for row in self.history:
            self._log(row)
        with catch_signals() as self._caught:
            while not self.state:
                try:
                    self._play()
                    self._count_late(wait=True)
                    self.state = self._save()
                except StateLost as lost:
                    log.warning("round %d: %s The run goes back to the last checkpoint.", len(self.history), lost)
                    self.engine.waiting(lambda: bool(self._caught), every_host=True)
                    last = self._go_back()
                    self.state = last if self._caught else {}
            self.interrupted = sum(self._caught[:1])
        return self.history

    def write_results(self, summary: Summary) -> bool:
        """Write the files of a finished run, and return whether the models are here, not at the hosts."""
        folder = self.settings.folder
        write_whole(folder / "users.csv", as_csv(summary.users))
        write_whole(folder / "links.csv", summary.links.to_csv(index=False))
        models = self.engine.models(self.algorithm, self.state)
        if models is not None:
            models_of(self.algorithm, models).save(folder / "models.npz")
        text = json.dumps(summary.to_dict(), indent=2) + "\n"
        texts = {name: (folder / name).read_bytes() for name in READ_LATER if (folder / name).exists()}
        write_sums(folder, texts | {"summary.json": text.encode()})
        write_whole(folder / "summary.json", text)  # the last file: it marks a finished run
        return models is not None

    def summarize(self, **settings: Any) -> Summary:
        """Return the summary of the rounds so far, with further fields such as `dataset` and `seed`."""
        settings |= {"stopped_early": self.stopped_early or None}
        if self.accountant:
            settings |= self.accountant.describe()
        settings |= {"metrics": "sums"} if self.sums else {}
        measured = {} if self.sums else self.user_figures or self.algorithm.users.measure()
        users = user_rows(self.algorithm, measured)
        return summarize(self.algorithm, self.communicator, self.history, users, self.best, **settings)

    def _play(self) -> None:
        """Play the remaining rounds."""
        while self._continues():
            if len(self.history) > self._saved and len(self.history) % self.settings.checkpoint_every == 0:
                self._save()
            row = self._round(len(self.history))
            self.history.append(row)
            self._log(row)

    def _go_back(self) -> Mapping[str, Any]:
        """Continue from the last checkpoint, and return what it holds."""
        self._resume(state := load_checkpoint(self.checkpoint))
        lacking, self._late = self._late, []
        self._count_late(lacking)
        return state

    def _count_late(self, lacking: Sequence[Sent] = (), wait: bool = False) -> None:
        """Count what nodes sent in earlier rounds and said later, and what a checkpoint lacks of that."""
        late = [*lacking, *self.engine.sent_late(lambda: not wait or bool(self._caught))]
        late = [sent for sent in late if sent.round < len(self.history)]
        for sent in late:
            self.communicator.ledger.add(*sent)
        self.history.add(late)
        self._late += late

    def _resume(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `_save` returned."""
        try:
            self.engine.load_state_dict(state)
            self.algorithm.load_state_dict(state["algorithm"])
            self.communicator.load_state_dict(state["communicator"])
            self.communicator.attach(self.algorithm.users, self.algorithm.aggregator)
            self.history.load_state_dict(state["history"])
            self.best, self.user_figures = state["best"], state["user_figures"]
            if self.accountant:
                self.accountant.load_state_dict(state["accountant"])
                if self.record:
                    self.accountant.load_state_dict(load_checkpoint(self.record, "privacy", missing=UNCOUNTED)["spent"])
            self._saved = len(self.history)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError | EngineError):
                raise
            raise CheckpointError(f"The checkpoint does not fit this run ({error}). {RESTART}") from error

    def _continues(self) -> bool:
        """Return whether there is another round, and keep the models of the last one if they are the best so far."""
        if self._improved():
            self.engine.keep(self.algorithm)
        if self.settings.early_stopping and self.best is not None:
            self.stopped_early = len(self.history) > self.best + self.settings.early_stopping
        done = len(self.history) >= self.settings.rounds or self._converged() or self._spent() or self.stopped_early
        self._ends = self.accountant is not None and not self.accountant.allows(rounds=2)
        while not (done or self._caught):
            some_are_back = self.engine.waiting(lambda: bool(self._caught))
            self._count_late()
            if not some_are_back:
                break
            self._resume(self._save())  # with the nodes that have come back
            done = len(self.history) >= self.settings.rounds
        return not (done or self._caught)

    def _improved(self) -> bool:
        """Return whether the models of the last round are the best so far, and note the round.

        They are if their validation error is the least; without validation rows, if the run has converged, or if their
        rank is the least. In a round that is not evaluated, and without ranks, nothing is known; `user_figures` are
        then those of the last evaluation.
        """
        last = self.history[-1] if self.history else {}
        rank = self.algorithm.rank(last) if is_evaluated(last) else None
        if rank is None or math.isnan(rank) or (self._latest_figures is None and not self.sums):
            if self.best is None:
                self.user_figures = self._latest_figures or self.user_figures
            return False
        before = math.inf if self.best is None else self.algorithm.rank(self.history[self.best])
        final = self._converged() and "validation_error" not in last
        if before is not None and rank >= before and not final:
            return False
        self.best, self.user_figures = len(self.history) - 1, self._latest_figures or {}
        return True

    def _converged(self) -> bool:
        last = self.history[-1] if self.history else {}
        if not (self.settings.gap_tolerance and "gap" in last):
            return False
        allowed = self.settings.gap_tolerance * abs(last["primal"])
        return last["gap"] <= allowed and self.algorithm.settled(allowed)

    def _spent(self) -> bool:
        """Return whether another round would exceed the limit of ε."""
        if self.accountant is None or self.accountant.allows():
            return False
        if not self.history:
            raise ConfigError(
                "privacy.epsilon is spent by sums that were released before the run was killed; no model was saved. "
                "Start a new run, whose ε adds to it."
            )
        log.warning("round %d is the last: another would exceed privacy.epsilon", len(self.history))
        return True

    def _round(self, number: int) -> Measurements:
        """Play a round and return its row."""
        algorithm, communicator, K = self.algorithm, self.communicator, self.communicator.topology.K
        absent = algorithm.participation.absent_relays(algorithm.seed, number, communicator.topology.H)
        if self.accountant or self.training.secret_samples:
            part, secret = algorithm.participation, self.training.secret_samples
            sample = part.secret_sample(K) if secret else part.sample(algorithm.seed, number, K)
            algorithm.users.sample = sample
            if self.accountant:
                self.accountant.begin(sample, self._reachable(number, absent))
                self._write_record()
        is_last = number == self.settings.rounds - 1 or self._ends
        evaluate = number % self.settings.evaluate_every == 0 or is_last
        algorithm.users.evaluates = evaluate
        outcome = communicator.round(number, algorithm.users, algorithm.aggregator, absent)
        figures: Mapping[str, float] = {}
        if evaluate and self.sums:
            figures = self.sums.measure(number)
        elif evaluate:
            measured = algorithm.users.measure()
            figures = algorithm.figures(measured, algorithm.users.blocks())
            self._latest_figures = {key: each for key, each in measured.items() if key.startswith(("train_", "test_"))}
        row = measure_round(number, communicator, outcome, algorithm.users.seconds, figures)
        if self.accountant:
            self.accountant.record(outcome.users)
            row |= self.accountant.spent()
        return row

    def _reachable(self, number: int, absent: Sequence[int]) -> NDArray[np.int64]:
        """Return the users who do not miss a round by what is simulated, which follows from public settings."""
        G, participation = self.communicator.contacts.at(number).G, self.algorithm.participation
        shares = participation.shares(self.algorithm.seed, number, G.shape[1], np.arange(G.shape[1]))
        return np.flatnonzero(np.delete(G, absent, axis=0).any(axis=0) & (shares.numpy() > 0))

    def _log(self, row: Measurements) -> None:
        for logger in self.loggers:
            logger.log(row)

    def _save(self) -> Mapping[str, Any]:
        """Save a checkpoint, and return what it holds.

        Raises:
            StateLost: a host is missing, or the last aggregator with the present state is.
        """
        self.engine.gather()
        state: dict[str, Any] = {
            "history": self.history.state_dict(),
            "best": self.best,
            "user_figures": dict(self.user_figures),
            "algorithm": self.algorithm.state_dict(),
            "communicator": self.communicator.state_dict(),
            **self.engine.state_dict(),
        }
        state |= {"accountant": self.accountant.state_dict()} if self.accountant else {}
        save_checkpoint(self.checkpoint, "train", self.settings.identity, state)
        self._write_record()
        self._late = []
        return state

    def _write_record(self) -> None:
        """Replace the record of what the run has released, which counts if it goes on from an older checkpoint."""
        if self.accountant and self.record:
            save_checkpoint(self.record, "privacy", {}, {"spent": self.accountant.state_dict()})
