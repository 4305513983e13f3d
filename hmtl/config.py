"""Configuration becomes objects here, and nowhere else; no other module knows Hydra."""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hmtl.coding import CODED_SCHEMES
from hmtl.communication import Communicator, Network
from hmtl.data import Task
from hmtl.errors import ConfigError, HmtlError, Interrupted
from hmtl.mtl import Algorithm, Problem, Regularizer
from hmtl.topology import Topology
from hmtl.trainer import Logger, Trainer, load_checkpoint
from hmtl.values import check_values, no_setting

# What may differ between a run and the one that goes on from its checkpoint.
NOT_IDENTITY = ("output_dir", "resume", "rounds", "gap_tolerance", "checkpoint_every", "logger", "tune")


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
    scheme: str = "optimal"
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
    participation: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


@dataclass
class PlanConfig(NetworkConfig):
    """Root of `conf/plan.yaml`."""

    V_bits: int = 784 * 64
    format: str = "text"


_store = ConfigStore.instance()
_store.store(name="train_schema", node=TrainConfig)
_store.store(name="plan_schema", node=PlanConfig)


@dataclass(frozen=True)
class Run:
    """All objects of one training run."""

    topology: Topology
    network: Network
    communicator: Communicator
    algorithm: Algorithm
    trainer: Trainer
    loggers: list[Logger]
    output_dir: Path
    checkpoint: dict[str, Any] | None


def conf_dir() -> Path:
    """The folder of configurations: inside the package when installed from a wheel, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def compose(*overrides: str, name: str = "config") -> DictConfig:
    """The configuration `name` of `conf/` with `overrides`, as from the command line; set `output_dir` among them."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def build_topology(cfg: DictConfig) -> Topology:
    """The network of `cfg`; a size that the configuration states and the file contradicts is an error."""
    topology: Topology = _instantiate(cfg.topology)
    for name, within in (("K", 0.0), ("H", 0.0), ("r", 1 / topology.K)):  # links are whole, their mean r need not be
        if cfg[name] is not None and abs(cfg[name] - getattr(topology, name)) > within:
            raise ConfigError(
                f"{name}={cfg[name]:g}, but the topology has {name}={getattr(topology, name):g}: "
                f"leave {name} out, or set it to that."
            )
    if cfg.d and "d" not in cfg.topology:
        raise ConfigError(f"d={cfg.d} has no meaning here: it makes the relays of topology=heterogeneous unequal.")
    return topology


def build_tasks(cfg: DictConfig) -> tuple[tuple[Task, ...], Topology]:
    """The users' data, and the network between them; K comes from whichever of the two fixes it."""
    if "K" in cfg.topology:  # a rule that makes a network for any K
        tasks: tuple[Task, ...] = _instantiate(cfg.dataset, K=cfg.K)
        cfg.K = len(tasks)
        return tasks, build_topology(cfg)
    topology = build_topology(cfg)
    return _instantiate(cfg.dataset, K=topology.K), topology


def build_problem(cfg: DictConfig, tasks: Sequence[Task]) -> Problem:
    """What is to be learned from `tasks`."""
    regularizer = build_regularizer(cfg)
    return Problem(tasks, _instantiate(cfg.loss), regularizer, reduction=cfg.reduction, device=_device(cfg.device))


def build_regularizer(cfg: DictConfig) -> Regularizer:
    regularizer: Regularizer = _instantiate(cfg.regularizer)
    return regularizer


def build_algorithm(cfg: DictConfig, problem: Problem) -> Algorithm:
    """What solves `problem`."""
    algorithm: Algorithm = _instantiate(
        cfg.algorithm,
        problem=problem,
        solver=_instantiate(cfg.solver),
        participation=_instantiate(cfg.participation),
    )
    return algorithm


def build_network(cfg: DictConfig) -> Network:
    network: Network = _instantiate(cfg.network)
    return network


