"""What there is to set at the root of a configuration, and checks of it that need no objects."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from hmtl.config.checks import LARGEST, no_setting
from hmtl.errors import ConfigError

LEAST = {"rounds": 1, "checkpoint_every": 1, "evaluate_every": 1, "seed": 0, "V_bits": 1, "gap_tolerance": 0.0}
"""Of numbers at the root that no part checks."""
READERS = {
    "scheme": "communicator=coded",
    "aggregators": "communicator=coded",
    "wire": "a communicator that has wire=${wire}",
    "lam": "a regularizer or algorithm that has lam=${lam}",
    "d": "topology=heterogeneous, whose relays it makes unequal",
}
"""Values at the root that have a meaning only where some part refers to them."""


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
class TuneConfig:
    """What `hmtl.tune` has besides."""

    folds: int = 5
    grid: Any = None


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
    evaluate_every: int = 1
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
    tune: TuneConfig = field(default_factory=TuneConfig)
    engine: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


@dataclass
class PlanConfig(NetworkConfig):
    """Root of `conf/plan.yaml`."""

    V_bits: int = 784 * 64
    format: str = "text"


@dataclass
class PredictConfig:
    """Root of `conf/predict.yaml`."""

    run: str = MISSING
    data: str = MISSING
    user: str | None = None
    task: str | None = None
    output: str | None = None


def check_root(cfg: DictConfig) -> None:
    """Refuse values at the root that nothing can have, or that have no meaning beside the others.

    Raises:
        ConfigError: which one, and what it should be.
    """
    for name, value in ((str(key), cfg[key]) for key in cfg):
        least = LEAST.get(name, -LARGEST)
        if isinstance(value, int | float) and not least <= value <= LARGEST:  # NaN is, too
            wanted = f"from {least:g} " if name in LEAST else ""
            raise ConfigError(f"{name}={value} is out of range: give a finite number {wanted}up to {LARGEST:.2g}.")
        if value == "":
            raise ConfigError(f"{name} is empty: give a value, or leave it out.")
    known = {f"tune.{each.name}" for each in fields(TuneConfig)}
    for name in {f"tune.{key}" for key in cfg.get("tune", ())} - known:
        raise ConfigError(no_setting(name, known))
    usual = {each.name: each.default for each in fields(TrainConfig)}
    references = str(flat(cfg, READERS, resolve=False).values())
    for name, reader in READERS.items():
        if name in cfg and cfg[name] != usual[name] and f"${{{name}}}" not in references:
            raise ConfigError(f"{name}={cfg[name]} has no meaning here: it is for {reader}. Leave it out.")


def flat(cfg: DictConfig, left_out: Collection[str] = (), resolve: bool = True) -> dict[str, Any]:
    """{"topology.r": 3} for {"topology": {"r": 3}}, without the names `left_out` and what is below them."""
    plain = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(plain, dict)
    found: dict[str, Any] = {}
    stack = [(str(key), value) for key, value in plain.items()]
    while stack:
        key, value = stack.pop()
        if key in left_out:
            continue
        if isinstance(value, dict):
            stack += [(f"{key}.{k}", v) for k, v in value.items()]
        else:
            found[key] = value
    return found
