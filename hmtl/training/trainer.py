"""The loop: a round after the other, measurements, checkpoints. It knows no mathematics, and no nodes.

A round is an iteration of the paper. K users; times in seconds.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hmtl.communication import SETUP, TIERS, CodedHierarchical, Communicator, Outcome, Sums
from hmtl.errors import CheckpointError
from hmtl.mtl import Aggregator, Algorithm, Users
from hmtl.training.checkpoint import NO_USE, check_alike, load_checkpoint, save_atomically
from hmtl.training.engine import Exchange, RoundResult
from hmtl.training.history import History, Measurements
from hmtl.training.signals import catch_signals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMED_USERS = 3  # whose local update is timed alone, once before the first round


@runtime_checkable
class Logger(Protocol):
    """Takes what is measured."""

    def log(self, row: Measurements) -> None:
        """One round: see `Trainer.measure` for the keys. A resumed run first repeats the rounds it has behind it."""

    def finish(self, summary: Mapping[str, Any], figures: Mapping[str, "Figure"]) -> None:
        """The whole run: what `summary.json` holds, and pictures by name."""

    def close(self) -> None:
        """No more will come, whether the run was finished or not."""


def in_sums(algorithm: Algorithm, communicator: Communicator) -> Communicator:
    """How the messages of `algorithm` travel: both are made for sums where that is asked for, or takes less time.

    Raises:
        ConfigError: the communicator cannot serve this learner.
    """
    if isinstance(communicator, CodedHierarchical) and algorithm.q:
        row_bits, IV_bits = 64 * algorithm.q * len(algorithm.W), 8 * algorithm.W.element_size() * len(algorithm.W)
        communicator = Sums.where_cheaper(communicator, IV_bits, row_bits) or communicator
    if isinstance(communicator, Sums):
        algorithm.in_sums()
    if len(algorithm.problem.users) == algorithm.problem.K:  # else it learns from a set-up what it has to know
        communicator.meet(algorithm.aggregator)
    return communicator


class Trainer:
    """Trains `algorithm` over `communicator` and keeps one row of measurements for each round.

    Args:
        algorithm: what is learned; its two sides meet only through the communicator.
        communicator: how the messages travel, what they cost and how long they take.
        rounds: how many to run in all, those before a resume included.
        gap_tolerance: stop when (primal − dual) ≤ gap_tolerance · |primal|; zero never stops early.
        checkpoint: file to be replaced every `checkpoint_every` rounds and at the end; `metrics.csv` is beside it.
        evaluate_every: how many rounds from one measurement of what was learned to the next; the first and the last
            round always have one. A gap is compared with its tolerance only there.
        identity: the configuration that a checkpoint has to share with the run that goes on from it.
        loggers: told of each round.
        exchange: what this process exchanges with others, if there are any.
        before: what is exchanged before the algorithm's own set-up: pairs of sides, as `Algorithm.setup` gives them.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        communicator: Communicator,
        *,
        rounds: int,
        gap_tolerance: float = 0.0,
        checkpoint: Path,
        checkpoint_every: int = 10,
        evaluate_every: int = 1,
        identity: Mapping[str, Any] | None = None,
        loggers: Sequence[Logger] = (),
        before: Sequence[tuple[Users, Aggregator] | None] = (),
        exchange: Exchange = Exchange(),  # noqa: B008, it holds nothing
    ) -> None:
        self.algorithm = algorithm
        self.communicator = communicator
        self.rounds = rounds
        self.gap_tolerance = gap_tolerance
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.evaluate_every = evaluate_every
        self.identity = dict(identity or {})
        self.loggers = loggers
        self.before, self.exchange = before, exchange
        self.users = exchange.wrap_users(algorithm.users)
        self.history = History(checkpoint.with_name("metrics.csv") if exchange.leads else None)
        self.interrupted = 0
        self.state: Mapping[str, Any] | None = None  # at the end, where results are kept
        self.errors: dict[str, list[float]] = {"train": [], "test": []}  # of each user, last, where results are kept

    def fit(self, checkpoint: Mapping[str, Any] | None = None) -> list[Measurements]:
        """Run the rounds that are left and return one row for each round, those before a resume included.

        Ctrl-C, or SIGTERM, ends it after the round in work, with a checkpoint and `interrupted` set to the signal's
        number; a second one at once.

        Args:
            checkpoint: what `load_checkpoint` gave, to go on from there.

        Raises:
            CheckpointError: it is not of this run; nothing has changed then.
        """
        exchange = self.exchange
        exchange.start(self.algorithm, self.communicator, lambda: load_checkpoint(self.checkpoint))
        if checkpoint is None or not exchange.whole:
            # A process with all data derives what the set-up exchanges when it builds the algorithm, so checkpoints do
            # not hold it; a process with part of the data repeats the exchange after a resume.
            self._set_up()
        if checkpoint is not None:
            self._go_on(checkpoint)
        elif not exchange.whole:
            self._save()  # the state of users whose process is lost before the next checkpoint
        for row in self.history:
            for logger in self.loggers:
                logger.log(row)
        user_seconds = self.algorithm.user_seconds(len(self.history), TIMED_USERS)
        with catch_signals() as caught, closing(self.history):
            while self._goes_on():
                row = self._round(len(self.history), user_seconds)
                self.history.append(row)
                for logger in self.loggers:
                    logger.log(row)
                self.interrupted = sum(caught[:1])
                if len(self.history) % self.checkpoint_every == 0:
                    self._save()
            self.state = self._save()
            self.interrupted = self.interrupted or sum(caught[:1])
        return list(self.history)

    def _set_up(self) -> None:
        """Exchange what users and aggregators need before the first round."""
        for pair in (*self.before, self.algorithm.setup()):
            if pair is not None:
                users, aggregator = pair
                self.communicator.setup(self.exchange.wrap_users(users), aggregator)
                self.exchange.gather_setup(users, aggregator, self.communicator)

    def _go_on(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over all of a checkpoint, once it is certain that it fits."""
        past, algorithm, communicator = checkpoint["history"], self.algorithm, self.communicator
        communicator.seat(self.users, algorithm.aggregator)
        try:
            state = self.exchange.scatter_state(dict(checkpoint), algorithm, communicator)
            sides, nodes = state["algorithm"], state["communicator"]["nodes"]
            like = {"algorithm": algorithm.state_dict(), "communicator": communicator.state_dict()}
            if not self.exchange.whole:  # and not every process has both sides
                like["algorithm"] = {side: like["algorithm"][side] for side in sides}
            if not past and not nodes:  # they are made in the first round
                like["communicator"]["nodes"] = {}
            check_alike({side: state[side] for side in like}, like, "state")
            for node, memory in nodes.items():
                for name, numbers in memory.items():  # of rounds, -1 being the set-up and -2 none
                    if not ((numbers >= -2) & (numbers <= len(past))).all():
                        raise CheckpointError(f"state: {node}.{name} is none of {len(past)} rounds{NO_USE}")
            rounds = state["communicator"]["ledger"]["rounds"]
            if rounds != len(past):
                raise CheckpointError(f"state: its ledger has {rounds} rounds, its history {len(past)}{NO_USE}")
            algorithm.load_state_dict(sides)
            communicator.load_state_dict(state["communicator"])
        except CheckpointError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError) as error:  # of a state made by others
            raise CheckpointError(f"state: {error}{NO_USE}") from error
        self.history.go_on(past)

    def _round(self, number: int, user_seconds: float) -> Measurements:
        learner, communicator = self.algorithm, self.communicator
        absent = learner.participation.absent_relays(learner.seed, number, communicator.topology.H)
        outcome = communicator.round(number, self.users, learner.aggregator, absent)
        evaluate = number % self.evaluate_every == 0 or number == self.rounds - 1
        result = self.exchange.gather_round(learner, communicator, outcome, user_seconds, evaluate)
        if result is None:
            return {}
        if result.user_figures:
            self.errors = {split: result.user_figures[f"{split}_error"].tolist() for split in self.errors}
        return self.measure(number, outcome, result)

    def _goes_on(self) -> bool:
        """Whether there is another round, as the process that leads decides."""
        done = self.interrupted or len(self.history) >= self.rounds or self._converged()
        decision = self.exchange.broadcast({"done": bool(done), "interrupted": self.interrupted})
        self.interrupted = decision["interrupted"]
        return not decision["done"]

    def measure(self, number: int, outcome: Outcome, result: RoundResult) -> Measurements:
        """The row of the round just done.

        Keys: `round`; `users`, whose IVs counted; `empty`, 1 where nobody aggregated; primal, dual, gap where the
        algorithm has them; train error, and test error where there are tests, mean over the users and of the worst
        user, and R² in regression (all these where the round is evaluated); bits on each tier (`bits/...`, all that was
        sent) and in all so far, the set-up included; `local_s`, the slowest user's local update (measured), and
        `compute_s`, which has besides the slowest relay's and the server's coding, the round's plan and the global
        update; `communication_s` (Hu et al. 2022, eqs. (12), (13)); `uncoded_s`, what the round takes uncoded, and
        `uncoded_communication_s` of that. What is measured is CPU time, see `hmtl.clock`.
        """
        watch, ledger = self.communicator.stopwatch, self.communicator.ledger
        learning = result.user_seconds + watch.slowest("global update")
        sent = {tier: ledger.bits(tier, round=-1).total for tier in TIERS}
        before = (
            self.history.last["bits_total"]
            if self.history
            else sum(ledger.bits(tier, round=SETUP).total for tier in TIERS)
        )
        return {
            "round": number,
            "users": result.users,
            "empty": int(outcome.empty),
            **result.figures,
            **{f"bits/{tier}": bits for tier, bits in sent.items()},
            "bits_total": before + sum(sent.values()),
            "local_s": result.user_seconds,
            "compute_s": learning + sum(watch.slowest(who) for who in ("relay", "server", "planning")),
            "communication_s": self.communicator.seconds(),
            "uncoded_s": learning + (uncoded := self.communicator.uncoded_seconds()),
            "uncoded_communication_s": uncoded,
        }

    def _converged(self) -> bool:
        last = self.history.last
        if not (self.gap_tolerance and "gap" in last):
            return False
        small = last["gap"] <= self.gap_tolerance * abs(last["primal"])
        return small and self.algorithm.settled(self.gap_tolerance * abs(last["primal"]))

    def _save(self) -> Mapping[str, Any] | None:
        state = self.exchange.gather_state(self.algorithm, self.communicator)
        if state is not None:
            history = self.history.past().state_dict()
            save_atomically(self.checkpoint, {"identity": self.identity, "history": history, **state})
        return state
