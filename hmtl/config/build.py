"""Objects from a configuration: the parts of a run, a whole run, and the models of a finished one."""

from __future__ import annotations  # so that a plan does not import what only training needs

import json
import logging
import re
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import distributions
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hmtl.config import targets
from hmtl.config.privacy import build_accountant, check_privacy, match_accountant
from hmtl.config.schema import PlanConfig, PredictConfig, TrainConfig, check_root, flat
from hmtl.errors import ConfigError, few
from hmtl.io.files import check_sums

if TYPE_CHECKING:
    import torch

    from hmtl.communication import Communicator
    from hmtl.communication.communicators.base import MakeLinks
    from hmtl.data import Task, Wanted
    from hmtl.inference.models import Models
    from hmtl.mtl import Algorithm, Problem
    from hmtl.mtl.measures import OwnMeasure
    from hmtl.mtl.networks.flat import MakeModel
    from hmtl.topology import Moving, Topology
    from hmtl.training.engine import Engine, Training
    from hmtl.training.trainer import Logger, Trainer

log = logging.getLogger(__name__)
CHANGEABLE = (
    "output_dir",
    "resume",
    "rounds",
    "algorithm.rounds",
    "gap_tolerance",
    "checkpoint_every",
    "evaluate_every",
    "evaluate",
    "early_stopping",
    "baseline",
    "engine.seconds",
    "engine.patience",
    "engine.deployment",
    "engine.multicast",
    "engine.interface",
    "logger",
    "tune",
)
"""Settings that may differ between a run and the one that resumes it."""

OF_ONE_NODE = (
    "output_dir",
    "resume",
    "device",
    "dataset.path",
    "dataset.test_path",
    "dataset.root",
    "logger",
    "engine.deployment",
    "engine.interface",
)
"""Settings that may differ between the processes of a run; those of all others have to be the same."""

PART_CLASSES: dict[str, tuple[str, ...]] = {
    "topology": ("hmtl.topology.Topology", "hmtl.topology.Moving"),
    "network": ("hmtl.communication.Network",),
    "communicator": ("hmtl.communication.Communicator",),
    "engine": ("hmtl.training.engine.Engine",),
    "loss": ("hmtl.mtl.Loss",),
    "regularizer": ("hmtl.mtl.Regularizer",),
    "solver": ("hmtl.mtl.LocalSolver",),
    "algorithm": ("hmtl.mtl.Algorithm",),
    "participation": ("hmtl.mtl.Participation",),
    "partition": ("collections.abc.Callable",),
    "dataset": ("builtins.tuple", "builtins.list"),
    "logger": ("hmtl.training.trainer.Logger",),
}
"""Types of the parts of a run, by group."""
ALONE = ("network", "loss", "regularizer", "solver", "participation")
"""Groups whose parts need no others, and can be made before data are read."""
USUAL_REGULARIZER = "hmtl.mtl.TaskRelationship"

ConfigStore.instance().store(name="train_schema", node=TrainConfig)
ConfigStore.instance().store(name="plan_schema", node=PlanConfig)
ConfigStore.instance().store(name="predict_schema", node=PredictConfig)
_composing = Lock()  # Hydra keeps one global state per process


@dataclass(frozen=True)
class Run:
    """All objects of one training run."""

    communicator: Communicator
    algorithm: Algorithm
    trainer: Trainer
    loggers: list[Logger]
    output_dir: Path
    engine: Engine
    checkpoint: dict[str, Any] | None


