"""The settings at the root of a configuration: their types, and checks that need no objects.

The values are in `conf/`, where a comment says what each means.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf

from hmtl.config.targets import no_setting
from hmtl.errors import ConfigError

INT64_MAX = 2**63 - 1
"""The largest whole number that an array can hold."""
SMALLEST = {
    "rounds": 1,
    "checkpoint_every": 1,
    "evaluate_every": 1,
    "seed": 0,
    "V_bits": 1,
    "gap_tolerance": 0.0,
    "early_stopping": 1,
    "validation_fraction": 0.0,
}
"""The smallest value of settings that no part checks."""
READERS = {
    "scheme": "communicator=coded",
    "aggregators": "communicator=coded or sums",
    "sums": "communicator=sums",
    "secure": "communicator=sums",
    "wire": "a communicator that has wire=${wire}",
    "lam": "a regularizer or algorithm that has lam=${lam}",
    "d": "topology=heterogeneous",
}
"""Settings that have an effect only if a chosen part refers to them."""
PLANNED = ("wire", "secure")
"""Those of them that a plan reads itself."""


@dataclass
class NetworkConfig:
    """What `hmtl.train` and `hmtl.plan` share: a topology and the links on it."""

    K: int | None = MISSING
    H: int | None = MISSING
    r: float | None = MISSING
    d: float = MISSING
    seed: int = MISSING
    topology: dict[str, Any] = MISSING
    network: dict[str, Any] = MISSING
    output_dir: str = MISSING


@dataclass
class TuneConfig:
    """What only `hmtl.tune` uses."""

    folds: int = MISSING
    grid: Any = None


@dataclass
class PrivacyConfig:
    """Differential privacy of the sums over users; see `hmtl.config.privacy`."""

    clip: float | None = MISSING
    noise: float | None = MISSING
    epsilon: float | None = MISSING
    delta: float = MISSING
    share: float = MISSING
    randomness: str = MISSING
    against: str = MISSING


@dataclass
class TrainConfig(NetworkConfig):
    """Root of `conf/config.yaml`."""

    rounds: int = MISSING
    lam: float = MISSING
    reduction: str = MISSING
    frozen: str = MISSING
    device: str = MISSING
    fraction_bits: int = MISSING
    scheme: str = MISSING
    aggregators: Any = MISSING
    sums: str = MISSING
    secure: bool = MISSING
    gap_tolerance: float = MISSING
    checkpoint_every: int = MISSING
    evaluate_every: int = MISSING
    evaluate: list[str] = MISSING
    metrics: str = MISSING
    baseline: str | None = MISSING
    validation_fraction: float = MISSING
    early_stopping: int | None = MISSING
    resume: str | None = MISSING
    wire: str | None = MISSING
    communicator: dict[str, Any] = MISSING
    algorithm: dict[str, Any] = MISSING
    loss: dict[str, Any] = MISSING
    regularizer: dict[str, Any] = MISSING
    solver: dict[str, Any] = MISSING
    measures: dict[str, Any] = MISSING
    dataset: dict[str, Any] = MISSING
    partition: dict[str, Any] = field(default_factory=dict)
    participation: dict[str, Any] = MISSING
    privacy: PrivacyConfig = MISSING
    tune: TuneConfig = MISSING
    engine: dict[str, Any] = MISSING
    logger: dict[str, Any] = MISSING


@dataclass
class PlanConfig(NetworkConfig):
    """Root of `conf/plan.yaml`."""

    V_bits: int = MISSING
    wire: str | None = MISSING
    secure: bool = MISSING
    colluding: float = MISSING
    fail: str | None = MISSING
    format: str = MISSING


@dataclass
class PredictConfig:
    """Root of `conf/predict.yaml`."""

    run: str = MISSING
    data: str = MISSING
    user: str | None = MISSING
    task: str | None = MISSING
    output: str | None = MISSING


def check_root(cfg: DictConfig, usual: DictConfig) -> None:
    """Check the root settings: names, ranges, and settings that the chosen parts do not use.

    `usual` has the values of the primary configuration file.
    """
    for name, value in ((str(key), cfg[key]) for key in cfg):
        smallest = SMALLEST.get(name, -INT64_MAX)
        if isinstance(value, int | float) and not smallest <= value <= INT64_MAX:  # true of NaN, too
            wanted = f"at least {smallest:g}" if name in SMALLEST else "finite"
            raise ConfigError(f"{name}={value} is out of range: it must be {wanted} and at most {INT64_MAX:.2g}.")
        if value == "":
            raise ConfigError(f"{name} is empty. Set a value, or leave it out.")
    if cfg.get("early_stopping") and not cfg.validation_fraction:
        raise ConfigError(
            "early_stopping needs validation rows, but validation_fraction is 0. Set it to 0.1, for example."
        )
    for name, first, other in (
        ("metrics", "users", "sums"),
        ("baseline", "local", None),
        ("frozen", "eval", "train"),
    ):
        if cfg.get(name, first) not in (first, other):
            raise ConfigError(f"{name}={cfg[name]} is unknown. Choose {first} or {other or 'null'}.")
    if (wrong := set(cfg.get("evaluate", ["test"])) ^ {"test"}) - {"train", "tuned"}:
        raise ConfigError(
            f"evaluate={list(cfg.evaluate)}: {min(wrong)} is unknown or missing. Choose test, and train or tuned."
        )
    known = [each.name for each in fields(TrainConfig if "algorithm" in cfg else PlanConfig)]
    groups = {"tune": TuneConfig, "privacy": PrivacyConfig}
    known += [f"{group}.{each.name}" for group, settings in groups.items() for each in fields(settings)]
    for name in (*map(str, cfg), *(f"{group}.{key}" for group in groups for key in cfg.get(group, ()))):
        if name not in known:
            raise ConfigError(no_setting(name, known))
    references = str(flat(cfg, READERS, resolve=False).values())
    for name, reader in READERS.items():
        read = f"${{{name}}}" in references or (name in PLANNED and "algorithm" not in cfg)
        if name in cfg and cfg[name] != usual[name] and not read:
            value = str(cfg[name]).lower() if isinstance(cfg[name], bool) else cfg[name]
            raise ConfigError(f"{name}={value} has no effect: it is for {reader}. Choose that, or leave {name} out.")


def flat(cfg: DictConfig, omitted: Collection[str] = (), resolve: bool = True) -> dict[str, Any]:
    """Return {"topology.r": 3} for {"topology": {"r": 3}}, without settings at or below the names `omitted`."""
    values: dict[str, Any] = {}
    stack = list(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=resolve)).items())
    while stack:
        key, value = stack.pop()
        if key in omitted:
            continue
        if isinstance(value, dict):
            stack += [(f"{key}.{k}", v) for k, v in value.items()]
        else:
            values[key] = value.__qualname__ if callable(value) else value
    return values
