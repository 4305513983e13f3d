"""Federated training from Python, by the settings of `hmtl.train`: `Federation(module, datasets).train(rounds=20)`."""

import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import cache
from inspect import signature
from numbers import Integral
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, overload

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.optim import Optimizer

from hmtl.communication import LinkLedger
from hmtl.config.build import PART_CLASSES, build, build_topology, compose, conf_dir
from hmtl.config.schema import flat
from hmtl.config.targets import USUAL_NAMES, description, given, no_setting, of_hydra, with_parts
from hmtl.data import from_datasets
from hmtl.data.datasets import UserData
from hmtl.data.items import TARGETS
from hmtl.data.tasks import classified
from hmtl.errors import ConfigError, TopologyError
from hmtl.inference.models import models_of
from hmtl.interfaces.matching import are_signs, matched
from hmtl.io.described import Described
from hmtl.mtl import Learner, Loss, NetworkAlgorithm, Squared, TorchLoss, TorchTrainer
from hmtl.mtl.measures import OwnMeasure
from hmtl.mtl.networks.flat import copied, unchanged
from hmtl.reporting.console import error_in_words
from hmtl.reporting.console_logger import ConsoleLogger
from hmtl.reporting.run_header import run_header
from hmtl.training.folder import held
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary
from hmtl.training.trainer import Logger

if TYPE_CHECKING:
    from hmtl.reporting.style import Picture

OWN_OPTIMIZER = (
    "Give a function that makes an optimizer from parameters, such as solver=functools.partial(torch.optim.SGD, "
    "lr=0.1)."
)
Model = nn.Module | Callable[[], nn.Module] | None