def conf_dir() -> Path:
    """Return the folder of configurations: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def compose(*overrides: str, name: str = "config") -> DictConfig:
    """Return the configuration `name` of `conf/` with `overrides`, as on the command line, `output_dir` among them."""
    return deepcopy(_composed(name, *overrides))


@lru_cache  # Hydra reads two dozen files each time
def _composed(name: str, *overrides: str) -> DictConfig:
    try:
        with _composing, hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra.compose(name, list(overrides))
    except HydraException as error:
        raise ConfigError(targets.of_hydra(error)) from error


def build_topology(cfg: DictConfig) -> Topology | Moving:
    """Return who hears whom, or raise ConfigError if the configuration states a size that the topology lacks."""
    topology: Topology | Moving = make_part(cfg, "topology")
    for name, within in (("K", 0.0), ("H", 0.0), ("r", 1 / topology.K)):  # r is a mean over users
        if cfg[name] is not None and abs(cfg[name] - getattr(topology.at(0), name)) > within:
            raise ConfigError(
                f"{name}={cfg[name]:g}, but the topology has {name}={getattr(topology.at(0), name):g}. "
                f"Set {name} to that value, or to null."
            )
    return topology


def load_tasks(cfg: DictConfig, wanted: Wanted | None = None) -> tuple[Task, ...]:
    """Return the users' tasks, with at least the rows of the wanted users; None: of all."""
    any_K = "K" in cfg.topology and not cfg.topology.get("path")  # otherwise the topology determines K
    return _tasks(cfg, cfg.K if any_K else build_topology(cfg).K, wanted)


def build_tasks(cfg: DictConfig, tasks: Sequence[Task] | None = None) -> tuple[tuple[Task, ...], Topology | Moving]:
    """Return the users' tasks and who hears them.

    Args:
        cfg: the configuration; K becomes the number of tasks.
        tasks: what `load_tasks` returned; None: they are loaded.
    """
    tasks = tuple(tasks or load_tasks(cfg))
    if "K" in cfg.topology and not cfg.topology.get("path"):
        cfg.K = len(tasks)
    topology = build_topology(cfg)
    if len(tasks) != topology.K:
        raise ConfigError(f"The topology is for {topology.K} users, but {len(tasks)} have data. Choose another one.")
    return _with_names(tasks, topology)


def _with_names(tasks: tuple[Task, ...], contacts: Topology | Moving) -> tuple[tuple[Task, ...], Topology | Moving]:
    """Return the tasks of a data set and its contacts, whose users are in the order of the tasks if they have names."""
    users, known = contacts.at(0).names.users, tuple(task.name for task in tasks)
    if not users or users == known:
        return tasks, contacts
    if set(users) == set(known):
        return tasks, contacts.with_users(known)
    if not all(re.match(r"user \d+", name) for name in known):
        only = sorted(set(users) - set(known))
        raise ConfigError(
            f"The topology has user{'s' * (len(only) > 1)} {few(only)}, but the data set does not. Give users the same "
            f"names in both: the data set has {few(sorted(set(known) - set(users)))}."
        )
    return tuple(task.renamed(name) for task, name in zip(tasks, users, strict=True)), contacts


def _tasks(cfg: DictConfig, K: int | None, wanted: Wanted | None) -> tuple[Task, ...]:
    from hmtl.data import from_datasets, with_validation
    from hmtl.data.tasks import classified

    target = cfg.dataset["_target_"]
    for name, value in (("K", K), ("partition", cfg.partition or None)):
        if value is None and targets.needs(target, name):
            raise ConfigError(f"{name} is not set, but {target} needs it. Set {name}, or give the parameter a default.")
    arguments = targets.accepted(target, K=K, wanted=wanted or range)
    if cfg.partition:
        if not targets.takes(target, "partition"):
            raise ConfigError(
                f"partition={cfg.partition['_target_']}, but {target} takes none: leave partition out, give a function "
                "of your own a parameter `partition`, or choose another dataset, such as files."
            )
        arguments["partition"] = make_part(cfg, "partition")
    tasks = from_datasets(make_part(cfg, "dataset", **arguments), networks="model" in cfg.algorithm)
    loss = make_part(cfg, "loss")
    tasks = classified(tasks) if loss.labels or loss.classes else tasks
    return with_validation(tasks, cfg.validation_fraction, cfg.seed) if cfg.validation_fraction else tasks