def build(cfg: DictConfig) -> Run:
    """All objects of a training run; everything that can be wrong with a configuration is found here.

    Raises:
        HmtlError: what is wrong, and what to do.
    """
    for name, least in (("rounds", 1), ("checkpoint_every", 1), ("seed", 0)):
        if cfg[name] < least:
            raise ConfigError(f"{name}={cfg[name]} is too small: it is at least {least}.")
    if cfg.scheme not in CODED_SCHEMES:
        raise ConfigError(f"scheme={cfg.scheme} is unknown: choose one of {', '.join(CODED_SCHEMES)}.")
    if not cfg.gap_tolerance >= 0:
        raise ConfigError(f"gap_tolerance={cfg.gap_tolerance} is not at least 0: the gap never falls below that.")
    identity = _identity(cfg)
    checkpoint = load_checkpoint(Path(cfg.resume), identity) if cfg.resume else None
    if checkpoint and len(checkpoint["history"]) > cfg.rounds:
        raise ConfigError(
            f"{cfg.resume} has {len(checkpoint['history'])} rounds behind it already, of rounds={cfg.rounds}: ask for "
            "more rounds to go on."
        )
    network = build_network(cfg)
    tasks, topology = build_tasks(cfg)
    communicator = _instantiate(cfg.communicator, topology=topology)
    algorithm = build_algorithm(cfg, build_problem(cfg, tasks))
    output_dir = Path(cfg.output_dir)
    loggers = [_instantiate(node) for node in cfg.logger.values()]
    trainer = Trainer(
        algorithm,
        communicator,
        network,
        rounds=cfg.rounds,
        gap_tolerance=cfg.gap_tolerance,
        checkpoint=output_dir / "checkpoint.pt",
        checkpoint_every=cfg.checkpoint_every,
        identity=identity,
        loggers=loggers,
    )
    return Run(topology, network, communicator, algorithm, trainer, loggers, output_dir, checkpoint)


def main(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Run `task` as a command: compose its configuration from the command line, report a user's error in one line.

    Exit status: 0 done, 2 for an `HmtlError` or a configuration that Hydra refuses, 128 + n after signal n. In a sweep
    one bad job does not keep the others from running.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as they are, instead of as Hydra's own report
    statuses = []

    def checked(cfg: DictConfig) -> None:
        known = {field.name for field in fields(TrainConfig if config_name == "config" else PlanConfig)}
        for key in set(cfg) - known:
            raise ConfigError(no_setting(str(key), known))
        task(cfg)

    def job(cfg: DictConfig) -> None:  # reports its own errors, for Hydra says its own word on what leaves a job
        statuses.append(_status(checked, cfg))
        if statuses[-1] > 2:
            sys.exit(statuses[-1])

    statuses.append(_status(hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)))
    sys.exit(max(statuses))


def _status(action: Callable[..., None], *arguments: Any) -> int:
    """Exit status of an action whose errors are told in one line."""
    try:
        action(*arguments)
        return 0
    except Interrupted as interrupted:
        return 128 + interrupted.signum
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        message = (
            f"{error.filename or 'output'}: {error.strerror or error}. If results go there, choose a folder that can "
            "be written to: hydra.run.dir=PATH."
        )
    except (HmtlError, HydraException, OmegaConfBaseException) as error:
        message = str(error)
        if refused := re.match("Could not override '(.+)'", message):
            message = no_setting(refused[1], {field.name for field in fields(TrainConfig)})
        elif isinstance(error, HydraException) and error.__cause__:
            message += f"\n{str(error.__cause__).splitlines()[0]}"
    except ValueError as error:
        if "Config group override" not in str(error):  # Hydra's word on loss=null; all else is a defect
            raise
        message = f"{error}: a group cannot be null, choose one of its parts, see --help."
    print(f"error: {message}", file=sys.stderr)
    return 2


def _instantiate(node: DictConfig | None, **arguments: Any) -> Any:
    """Hydra's `instantiate`, with `arguments` passed by as they are, after a check of what the node says."""
    if node is None or "_target_" not in node:
        raise ConfigError(
            "a part of the configuration is null or has no _target_: choose one of its group, see --help."
        )
    if missing := OmegaConf.missing_keys(node):
        raise ConfigError(f"{missing.pop()} is not set, and has no default: give it on the command line.")
    check_values(node["_target_"], {f"{node._get_full_key(key)}": value for key, value in node.items()})
    try:
        return instantiate(node, _partial_=True)(**arguments)
    except HydraException as error:
        raise ConfigError(str(error)) from error


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name} is not available ({str(error).splitlines()[0]}): try device=cpu.") from error


def _identity(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide a run's numbers, flat: {"topology.r": 3, ...}."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    flat: dict[str, Any] = {}
    stack = [(str(key), value) for key, value in plain.items() if key not in NOT_IDENTITY]
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{key}.{k}", v) for k, v in value.items()]
        else:
            flat[key] = value
    return flat