class Federation:
    """Users who train together over a two-hop network, in one process.

    Keywords are settings of `hmtl.train`, with the names, defaults and checks that they have there. A part of a run is
    the name of a file in `conf/`, or an object. `print(federation)` shows what was chosen, and what was reached.

        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = [TensorDataset(torch.randn(50, 8), torch.randint(3, (50,))) for user in range(20)]
        >>> federation = Federation(torch.nn.Linear(8, 3), data, algorithm="ditto", lam=0.5)
        >>> len(federation.train(rounds=5)), federation.summary.rounds
        (20, 5)

    Args:
        model: a module, or a class or function that makes it without arguments. It is called as a plain loop calls it,
            `model(x)`, `model(*x)` or `model(**batch)`, and returns predictions, or something with `logits` or a tuple
            that begins with them: [n, C] for C classes, [n, 1] or [n] for numbers, or what `loss` takes. None for
            algorithms with linear models: "mocha", "cocoa" and "local".
        dataset: the training rows of each user, as a torch Dataset or a DataLoader, of which the `collate_fn` counts,
            or its training and test rows, as a pair or as {"train": ..., "test": ...}; `hmtl.data.deal` divides one
            Dataset. Or a `Task` for each user.
        algorithm: a name, or a learner of networks.
        measures: functions of a user's predictions and targets by name, see `OwnMeasure`.
        logger: loggers, which are closed at the end of `train`, or functions that get the row of each round.
        output_dir: folder of the results, which are those of the command; None: a temporary one.
        settings: all others. Parts are `topology`, `solver`, `loss`, `regularizer`, `participation`, `network` and
            `communicator`; of the last, a class or `functools.partial` takes the place of an object. A solver may be an
            optimizer's class, or what makes one from parameters, such as `functools.partial(torch.optim.AdamW,
            lr=1e-3)`. Values are such as `seed=1`, `H=10`, `evaluate_every=5`, `secure=True`, `resume=FOLDER`,
            `privacy={"clip": 1.0, "noise": 1.0}`, `**{"algorithm.alpha": 0.3}` in a part, and
            `**{"dataset.class_weight": "balanced"}`.

    Three defaults depend on the model and the data. `device` is that of the module. `topology="any_r"` replaces
    "symmetric" if that cannot have this number of users.
    `loss` is the module's own if it returns one for labels in a dictionary or after its inputs; otherwise "squared" for
    numbers, "cross_entropy" for several scores and a class number, and "logistic" for one score and ±1, or 0 and 1. It
    may be a loss of torch, see `TorchLoss`. Linear models predict integers as numbers with loss="squared".

    Attributes:
        algorithm, communicator: what trains, and what counts bits and time.
        history: one row of measurements per round, as in metrics.csv.
        summary: loads, times, errors and users, as in summary.json; None before the first round.

    Raises:
        ConfigError, DataError: the settings do not fit each other, or data cannot be read.
    """

    def __init__(
        self,
        model: Model,
        dataset: Iterable[UserData],
        *,
        algorithm: str | Learner = "fedavg",
        measures: Mapping[str, OwnMeasure] | None = None,
        logger: Sequence[Logger | Callable[[Measurements], None]] = (),
        output_dir: str | Path | None = None,
        **settings: Any,
    ) -> None:
        communicator = settings.get("communicator") or ""
        for name, part, is_right, wanted in (
            ("model", model, callable(model) or model is None, "a module, or a function that makes one"),
            ("algorithm", algorithm, isinstance(algorithm, str | Learner), "a name, or a learner such as FedAvg()"),
            ("communicator", communicator, callable(communicator) or isinstance(communicator, str), "a class"),
            (
                "logger",
                logger,
                all(isinstance(each, Logger) or callable(each) for each in logger),
                "loggers, functions",
            ),
            ("engine", settings.get("engine"), "engine" not in settings, "it to hmtl.train: this is one process"),
        ):
            if not is_right:
                raise ConfigError(f"{name}={part!r} does not fit. Give {wanted}.")
        if output_dir is None:
            output_dir = tempfile.mkdtemp(prefix="hmtl-")
            weakref.finalize(self, shutil.rmtree, output_dir, ignore_errors=True)
        self.output_dir = Path(output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._settings = {"algorithm": algorithm, **settings}
        parts = {name: part for name in PART_CLASSES if (part := settings.pop(name, None)) is not None}
        parts |= {"algorithm": algorithm, **{f"measures.{name}": each for name, each in (measures or {}).items()}}
        settings |= {"output_dir": str(output_dir)}
        self._loggers = [each if isinstance(each, Logger) else _calling(each) for each in logger]
        with unchanged(model) if isinstance(model, nn.Module) else nullcontext():
            self._cfg = _configuration(model, dataset, parts, settings)
            self._build()
        self._state: Mapping[str, Any] | None = self._run.checkpoint
        self.summary: Summary | None = None
        self.history: list[Measurements] = []
        if self._state:
            self._run.trainer.history.load_state_dict(self._state["history"])
            self.history = list(self._run.trainer.history)

    def _build(self) -> None:
        self._run, self._failed = build(self._cfg), False
        self.algorithm, self.communicator = self._run.algorithm, self._run.communicator

    def train(self, rounds: int | None = None) -> Sequence[nn.Module]:
        """Train for further rounds, with a progress bar on a terminal, and return each user's module, see `models`.

        Args:
            rounds: how many; None: until there are as many in total as the setting `rounds` says.

        Raises:
            ConfigError: `rounds` is not a whole number from 1.
            KeyboardInterrupt: by Ctrl-C, after the round has been finished; `history` and `models` are up to date.
                After any other error, the next call continues from the last one that ended without.
        """
        cfg, done = self._cfg, len(self.history)
        rounds = cfg.rounds - done if rounds is None else rounds
        if not isinstance(rounds, Integral) or rounds < 1:
            raise ConfigError(f"rounds={rounds!r} is not a whole number from 1. Give the number of further rounds.")
        total = done + int(rounds)
        is_read = "${rounds}" in str(OmegaConf.to_container(cfg.algorithm)) or cfg.privacy.epsilon  # for Ω, or noise
        if self._failed or (is_read and total != cfg.rounds):
            cfg.rounds, before = total, self._run.trainer.accountant
            self._build()
            if before and self._run.trainer.accountant:
                self._run.trainer.accountant.load_state_dict(before.state_dict())
        trainer, self._failed = self._run.trainer, True
        trainer.settings = replace(trainer.settings, rounds=total)
        trainer.loggers = [ConsoleLogger(total), *self._loggers]
        with ExitStack() as stack:
            stack.enter_context(held(self.output_dir))
            for logger in trainer.loggers:
                stack.callback(logger.close)
            self.history = list(trainer.fit(self._state))
            self._state, self.summary = trainer.state, trainer.summarize(dataset="own", seed=cfg.seed)
            self._failed = False
            if trainer.interrupted:
                raise KeyboardInterrupt
            self._write_settings()
            trainer.write_results(self.summary)
            for logger in self._loggers:
                logger.finish(self.summary, self._pictures)
        return self.models

    def _write_settings(self) -> None:
        """Write the settings where `hmtl.report` looks for those of commands."""
        folder = self.output_dir / ".hydra"
        folder.mkdir(exist_ok=True)
        plain = (int, float, str, list, tuple, dict, type(None))
        words = {name: part if isinstance(part, plain) else description(part) for name, part in self._settings.items()}
        typed = [f"{name}={word}" for name, word in words.items()]
        settings = flat(self._cfg, ("dataset", "logger"), resolve=False) | {"rounds": len(self.history)}
        for name, content in (("overrides", typed), ("config", settings)):
            OmegaConf.save(OmegaConf.create(content), folder / f"{name}.yaml")

    def report(self, **settings: Any) -> "Picture":
        """Print the table of `hmtl.report`, write its files to `output_dir`, and return its picture.

        Args:
            settings: measure, panels, labels, output and links, see `hmtl.reporting.comparison_report.write_report`.
        """
        from hmtl.reporting.comparison_report import write_report  # late, as pandas and matplotlib are

        return write_report([self.output_dir], **settings)

    @property
    def models(self) -> Sequence[nn.Module]:
        """A new module for each user, in evaluation mode: of the best round by validation rows, if there are any.

        Each is made when it is first read. A linear model is a `hmtl.inference.models.UserModel`, which maps rows
        [n, d] to [n] or, for C classes, [n, C].
        """
        state = self._state or {"algorithm": self.algorithm.state_dict()}
        W = self._run.engine.models(self.algorithm, state)
        assert W is not None  # all users are in this process
        if isinstance(self.algorithm, NetworkAlgorithm):
            model, numbers = self.algorithm.model, W.T
            return UserModules(len(numbers), lambda k: model.holding(numbers[k]).eval())
        models = models_of(self.algorithm, W)
        return UserModules(len(models.names), lambda k: models.model(models.names[k]))

    @property
    def ledger(self) -> LinkLedger:
        """The bits that every link has carried."""
        return self.communicator.ledger

    def _pictures(self) -> Mapping[str, bytes]:
        from hmtl.reporting.run_pictures import omega_picture, topology_picture  # late, as in report

        return {"topology": topology_picture(self.communicator)} | omega_picture(self.algorithm)

    def __repr__(self) -> str:
        lines = run_header(self.algorithm, self.communicator) | {"trained": "not yet"}
        if done := self.summary:
            error = error_in_words(done.figures, done.error_measure)
            rounds = f"{done.rounds} round{'s' * (done.rounds > 1)}"
            lines["trained"] = f"{rounds}: {error}, {done.figures['bits_total']:,} bits over all links"
        return "\n".join(["Federation", *(f"  {name:9}{line}" for name, line in lines.items())])


class UserModules(Described, Sequence[nn.Module]):
    """The modules of K users, each of which is made when it is first read; copies and pickles are lists.

    Args:
        K: number of users.
        make: returns the module of a user, given its number.
    """

    def __init__(self, K: int, make: Callable[[int], nn.Module]) -> None:
        self.K, self._made = K, cache(make)

    def __len__(self) -> int:
        return self.K

    @overload
    def __getitem__(self, at: int) -> nn.Module: ...
    @overload
    def __getitem__(self, at: slice) -> list[nn.Module]: ...
    def __getitem__(self, at: int | slice) -> nn.Module | list[nn.Module]:
        users = range(self.K)[at]
        return [self._made(k) for k in users] if isinstance(users, range) else self._made(users)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def network(d: int, C: int, shape: tuple[int, ...], given: Callable[[], nn.Module]) -> nn.Module:
    """Return the module of a Federation, for rows in their own shape."""
    return given()


def _calling(function: Callable[[Measurements], None]) -> Any:
    """Return a logger that calls a function with the row of each round."""
    return SimpleNamespace(log=function, finish=lambda *_: None, close=lambda: None)


def _configuration(
    model: Model, dataset: Iterable[UserData], parts: dict[str, Any], settings: Mapping[str, Any]
) -> DictConfig:
    """Return the configuration of `hmtl.train` with these parts, by name or as objects, and settings."""
    solver = parts.get("solver")
    if isinstance(solver, Optimizer):
        raise ConfigError(
            f"solver is an optimizer of the parameters of one model, but each user has its own. {OWN_OPTIMIZER}"
        )
    is_part = isinstance(solver, str) and (conf_dir() / "solver" / f"{solver}.yaml").exists()
    if not is_part and str(solver).rpartition(".")[2].lower() in map(str.lower, dir(torch.optim)):
        raise ConfigError(f"solver={solver} is unknown. {OWN_OPTIMIZER}")
    named = {"algorithm": "own"} | {name: part for name, part in parts.items() if isinstance(part, str)}
    cfg = compose("output_dir=.", "dataset=own", "logger=none", *map("=".join, named.items()))
    is_network = "model" in cfg.algorithm
    if is_network == (model is None):
        kinds = ("networks", "a module") if is_network else ("linear models", "None")
        raise ConfigError(f"algorithm={named['algorithm']} trains {kinds[0]}. Set model to {kinds[1]}.")
    loss = parts.get("loss")
    if loss is not None and not isinstance(loss, str | Loss) and callable(loss):
        loss = parts["loss"] = TorchLoss(loss)
    is_own = isinstance(loss, TorchLoss) and not loss.is_of_torch
    forward = getattr(model, "forward", None)
    takes_targets = forward is not None and not {*TARGETS}.isdisjoint(signature(forward).parameters)
    tasks = from_datasets(dataset, networks=is_network, as_given=is_own or takes_targets)
    if model is None and (loss == "squared" or isinstance(loss, Squared)):
        tasks = tuple(task if task.labels else task.numbered(None) for task in tasks)
    elif model is None:
        tasks = classified(tasks)
    settings = dict(settings)
    if (class_weight := settings.pop("dataset.class_weight", None)) is not None:
        if class_weight != "balanced":
            raise ConfigError(f'dataset.class_weight={class_weight!r} is unknown. Give "balanced", or None.')
        tasks = tuple(replace(task, class_weight=class_weight) for task in tasks)
    if callable(solver) and (
        issubclass(solver, Optimizer) if isinstance(solver, type) else not isinstance(solver, nn.Module)
    ):
        parts["solver"] = TorchTrainer(solver)
    usual: dict[str, Any] = {}
    if model is not None and tasks:
        usual["loss"], tasks = matched(model, tasks, loss, getattr(parts.get("solver"), "loss", None))
    elif tasks and not tasks[0].classes and not are_signs(tasks):
        usual["loss"] = "squared"
    for group in usual.keys() - parts.keys():
        if isinstance(usual[group], str):
            cfg[group] = OmegaConf.load(conf_dir() / group / f"{usual[group]}.yaml")
        else:
            parts[group] = usual[group]
    objects = {"dataset": given(tasks)}
    for name, part in parts.items():
        if not isinstance(part, str):
            makes = name.startswith(("communicator", "measures."))  # parts that get arguments
            objects["algorithm.learner" if name == "algorithm" else name] = given(part, part if makes else None)
    if is_network:

        def copy() -> nn.Module:
            assert isinstance(model, nn.Module)
            frozen = [w for w in model.parameters() if not w.requires_grad and w.device == torch.device(cfg.device)]
            return copied(model, frozen)

        objects["algorithm.model"] = given(model, copy if isinstance(model, nn.Module) else model) | {
            "_target_": f"{__name__}.network",
            "_partial_": True,
        }
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        cfg.device = cfg.device if first is None else str(first.device)
    for name, part in objects.items():
        OmegaConf.update(cfg, name, OmegaConf.create(part, flags={"allow_objects": True}), merge=False, force_add=True)
    if "topology" in objects:
        cfg.K = cfg.H = cfg.r = None
    for name, value in settings.items():
        if name.partition(".")[0] not in cfg:
            message = re.sub(r"mean (\w+\.\w+)\?", r'mean **{"\1": ...}?', no_setting(name, with_parts(cfg)))
            last = name.rpartition(".")[2]
            if is_network and last in ("clip", "scheduler"):
                message = f"{name} is not a setting. Give solver=hmtl.mtl.TorchTrainer(optimizer, {last}=...)."
            elif is_network and USUAL_NAMES.get(last) in ("solver", "solver.step"):
                message = f"{message} {OWN_OPTIMIZER}"
            raise ConfigError(message)
        try:
            OmegaConf.update(cfg, name, value, force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{name}={value!r}: {of_hydra(error)}") from error
    if "topology" not in parts:
        if settings.get("K") not in (None, len(tasks)):
            raise ConfigError(f"K={settings['K']}, but the data have {len(tasks)} users. Leave K out, or give theirs.")
        cfg.K = len(tasks)
        try:
            build_topology(cfg)
        except TopologyError:
            cfg.topology = OmegaConf.load(conf_dir() / "topology" / "any_r.yaml")
    return cfg