def build_problem(cfg: DictConfig, tasks: Sequence[Task]) -> Problem:
    """Return the learning problem of `tasks`."""
    from hmtl.mtl import Problem

    loss, regularizer = make_part(cfg, "loss"), make_part(cfg, "regularizer")
    device = _device(cfg.device) if any(task.is_local for task in tasks) else "cpu"  # other processes may have no GPU
    return Problem(tasks, loss, regularizer, cfg.reduction, device, cfg.fraction_bits, build_measures(cfg))


def build_measures(cfg: DictConfig) -> dict[str, OwnMeasure]:
    """Return the functions in `cfg.measures` by name; each gets its settings beside predictions and targets."""
    measures: dict[str, OwnMeasure] = {}
    for key, node in cfg.measures.items():
        settings = targets.check(name := f"measures.{key}", _plain(name, node))
        measures[str(key)] = partial(targets.locate(name, settings.pop("_target_")), **settings)
    return measures


def build_algorithm(cfg: DictConfig, problem: Problem, **options: Any) -> Algorithm:
    """Return the algorithm for `problem`, with further keywords, such as `privacy` (see `Algorithm`)."""
    if "model" in cfg.algorithm:
        options["frozen"] = cfg.frozen
    elif cfg.frozen != "eval":
        raise ConfigError(f"frozen={cfg.frozen} has no effect: it is for networks. Leave frozen out.")
    if "participation" not in options:
        options["participation"] = make_part(cfg, "participation")
    algorithm: Algorithm = make_part(cfg, "algorithm", problem=problem, solver=make_part(cfg, "solver"), **options)
    return algorithm


def build_communicator(cfg: DictConfig, topology: Topology | Moving, **links: Any) -> Communicator:
    """Return how messages travel on `topology`, over `links` if given."""
    from hmtl.reporting.console import progress

    network = make_part(cfg, "network")
    with progress(f"Planning for K={topology.K} users and H={topology.H} relays"):
        communicator: Communicator = make_part(cfg, "communicator", topology=topology, network=network, **links)
    return communicator


def check(cfg: DictConfig) -> None:
    """Check a configuration by itself, before data are read or anything large is made."""
    check_root(cfg, _usual("config" if "algorithm" in cfg else "plan"))
    for name, node in _nodes(cfg).items():
        plain = _plain(name, node)
        if cfg.K is None and name == "topology":  # the data set has the number of users
            plain.pop("K", None)
        targets.check(name, plain, _kinds(name))
    learner: Any = None
    if "algorithm" in cfg:
        algorithm, regularizer = _plain("algorithm", cfg.algorithm), cfg.regularizer.get("_target_")
        algorithm = algorithm.get("learner", algorithm)["_target_"]
        learner = targets.locate("algorithm._target_", algorithm)
        uses = getattr(learner, "regularized", True) or cfg.algorithm.get("coupled", False)
        if regularizer not in (None, USUAL_REGULARIZER) and not uses:
            remedy = "set algorithm.coupled=true" if "coupled" in cfg.algorithm else "choose algorithm=mocha or fedu"
            raise ConfigError(
                f"regularizer={regularizer} has no effect: {algorithm} has its own, or none. Leave it out, or {remedy}."
            )
    parts = {group: make_part(cfg, group) for group in ALONE if group in cfg}
    if kind := getattr(learner, "improves", None):
        parts["solver"].check(kind, getattr(parts["loss"], "binary", parts["loss"]))
    if "measures" in cfg:
        build_measures(cfg)
    if "privacy" in cfg:
        check_privacy(cfg)


@lru_cache
def _usual(name: str) -> DictConfig:
    """Return `conf/NAME.yaml` without its groups; it is cached, so do not modify it."""
    return cast(DictConfig, OmegaConf.load(conf_dir() / f"{name}.yaml"))


def agreed(cfg: DictConfig) -> str:
    """Return what the processes of a run have to agree on: its settings, and the version of hmtl."""
    versions = [each.version for each in distributions(name="hmtl")]
    return json.dumps([versions[:1], flat(cfg, OF_ONE_NODE)], sort_keys=True, default=str)


