"""Configuration becomes objects here, and nowhere else; the command line aside, no other module knows Hydra."""

from __future__ import annotations  # so that a plan, which trains nothing, does without what training alone imports

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from hmtl.errors import ConfigError, HmtlError
from hmtl.progress import progress
from hmtl.settings import check_settings, takes

if TYPE_CHECKING:
    import torch

    from hmtl.communication import Communicator, Network
    from hmtl.data import Task, Wanted
    from hmtl.engine import Engine
    from hmtl.mtl import Algorithm, Participation, Problem, Regularizer
    from hmtl.topology import Moving, Topology
    from hmtl.trainer import Logger, Trainer

# What may differ between a run and the one that goes on from its checkpoint.
NOT_IDENTITY = (
    "output_dir",
    "resume",
    "rounds",
    "algorithm.rounds",
    "gap_tolerance",
    "checkpoint_every",
    "engine.seconds",
    "engine.multicast",
    "logger",
    "tune",
)


@dataclass
class NetworkConfig:
    """What `hmtl.train` and `hmtl.plan` share: a topology and the links on it."""

    K: int | None = 20
    H: int | None = 5
    r: float | None = 3
    d: float = 0.0
    seed: int = 0
    topology: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    output_dir: str = MISSING


@dataclass
class TrainConfig(NetworkConfig):
    """Root of `conf/config.yaml`; the comments there say what each value means."""

    rounds: int = 100
    lam: float = 0.01
    reduction: str = "mean"
    device: str = "cpu"
    fraction_bits: int = 40
    scheme: str = "optimal"
    aggregators: Any = "auto"
    gap_tolerance: float = 0.0
    checkpoint_every: int = 10
    resume: str | None = None
    wire: str | None = None
    communicator: dict[str, Any] = field(default_factory=dict)
    algorithm: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    regularizer: dict[str, Any] = field(default_factory=dict)
    solver: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] | None = None
    participation: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


@dataclass
class PlanConfig(NetworkConfig):
    """Root of `conf/plan.yaml`."""

    V_bits: int = 784 * 64
    margin: int = 0
    format: str = "text"


ConfigStore.instance().store(name="train_schema", node=TrainConfig)
ConfigStore.instance().store(name="plan_schema", node=PlanConfig)
_composing = Lock()  # Hydra has one place for all threads of a process


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
    """The folder of configurations: inside the package when installed from a wheel, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def compose(*overrides: str, name: str = "config") -> DictConfig:
    """The configuration `name` of `conf/` with `overrides`, as from the command line; set `output_dir` among them."""
    with _composing, hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def build_topology(cfg: DictConfig) -> Topology | Moving:
    """Who hears whom, after `cfg`; a size that the configuration states and the file contradicts is an error."""
    topology: Topology | Moving = _instantiate(cfg.topology)
    for name, within in (("K", 0.0), ("H", 0.0), ("r", 1 / topology.K)):  # links are whole, their mean r need not be
        if cfg[name] is not None and abs(cfg[name] - getattr(topology.at(0), name)) > within:
            raise ConfigError(
                f"{name}={cfg[name]:g}, but the topology has {name}={getattr(topology.at(0), name):g}: "
                f"set it to that, or to null."
            )
    if cfg.d and "d" not in cfg.topology:
        raise ConfigError(f"d={cfg.d} has no meaning here: it makes the relays of topology=heterogeneous unequal.")
    return topology


def build_tasks(cfg: DictConfig, engine: Engine | None = None) -> tuple[tuple[Task, ...], Topology | Moving]:
    """The users' data, which an engine divides, and who hears them; K comes from whichever of the two fixes it."""
    share = engine.tasks if engine else lambda load, K, H: load(None)
    if "K" in cfg.topology and not cfg.topology.get("path"):  # a rule for any K
        tasks = share(lambda wanted: _tasks(cfg, cfg.K, wanted), cfg.K, cfg.H)
        cfg.K = len(tasks)
        return tasks, build_topology(cfg)
    topology = build_topology(cfg)
    return share(lambda wanted: _tasks(cfg, topology.K, wanted), topology.K, topology.H), topology


def _tasks(cfg: DictConfig, K: int | None, wanted: Wanted | None) -> tuple[Task, ...]:
    target, arguments = cfg.dataset["_target_"], dict[str, Any](K=K)
    if wanted and takes(target, "wanted"):
        arguments["wanted"] = wanted
    if cfg.partition:
        if not takes(target, "partition"):
            raise ConfigError(
                f"partition={cfg.partition['_target_']}, but {target} takes none: leave partition out, or choose "
                "another dataset, such as files."
            )
        arguments["partition"] = _instantiate(cfg.partition)
    return tuple(_instantiate(cfg.dataset, **arguments))


def build_problem(cfg: DictConfig, tasks: Sequence[Task]) -> Problem:
    """What is to be learned from `tasks`."""
    from hmtl.mtl import Problem

    how = {"reduction": cfg.reduction, "device": _device(cfg.device), "fraction_bits": cfg.fraction_bits}
    return Problem(tasks, _instantiate(cfg.loss), build_regularizer(cfg), **how)


