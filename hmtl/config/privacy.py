"""The settings `privacy`: checks that need no data, and the objects that follow from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from hmtl.config import targets
from hmtl.errors import ConfigError

if TYPE_CHECKING:
    from hmtl.mtl import Algorithm, Participation
    from hmtl.training.accountant import Accountant

PRIVACY_CHOICES = {"against": ("everyone", "outsiders"), "randomness": ("system", "seed")}


def check_privacy(cfg: DictConfig) -> None:
    """Raise ConfigError if settings of `privacy` are out of range, or do not fit each other or the chosen parts."""
    privacy = cfg.privacy
    if privacy.clip is None:
        if privacy.noise is not None or privacy.epsilon is not None:
            raise ConfigError("privacy.clip is not set, without which noise protects nobody. Set it, such as to 1.")
        return
    if (privacy.noise is None) == (privacy.epsilon is None):
        given = "neither is given" if privacy.noise is None else "both are given"
        raise ConfigError(f"privacy needs either noise or epsilon, but {given}. Set one of them.")
    for name in ("clip", "noise", "epsilon"):
        if privacy[name] is not None and not 0 < privacy[name] < math.inf:
            raise ConfigError(f"privacy.{name}={privacy[name]} is out of range: it must be above 0 and finite.")
    if not 0 < privacy.delta < 1:
        raise ConfigError(
            f"privacy.delta={privacy.delta} is not in (0, 1). Set it far below 1/K, such as to 1e-5: it is the "
            "probability with which privacy may fail."
        )
    if not 0 < privacy.share <= 1:
        raise ConfigError(f"privacy.share={privacy.share} is not in (0, 1]. Give a share of the users who are sampled.")
    for name, choices in PRIVACY_CHOICES.items():
        if privacy[name] not in choices:
            raise ConfigError(f"privacy.{name}={privacy[name]} is unknown. Choose {' or '.join(choices)}.")
    if not _sums(cfg):
        raise ConfigError("privacy protects users in sums only. Set communicator=sums, or privacy.clip=null.")
    if cfg.communicator.get("wire") is not None:
        raise ConfigError(
            f"wire={cfg.communicator.wire} with privacy: users would add what rounding left over to their next terms, "
            "which clipping does not bound. Set wire=null."
        )
    own = Path(cfg.resume or cfg.output_dir)
    own = own.parent if own.is_file() else own
    if privacy.randomness == "system" and own.resolve() != Path(cfg.output_dir).resolve():
        raise ConfigError(
            f"resume={cfg.resume}: with privacy, a run goes on in its own folder, where privacy.pt counts the sums "
            f"that it has released. Set hydra.run.dir={own}, or output_dir in Python."
        )
    from hmtl.mtl import Learner
    from hmtl.mtl.algorithms.base import not_bounded

    learner = targets.locate("algorithm._target_", cfg.algorithm["_target_"])
    is_learner = isinstance(learner, type) and issubclass(learner, Learner)
    if not is_learner and not targets.takes(cfg.algorithm["_target_"], "privacy"):
        raise not_bounded(cfg.algorithm["_target_"].rpartition(".")[2])


def build_accountant(cfg: DictConfig, participation: Participation, K: int) -> Accountant | None:
    """Return what accounts for the privacy of a run of K users, and says how users clip; None: no privacy.

    Raises:
        ConfigError: ε is too small, or δ too large.
    """
    if cfg.privacy.clip is None:
        return None
    if cfg.privacy.delta >= 1 / K:
        raise ConfigError(
            f"privacy.delta={cfg.privacy.delta} is not below 1/K for K={K} users: to publish the rows of one of "
            f"them would also count as private. Set it far below, such as to {0.01 / K:.0e}."
        )
    if participation.sampler != "uniform":
        raise ConfigError(
            f"privacy: participation.sampler={participation.sampler} samples some users more often, which ε does not "
            "count. Leave participation.sampler out."
        )
    from hmtl.mtl.privacy import Privacy
    from hmtl.training.accountant import Accountant, least_noise

    least = math.ceil(cfg.privacy.share * participation.sampled(K))

    def accountant(noise: float) -> Accountant:
        privacy, settings = Privacy(cfg.privacy.clip, noise, least, cfg.seed, cfg.privacy.randomness), cfg.privacy
        return Accountant(privacy, participation, K, settings.delta, settings.epsilon, settings.against)

    if cfg.privacy.noise is not None:
        return accountant(cfg.privacy.noise)
    return accountant(least_noise(accountant, cfg.rounds))


def match_accountant(accountant: Accountant, algorithm: Algorithm) -> None:
    """Tell the accountant whether users keep state that enters their terms, or refuse a limit for outsiders."""
    accountant.remembers = algorithm.remembers
    if accountant.remembers and accountant.limit is not None and accountant.against == "outsiders":
        raise ConfigError(
            f"privacy.against=outsiders: users of {type(algorithm).__name__} keep state that enters their terms, so "
            "sampling does not protect them more from outsiders. Set privacy.against=everyone."
        )


def _sums(cfg: DictConfig) -> bool:
    from hmtl.communication import Sums

    target = targets.locate("communicator._target_", cfg.communicator["_target_"])
    return isinstance(target, type) and issubclass(target, Sums)