def _nodes(cfg: DictConfig) -> dict[str, Any]:
    """Return the parts of a configuration by name, the loggers as `logger.console` and so on."""
    nodes = {group: cfg[group] for group in PART_CLASSES if cfg.get(group)}
    loggers = nodes.pop("logger", {})
    return nodes | {f"logger.{name}": node for name, node in loggers.items()}


def identity_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that a run and the one that resumes it have in common."""
    return flat(cfg, set(CHANGEABLE) - {"rounds"} if cfg.privacy.epsilon else CHANGEABLE)  # the noise follows from both


def build(cfg: DictConfig) -> Run:
    """Return all objects of a training run."""
    from hmtl.training.checkpoint import load_checkpoint
    from hmtl.training.trainer import Trainer, TrainerSettings

    check(cfg)
    folder, identity = Path(cfg.output_dir), identity_of(cfg)
    engine: Engine = make_part(cfg, "engine", **targets.accepted(cfg.engine["_target_"], agreed=agreed(cfg)))
    with ExitStack() as stack:
        stack.callback(engine.close)
        checkpoint = load_checkpoint(Path(cfg.resume), "train", identity) if cfg.resume else None
        if checkpoint and (done := checkpoint["history"]["rounds"]) > cfg.rounds:
            raise ConfigError(f"rounds={cfg.rounds}: {cfg.resume} has {done} rounds already. Raise rounds.")
        H = cfg.H or build_topology(cfg).H
        cfg.output_dir = str(folder)  # other processes do not know Hydra's
        built = engine.training(partial(load_tasks, cfg), partial(build_training, cfg), H, cfg.K)
        if engine.nodes and cfg.secure and not built.only_sums:
            log.warning(
                "with metrics=users, hosts tell the server each user's errors, and its model for checkpoints, although "
                "secure=true hides its terms. Set metrics=sums."
            )
        loggers = [make_part(cfg, name) for name in _nodes(cfg) if name.startswith("logger.")]
        settings = TrainerSettings(
            folder,
            cfg.rounds,
            cfg.gap_tolerance,
            cfg.checkpoint_every,
            cfg.evaluate_every,
            cfg.early_stopping,
            identity,
        )
        trainer = Trainer(built, settings, engine=engine, loggers=loggers)
        stack.pop_all()
        return Run(built.communicator, built.algorithm, trainer, loggers, folder, engine, checkpoint)


def build_training(cfg: DictConfig, tasks: Sequence[Task], links: MakeLinks) -> Training:
    """Return what is trained on tasks that `load_tasks` returned, and how its messages travel."""
    from hmtl.mtl import preprocessing_setups
    from hmtl.training.carrier import carrier_of
    from hmtl.training.engine import Training

    tasks, topology = build_tasks(cfg, tasks)
    setups = preprocessing_setups(tasks)
    if setups and cfg.privacy.clip is not None:
        raise ConfigError(
            "privacy: preprocessing is fitted to the rows of all users, who would send facts about them without noise. "
            "Set dataset.standardize=task or none, or prepare tables beforehand."
        )
    communicator = build_communicator(cfg, topology, links=links)
    participation = make_part(cfg, "participation")
    participation.check_relays(topology.H)
    if secure := communicator.recipe.secure:
        if (sampled := participation.sampled(topology.K)) < topology.K:
            if participation.sampler != "uniform":
                raise ConfigError(
                    f"secure=true: participation.sampler={participation.sampler} samples some users more often, so too "
                    "many colluders could be among them. Leave participation.sampler out."
                )
            secure = replace(secure, sampled=sampled)
            communicator.recipe = replace(communicator.recipe, secure=secure)
        secure.check(topology.K, topology.at(0).G)
    accountant = build_accountant(cfg, participation, topology.K)
    options = {"privacy": accountant.privacy} if accountant else {}
    problem = build_problem(cfg, tasks)
    problem.tuned = "tuned" in cfg.evaluate
    if "train" not in cfg.evaluate:
        if cfg.metrics == "sums" or not any(len(task.y_test) for task in tasks):
            raise ConfigError("evaluate: metrics=sums, and data without test rows, need the training rows. Add train.")
        problem.splits = problem.splits[1:]
    algorithm = build_algorithm(cfg, problem, participation=participation, **options)
    communicator = carrier_of(algorithm, communicator)
    if accountant:
        match_accountant(accountant, algorithm)
    if cfg.metrics == "sums":
        check_only_sums(communicator)
    secret = accountant.privacy.randomness == "system" if accountant else bool(secure and secure.sampled)
    return Training(algorithm, communicator, setups, accountant, cfg.metrics == "sums", secret, Path(cfg.output_dir))


def check_only_sums(communicator: Communicator) -> None:
    """Raise ConfigError if more than sums over users is known of a learner's state where measurements are made."""
    if not communicator.recipe.adds:
        raise ConfigError(
            "metrics=sums needs a learner of whose rows only sums over users are known. Set communicator=sums, or "
            "metrics=users."
        )