def build_regularizer(cfg: DictConfig) -> Regularizer:
    regularizer: Regularizer = _instantiate(cfg.regularizer)
    return regularizer


def build_algorithm(cfg: DictConfig, problem: Problem) -> Algorithm:
    """What solves `problem`."""
    parts = {"solver": _instantiate(cfg.solver), "participation": _instantiate(cfg.participation)}
    algorithm: Algorithm = _instantiate(cfg.algorithm, problem=problem, **parts)
    return algorithm


def build_participation(cfg: DictConfig, topology: Topology | Moving) -> Participation:
    """Who takes part in which round, checked against the relays that there are."""
    participation: Participation = _instantiate(cfg.participation)
    participation.check_relays(topology.H)
    return participation


def build_network(cfg: DictConfig) -> Network:
    network: Network = _instantiate(cfg.network)
    return network


def build_communicator(cfg: DictConfig, topology: Topology | Moving, **links: Any) -> Communicator:
    """How the messages travel on `topology`; over which links, if these are given."""
    network = build_network(cfg)
    with progress(f"Planning for K={topology.K} users and H={topology.H} relays"):
        communicator: Communicator = _instantiate(cfg.communicator, topology=topology, network=network, **links)
    return communicator


def check_root(cfg: DictConfig) -> None:
    """Refuse values at the root of the configuration that no run can have.

    Raises:
        ConfigError: which one, and what it should be.
    """
    from hmtl.coding import CODED_SCHEMES

    for name, least in (("rounds", 1), ("checkpoint_every", 1), ("seed", 0)):
        if cfg[name] < least:
            raise ConfigError(f"{name}={cfg[name]} is too small: it is at least {least}.")
    if cfg.scheme not in CODED_SCHEMES:
        raise ConfigError(f"scheme={cfg.scheme} is unknown: choose one of {', '.join(CODED_SCHEMES)}.")
    if not cfg.gap_tolerance >= 0:
        raise ConfigError(f"gap_tolerance={cfg.gap_tolerance} is not at least 0: the gap never falls below that.")


def build(cfg: DictConfig) -> Run:
    """All objects of a training run; everything that can be wrong with a configuration is found here.

    Raises:
        HmtlError: what is wrong, and what to do.
    """
    from hmtl.checkpoint import load_checkpoint
    from hmtl.mtl import fitting
    from hmtl.trainer import Trainer, in_sums

    check_root(cfg)
    identity = flat(cfg, NOT_IDENTITY)
    checkpoint = load_checkpoint(Path(cfg.resume), identity) if cfg.resume else None
    if checkpoint and len(checkpoint["history"]) > cfg.rounds:
        raise ConfigError(
            f"{cfg.resume} has {len(checkpoint['history'])} rounds behind it already, of rounds={cfg.rounds}: ask for "
            "more rounds to go on."
        )
    engine: Engine = _instantiate(cfg.engine)
    tasks, topology = build_tasks(cfg, engine)
    with engine.together():
        communicator = build_communicator(cfg, topology, links=engine.join(topology, build_network(cfg)))
        build_participation(cfg, topology)
        communicator = in_sums(algorithm := build_algorithm(cfg, build_problem(cfg, tasks)), communicator)
    loggers = [_instantiate(node) for node in cfg.logger.values()] if engine.leads else []
    trainer = Trainer(
        algorithm,
        communicator,
        **{name: cfg[name] for name in ("rounds", "gap_tolerance", "checkpoint_every")},
        checkpoint=Path(cfg.output_dir, "checkpoint.pt"),
        identity=identity,
        loggers=loggers,
        before=[fitting(tasks)],
        engine=engine,
    )
    return Run(communicator, algorithm, trainer, loggers, Path(cfg.output_dir), engine, checkpoint)


def _instantiate(node: DictConfig | None, **arguments: Any) -> Any:
    """Hydra's `instantiate`, with `arguments` passed by as they are, after a check of what the node says."""
    if node is None or "_target_" not in node:
        raise ConfigError(
            "a part of the configuration is null or has no _target_: choose one of its group, see --help."
        )
    if missing := OmegaConf.missing_keys(node):
        raise ConfigError(f"{missing.pop()} is not set, and has no default: give it on the command line.")
    check_settings(node["_target_"], {f"{node._get_full_key(key)}": value for key, value in node.items()})
    try:
        return instantiate(node, _partial_=True)(**arguments)
    except HydraException as error:
        if isinstance(error.__cause__, HmtlError):  # of a part within this one
            raise error.__cause__ from None
        raise ConfigError(str(error)) from error


def _device(name: str) -> torch.device:
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name} is not available ({str(error).splitlines()[0]}): try device=cpu.") from error


def flat(cfg: DictConfig, left_out: Collection[str] = (), resolve: bool = True) -> dict[str, Any]:
    """{"topology.r": 3} for {"topology": {"r": 3}}, without the names `left_out` and what is below them."""
    plain = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(plain, dict)
    found: dict[str, Any] = {}
    stack = [(str(key), value) for key, value in plain.items()]
    while stack:
        key, value = stack.pop()
        if key not in left_out and isinstance(value, dict):
            stack += [(f"{key}.{k}", v) for k, v in value.items()]
        elif key not in left_out:
            found[key] = value
    return found
