"""Objects from a configuration: the parts of a run, and a whole run."""

from __future__ import annotations  # so that a plan does not import what only training needs

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from hmtl.config import targets
from hmtl.config.schema import PlanConfig, PredictConfig, TrainConfig, check_root, flat
from hmtl.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from hmtl.communication import Communicator, Network
    from hmtl.data import Task, Wanted
    from hmtl.mtl import Algorithm, Participation, Problem, Regularizer
    from hmtl.topology import Moving, Topology
    from hmtl.training.engine import Engine, Exchange
    from hmtl.training.trainer import Logger, Trainer

NOT_IDENTITY = (
    "output_dir",
    "resume",
    "rounds",
    "algorithm.rounds",
    "gap_tolerance",
    "checkpoint_every",
    "evaluate_every",
    "engine.seconds",
    "engine.multicast",
    "logger",
    "tune",
)
"""Settings that may differ between a run and the one that resumes it."""

KINDS: dict[str, tuple[str, ...]] = {
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
    exchange: Exchange
    checkpoint: dict[str, Any] | None


def conf_dir() -> Path:
    """Return the folder of configurations: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def compose(*overrides: str, name: str = "config") -> DictConfig:
    """Return the configuration `name` of `conf/` with `overrides`, as on the command line, `output_dir` among them."""
    with _composing, hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def build_topology(cfg: DictConfig) -> Topology | Moving:
    """Return who hears whom.

    Raises:
        ConfigError: the configuration states a size that the topology does not have.
    """
    topology: Topology | Moving = _make(cfg, "topology")
    for name, within in (("K", 0.0), ("H", 0.0), ("r", 1 / topology.K)):  # r is a mean over users
        if cfg[name] is not None and abs(cfg[name] - getattr(topology.at(0), name)) > within:
            raise ConfigError(
                f"{name}={cfg[name]:g}, but the topology has {name}={getattr(topology.at(0), name):g}. "
                f"Set {name} to that value, or to null."
            )
    return topology


def build_tasks(cfg: DictConfig, engine: Engine | None = None) -> tuple[tuple[Task, ...], Topology | Moving]:
    """Return the users' tasks and who hears them; the one that determines K is built first.

    Args:
        cfg: the configuration; K becomes the number of tasks.
        engine: decides which rows this process holds; None: all.
    """
    share = engine.load_tasks if engine else lambda load, K, H: load(None)
    if "K" in cfg.topology and not cfg.topology.get("path"):  # a topology for any K
        tasks = share(lambda wanted: _tasks(cfg, cfg.K, wanted), cfg.K, cfg.H)
        cfg.K = len(tasks)
        return tasks, build_topology(cfg)
    topology = build_topology(cfg)
    return share(lambda wanted: _tasks(cfg, topology.K, wanted), topology.K, topology.H), topology


def _tasks(cfg: DictConfig, K: int | None, wanted: Wanted | None) -> tuple[Task, ...]:
    target, arguments = cfg.dataset["_target_"], dict[str, Any](K=K)
    if wanted and targets.takes(target, "wanted"):
        arguments["wanted"] = wanted
    if cfg.partition:
        if not targets.takes(target, "partition"):
            raise ConfigError(
                f"partition={cfg.partition['_target_']}, but {target} takes none: leave partition out, or choose "
                "another dataset, such as files."
            )
        arguments["partition"] = _make(cfg, "partition")
    return tuple(_make(cfg, "dataset", **arguments))


def build_problem(cfg: DictConfig, tasks: Sequence[Task]) -> Problem:
    """Return the learning problem of `tasks`."""
    from hmtl.mtl import Problem

    how = {"reduction": cfg.reduction, "device": _device(cfg.device), "fraction_bits": cfg.fraction_bits}
    return Problem(tasks, _make(cfg, "loss"), build_regularizer(cfg), **how)


def build_regularizer(cfg: DictConfig) -> Regularizer:
    regularizer: Regularizer = _make(cfg, "regularizer")
    return regularizer


def build_algorithm(cfg: DictConfig, problem: Problem, **messages: str) -> Algorithm:
    """Return the algorithm for `problem`; see `Algorithm` for the keyword `messages`."""
    objects = {"solver": _make(cfg, "solver"), "participation": _make(cfg, "participation")}
    algorithm: Algorithm = _make(cfg, "algorithm", problem=problem, **objects, **messages)
    return algorithm


def build_participation(cfg: DictConfig, topology: Topology | Moving) -> Participation:
    """Return who takes part in which round, after a check that it names existing relays only."""
    participation: Participation = _make(cfg, "participation")
    participation.check_relays(topology.H)
    return participation


def build_network(cfg: DictConfig) -> Network:
    network: Network = _make(cfg, "network")
    return network


def build_communicator(cfg: DictConfig, topology: Topology | Moving, **links: Any) -> Communicator:
    """Return how messages travel on `topology`, over `links` if given."""
    from hmtl.reporting.console import progress

    network = build_network(cfg)
    with progress(f"Planning for K={topology.K} users and H={topology.H} relays"):
        communicator: Communicator = _make(cfg, "communicator", topology=topology, network=network, **links)
    return communicator


def check(cfg: DictConfig) -> None:
    """Check a configuration by itself, before data are read or anything large is made.

    Raises:
        ConfigError: which setting is wrong, and what it should be.
    """
    usual = OmegaConf.load(conf_dir() / ("config.yaml" if "algorithm" in cfg else "plan.yaml"))
    assert isinstance(usual, DictConfig)
    check_root(cfg, usual)
    for name, node in _nodes(cfg):
        plain = _plain(name, node)
        if cfg.K is None and name == "topology":  # the data set has the number of users
            plain.pop("K", None)
        targets.check(name, plain, _kinds(name))
    if "algorithm" in cfg:
        _check_regularizer(cfg)
    for group in ALONE:
        if group in cfg:
            _make(cfg, group)


def _nodes(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a configuration and their names."""
    for group in KINDS:
        if group == "logger":
            yield from ((f"logger.{name}", node) for name, node in cfg.get("logger", {}).items())
        elif group in cfg and not (group == "partition" and cfg.partition is None):
            yield group, cfg[group]


def _check_regularizer(cfg: DictConfig) -> None:
    """Raise ConfigError if a regularizer is chosen for an algorithm that does not use it."""
    algorithm, chosen = (cfg[group].get("_target_") for group in ("algorithm", "regularizer"))
    uses = getattr(targets.locate("algorithm._target_", algorithm), "regularized", True)
    if chosen not in (None, USUAL_REGULARIZER) and not uses:
        raise ConfigError(
            f"regularizer={chosen} has no effect: {algorithm} has its own, or none. Leave it out, or choose "
            "algorithm=mocha or fedu."
        )


def build(cfg: DictConfig) -> Run:
    """Return all objects of a training run.

    Raises:
        HmtlError: what is wrong with the configuration or the data.
    """
    from hmtl.mtl import preprocessing_setup
    from hmtl.training.checkpoint import load_checkpoint
    from hmtl.training.trainer import Trainer, TrainerSettings

    check(cfg)
    identity = flat(cfg, NOT_IDENTITY)
    checkpoint = load_checkpoint(Path(cfg.resume), "train", identity) if cfg.resume else None
    if checkpoint and (done := checkpoint["history"]["rounds"]) > cfg.rounds:
        raise ConfigError(f"rounds={cfg.rounds}: {cfg.resume} has {done} rounds already. Raise rounds.")
    engine: Engine = _make(cfg, "engine")
    tasks, topology = build_tasks(cfg, engine)
    with engine.barrier():
        exchange = engine.connect(topology, build_network(cfg))
        communicator = build_communicator(cfg, topology, links=exchange.links)
        build_participation(cfg, topology)
        algorithm, communicator = build_matching(cfg, build_problem(cfg, tasks), communicator)
    loggers = _loggers(cfg) if exchange.leads else []
    trainer = Trainer(
        algorithm,
        communicator,
        TrainerSettings(
            Path(cfg.output_dir),
            cfg.rounds,
            cfg.gap_tolerance,
            cfg.checkpoint_every,
            cfg.evaluate_every,
            identity,
        ),
        exchange=exchange,
        loggers=loggers,
        setups=[setup for setup in [preprocessing_setup(tasks)] if setup],
    )
    return Run(communicator, algorithm, trainer, loggers, Path(cfg.output_dir), exchange, checkpoint)


def build_matching(cfg: DictConfig, problem: Problem, communicator: Communicator) -> tuple[Algorithm, Communicator]:
    """Return the algorithm and the communicator of a run; both use sums if this is configured or takes less time.

    Raises:
        ConfigError: the communicator does not fit the algorithm.
    """
    from hmtl.communication import CodedHierarchical, Sums
    from hmtl.communication.communicators.sums import sums_if_faster

    if isinstance(communicator, Sums):
        return build_algorithm(cfg, problem, messages="sums"), communicator
    algorithm = build_algorithm(cfg, problem)
    q = algorithm.sums_needed(problem)
    if q and isinstance(communicator, CodedHierarchical):
        sums = sums_if_faster(communicator, 8 * q / algorithm.W.element_size())
        if sums is not None:
            return build_algorithm(cfg, problem, messages="sums"), sums
    if len(problem.users) == problem.K:  # otherwise the aggregator learns from a set-up what this depends on
        communicator.check_learner(algorithm.aggregator)
    return algorithm, communicator


def _make(cfg: DictConfig, group: str, **objects: Any) -> Any:
    """Return the object of a group, with further arguments that the configuration does not hold."""
    return targets.make(group, _plain(group, cfg.get(group)), _kinds(group), **objects)


def _loggers(cfg: DictConfig) -> list[Logger]:
    nodes = [(name, node) for name, node in _nodes(cfg) if name.startswith("logger.")]
    return [targets.make(name, _plain(name, node), _kinds(name)) for name, node in nodes]


def _plain(name: str, node: Any) -> dict[str, Any]:
    """Return the settings of a part as plain values."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError(f"{name} has no _target_. Choose one of its group, see --help.")
    if missing := OmegaConf.missing_keys(node):
        raise ConfigError(f"{min(missing)} is not set, and has no default. Set it on the command line.")
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _kinds(name: str) -> tuple[type, ...]:
    """Return the types that a part of this name may have."""
    return tuple(targets.locate(name, kind) for kind in KINDS[name.partition(".")[0]])


def _device(name: str) -> torch.device:
    import torch

    try:
        return torch.zeros(1, device=name).cpu().to(name).device  # numbers can be read from it, unlike from meta
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name} is not available ({str(error).splitlines()[0]}): try device=cpu.") from error