def make_part(cfg: DictConfig, name: str, **objects: Any) -> Any:
    """Return the object of a part, with further arguments that the configuration does not hold."""
    return targets.make(name, _plain(name, _nodes(cfg).get(name)), _kinds(name), **objects)


def _plain(name: str, node: Any) -> dict[str, Any]:
    """Return the settings of a part as plain values."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError(f"{name} has no _target_. Set {name}._target_, or choose one of its group, see --help.")
    if missing := OmegaConf.missing_keys(node):
        raise ConfigError(f"{min(missing)} is not set, and has no default. Set it on the command line.")
    settings = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return _of_learner(settings) if name == "algorithm" else settings


def _of_learner(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an algorithm, for those of a learner of networks and of its network."""
    from hmtl.mtl import Learner

    target = targets.locate("algorithm._target_", settings["_target_"])
    if not (isinstance(target, type) and issubclass(target, Learner)):
        return settings
    of_network: dict[str, Any] = {key: settings[key] for key in ("model", "seed") if key in settings}
    learner = {key: value for key, value in settings.items() if key not in of_network}
    return {"_target_": "hmtl.mtl.NetworkAlgorithm", "learner": learner, **of_network}


def _kinds(name: str) -> tuple[type, ...]:
    """Return the types that a part of this name may have."""
    return tuple(targets.locate(name, kind) for kind in PART_CLASSES[name.partition(".")[0]])


def _device(name: str) -> torch.device:
    import torch

    try:
        return torch.zeros(1, device=name).cpu().to(name).device  # numbers can be read from it, unlike from meta
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name} is not available ({str(error).splitlines()[0]}): try device=cpu.") from error


def load_run(path: str | Path, model: torch.nn.Module | MakeModel | None = None) -> Models:
    """Return the models of a finished run.

    Args:
        path: the run's folder, or the `models.npz` in it.
        model: if the run trained networks, the module or function that `Federation` got, or the `algorithm.model` of
            the command, a function of `d` and `C`; None: that of the configuration in the run's folder, which is
            executed like any other.

    Raises:
        DataError: if there are no models, or the file is damaged.
        ConfigError: if the models are networks without a known `algorithm.model`, or linear and `model` is given.
    """
    from hmtl.inference.models import load_models

    folder = Path(path)
    file = folder / "models.npz" if folder.is_dir() else folder
    return load_models(file, model, lambda: _network_of(file.parent))


def _network_of(folder: Path) -> MakeModel:
    """Return what creates the networks of the run in `folder`, according to its configuration."""
    try:
        check_sums(folder, ".hydra/config.yaml")
        maker: MakeModel = instantiate(OmegaConf.load(folder / ".hydra" / "config.yaml").algorithm.model)
    except (OSError, ValueError, HydraException, OmegaConfBaseException) as error:
        reason = "" if isinstance(error, OmegaConfBaseException) else f" ({' '.join(str(error).split())})"
        raise ConfigError(
            f"{folder} holds networks, but not the code that makes them{reason}. Give the module that was trained, or "
            "what made it: hmtl.load_run(folder, model=module)."
        ) from error
    return maker
