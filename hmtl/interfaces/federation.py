"""Federated training of your own modules on your own data sets: `Federation(module, datasets).train(rounds=20)`."""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hmtl.communication import CodedHierarchical, Communicator, LinkLedger
from hmtl.data import from_datasets
from hmtl.data.datasets import UserData
from hmtl.data.tasks import classified
from hmtl.errors import ConfigError
from hmtl.mtl import (
    CrossEntropy,
    FedAvg,
    Learner,
    Logistic,
    Loss,
    Mean,
    NetworkAlgorithm,
    Participation,
    Problem,
    Regularizer,
    Squared,
    TorchTrainer,
)
from hmtl.mtl.solvers.networks import NetworkSolver
from hmtl.reporting.console_logger import ConsoleLogger
from hmtl.topology import Moving, Topology, any_r
from hmtl.training.history import Measurements
from hmtl.training.pairing import matched
from hmtl.training.summary import Summary, summarize, user_rows
from hmtl.training.trainer import Trainer, TrainerSettings


class Federation:
    """Users who train a module together over a two-hop network, in one process and without a configuration.

    The loss is the cross-entropy for class numbers, the logistic loss for ±1 and the squared error for floats, see
    `hmtl.data.from_datasets`; a module returns [n, C] for C classes and [n, 1] otherwise.

    Args:
        model: the module, or a class or function that makes it without arguments. Rows and models are on its device.
        datasets: the training rows of each user, as a torch Dataset, or its training and test rows; `hmtl.data.deal`
            divides one Dataset. The order and size of minibatches are those of the trainer. Tasks may have validation
            rows (`hmtl.data.with_validation`).
        topology: who hears whom; None: each user is heard by 3 of 5 relays.
        algorithm: a learner of networks, or its class.
        participation: who takes part in a round; `Participation(fraction=0.1)` samples a tenth of the users.
        regularizer: couples models with algorithms such as FedU; None: `Mean(0.1)`.
        trainer: how users train, such as a `LocalTrainer` of your own; None: `TorchTrainer` with SGD(lr=0.03).
        communicator: class of the communicator; `functools.partial` sets its options. Sums replace coded IVs if they
            take less time.
        seed: seed of the first parameters, of orders of rows, and of the network that is drawn.

    Attributes:
        history: one row of measurements per round, as in metrics.csv.
        algorithm, communicator: what trains, and what counts bits and time.

    Raises:
        ConfigError, DataError: the parts do not fit each other, or data cannot be read.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        datasets: Sequence[UserData],
        topology: Topology | Moving | None = None,
        algorithm: Learner | type[Learner] = FedAvg,
        participation: Participation = Participation(),  # noqa: B008, it is frozen
        regularizer: Regularizer | None = None,
        trainer: NetworkSolver | None = None,
        communicator: Callable[..., Communicator] = CodedHierarchical,
        seed: int = 0,
    ) -> None:
        def make(d: int, C: int, shape: tuple[int, ...]) -> nn.Module:
            return copy.deepcopy(model) if isinstance(model, nn.Module) else model()

        try:
            learner = algorithm() if isinstance(algorithm, type) else algorithm
        except TypeError as error:
            raise ConfigError(f"algorithm={algorithm}: {error}. Give a learner, such as Ditto(lam=0.1).") from error
        for name, part, is_right, wanted in (
            ("model", model, callable(model), "a module, or a function that makes one"),
            ("topology", topology, isinstance(topology, Topology | Moving | None), "a Topology: from_file reads one"),
            ("algorithm", learner, isinstance(learner, Learner), "a learner such as hmtl.mtl.FedAvg()"),
            ("regularizer", regularizer, isinstance(regularizer, Regularizer | None), "one such as Mean(0.1)"),
            ("trainer", trainer, isinstance(trainer, NetworkSolver | None), "a TorchTrainer, LocalSGD or LocalTrainer"),
            ("communicator", communicator, callable(communicator), "a class such as hmtl.communication.Uncoded"),
        ):
            if not is_right:
                raise ConfigError(f"{name}={part!r} does not fit. Give {wanted}.")
        tasks = from_datasets(datasets)
        loss: Loss = Squared()
        tasks = classified(tasks)
        if tasks and tasks[0].classes:
            loss = CrossEntropy()
        elif all(set(y.tolist()) <= {-1.0, 1.0} for task in tasks for y in (task.y_train, task.y_test)):
            loss = Logistic()
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = torch.device("cpu") if first is None else first.device
        problem = Problem(tasks, loss, regularizer or Mean(0.1), device=device)
        topology = any_r(len(tasks), 5, 3, seed) if topology is None else topology
        if len(tasks) != topology.K:
            raise ConfigError(f"The topology is for {topology.K} users, but {len(tasks)} have data. Give another one.")
        self.seed = seed
        solver = trainer or TorchTrainer(partial(torch.optim.SGD, lr=0.03))
        make_algorithm = partial(
            NetworkAlgorithm, learner, problem, solver, make, seed=seed, participation=participation
        )
        made, self.communicator = matched(make_algorithm, problem, communicator(topology))
        assert isinstance(made, NetworkAlgorithm)
        self.algorithm = made
        self.history: list[Measurements] = []
        self._trainer: Trainer | None = None

    def train(self, rounds: int) -> list[nn.Module]:
        """Train for further rounds, with a progress bar on a terminal, and return each user's module.

        Raises:
            ConfigError: `rounds` is not a whole number from 1.
            KeyboardInterrupt: by Ctrl-C, after the round has been finished; `history` and `models` are up to date.
                After any other error, the next call continues from the last one that ended without.
        """
        if not isinstance(rounds, Integral) or rounds < 1:
            raise ConfigError(f"rounds={rounds!r} is not a whole number from 1. Give the number of further rounds.")
        total, before = len(self.history) + rounds, self._trainer.state if self._trainer else None
        console = ConsoleLogger(total)
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainerSettings(Path(folder), total, checkpoint_every=total)
            trainer = Trainer(self.algorithm, self.communicator, settings, loggers=[console])
            try:
                self.history = list(trainer.fit(before))
            finally:
                console.close()
        self._trainer = trainer
        if trainer.interrupted:
            raise KeyboardInterrupt
        return self.models

    @property
    def models(self) -> list[nn.Module]:
        """A new module for each user, in evaluation mode: of the best round by validation rows, if there are any."""
        users = self.algorithm.users
        return [self.algorithm.model.holding(w).eval() for w in users.handed_out(users.state_dict())]

    @property
    def ledger(self) -> LinkLedger:
        """The bits that every link has carried."""
        return self.communicator.ledger

    @property
    def summary(self) -> Summary:
        """Loads, times, errors and users, as in summary.json."""
        if self._trainer is None:
            raise ConfigError("There is no summary before the first round. Call train.")
        users = user_rows(self.algorithm, self._trainer.user_figures or self.algorithm.users.measure())
        about: Mapping[str, Any] = {"dataset": "own", "seed": self.seed}
        return summarize(self.algorithm, self.communicator, self.history, users, self._trainer.best, **about)
