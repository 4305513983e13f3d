"""The summary of a finished run: one record, which `summary.json` holds."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from hmtl.communication import Communicator
from hmtl.mtl import Algorithm
from hmtl.training.history import Measurements

WORST_USERS = 10
"""Number of users that a summary names."""
SECONDS = ("local_s", "compute_s", "communication_s", "uncoded_s", "uncoded_communication_s")
OF_ONE_ROUND = ("round", "users", "empty", *SECONDS)
"""Measurements of a round that say nothing about the run."""


@dataclass(frozen=True)
class UserErrors:
    """Rows and errors of a user, a line of `users.csv`; an error without rows is None."""

    user: str
    train_rows: int
    test_rows: int
    train_error: float | None
    test_error: float | None

    @property
    def error(self) -> float:
        """The error by which users are ranked: on test rows if there are any, else on training rows; 0: unknown."""
        return next((error for error in (self.test_error, self.train_error) if error is not None), 0.0)


@dataclass(frozen=True)
class Time:
    """Seconds of a whole run, the set-up included, and the number of plans made between rounds.

    Seconds of nodes are CPU time; seconds of communication follow from the bits on each link.
    """

    local_s: float
    compute_s: float
    communication_s: float
    total_s: float
    uncoded_total_s: float
    uncoded_communication_s: float
    planning_s: float
    plans: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run was and what it achieved; the fields are the keys of `summary.json`.

    An optional field is None if it does not apply to the run, and its key is then absent from the file.

    Attributes:
        r: mean number of relays that hear a user, over all rounds.
        aggregators: the relays that compute the models, or "server".
        V_bits: bits of an IV.
        loads: measured load of each tier [IVs per round].
        loads_theory: the same by formula, for rounds in which all users take part.
        loads_uncoded: the same for plain forwarding.
        bounds: lower bounds of the loads.
        handover_bits: bits of state sent to relays that had missed rounds.
        adding: relays that compute sums, if sums travel.
        error_measure: what the errors measure.
        passes: local passes over a user's rows per round.
        omega_learned: whether Ω was updated at least once.
        empty_rounds: number of rounds without an aggregator.
        figures: the last measurements (`primal`, `test_error`, `bits_total`, ...) and further settings of the
            algorithm (`mu`) by name; in the file they stand beside the other keys.
        worst_users: users with the largest errors.
    """

    K: int
    H: int
    r: float
    communicator: str
    scheme: str
    aggregators: list[int] | str
    medium: str
    V_bits: int
    loads: dict[str, float]
    loads_theory: dict[str, float]
    bounds: dict[str, float]
    loads_uncoded: dict[str, float] | None = None
    handover_bits: int | None = None
    adding: list[int] | None = None
    last_hop: str | None = None
    note: str | None = None
    algorithm: str
    loss: str
    error_measure: str
    regularizer: str | None = None
    lam: float | None = None
    passes: float | None = None
    omega_learned: bool | None = None
    dataset: str
    seed: int
    rounds: int
    empty_rounds: int | None = None
    time: Time
    figures: dict[str, Any] = field(default_factory=dict)
    worst_users: list[UserErrors]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        content = asdict(self)
        figures = content.pop("figures")
        worst = content.pop("worst_users")
        known = {key: value for key, value in content.items() if value is not None}
        return {**known, **figures, "worst_users": worst}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the summary of that content.

        Raises:
            ValueError: a key is missing or malformed.
        """
        try:
            nested = {
                "time": Time(**content["time"]),
                "worst_users": [UserErrors(**user) for user in content["worst_users"]],
            }
            own = {each.name for each in fields(cls)} & content.keys()
            figures = {key: value for key, value in content.items() if key not in own}
            return cls(**({key: content[key] for key in own} | nested), figures=figures)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a summary: {error}") from error


def summarize(
    algorithm: Algorithm,
    communicator: Communicator,
    history: Iterable[Measurements],
    users: Iterable[UserErrors],
    **settings: Any,
) -> Summary:
    """Return the summary of a run.

    Args:
        algorithm: what was learned.
        communicator: how messages travelled.
        history: the rows of all rounds.
        users: errors of all users.
        settings: the fields that follow from the configuration alone: `dataset` and `seed`.
    """
    rows = list(history)
    described = {**communicator.describe(), **algorithm.describe(), **settings}
    own = {each.name for each in fields(Summary)} & described.keys()
    last = next((row for row in reversed(rows) if "train_error" in row), {}) | rows[-1]
    figures = {key: value for key, value in last.items() if "/" not in key and key not in OF_ONE_ROUND}
    return Summary(
        K=communicator.topology.K,
        H=communicator.topology.H,
        rounds=len(rows),
        empty_rounds=sum(int(row["empty"]) for row in rows) or None,
        time=_time(communicator, rows),
        figures={key: value for key, value in described.items() if key not in own} | figures,
        worst_users=sorted(users, key=lambda user: -user.error)[:WORST_USERS],
        **{key: described[key] for key in own},
    )


def _time(communicator: Communicator, rows: Iterable[Measurements]) -> Time:
    planning = communicator.planning
    sending, uncoded = communicator.setup_seconds
    setup = {"communication_s": sending, "uncoded_s": uncoded, "uncoded_communication_s": uncoded}
    total = {name: math.fsum([setup.get(name, 0.0), *(row[name] for row in rows)]) for name in SECONDS}
    return Time(
        local_s=total["local_s"],
        compute_s=total["compute_s"],
        communication_s=total["communication_s"],
        total_s=total["compute_s"] + total["communication_s"],
        uncoded_total_s=total["uncoded_s"],
        uncoded_communication_s=total["uncoded_communication_s"],
        planning_s=planning.seconds,
        plans=planning.plans,
    )


def user_errors(algorithm: Algorithm, errors: Mapping[str, list[float]]) -> list[UserErrors]:
    """Return rows and errors of all users.

    Args:
        algorithm: what was learned.
        errors: errors of all users for the splits "train" and "test"; [] if no round was evaluated: they are measured.
    """
    if not errors["train"]:
        measured = algorithm.users.measure()
        errors = {split: measured[f"{split}_error"].tolist() for split in ("train", "test")}
    users = []
    for k, task in enumerate(algorithm.problem.everybody):
        rows = {"train": len(task.y_train), "test": len(task.y_test)}
        known = {split: errors[split][k] if rows[split] and k < len(errors[split]) else None for split in rows}
        users.append(UserErrors(task.name, rows["train"], rows["test"], known["train"], known["test"]))
    return users
