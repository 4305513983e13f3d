"""The summary of a finished run: one record, which `summary.json` holds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hmtl.communication import Communicator
from hmtl.communication.prices.pricing import added_by_secure_sums
from hmtl.mtl import Algorithm
from hmtl.training.history import Measurements, is_evaluated

WORST_USERS = 10
"""Number of users that a summary names."""
WARM = 2.0
"""A first round that computes so many times as long as later ones has compiled code."""
OF_ONE_ROUND = ("round", "users", "empty")
"""Measurements of a round that, like its seconds, say nothing about the run."""
OF_ALL_ROUNDS = ("bits_total",)
"""Measurements that count all rounds so far."""


UserRow = dict[str, str | int | float | None]
"""A line of `users.csv`: `user`, `train_rows`, `test_rows` and measures; a measure that is undefined is None."""


@dataclass(frozen=True)
class Time:
    """Seconds of a whole run, the set-up included (see `measure_round`), and the plans made between rounds.

    If the first round computed more than `WARM` times as long as the median of the others, code was compiled in it:
    `warm_up_s` of `total_s`, and `uncoded_warm_up_s` of `uncoded_total_s`, are what it took beyond the median.
    """

    local_s: float
    compute_s: float
    communication_s: float
    total_s: float
    uncoded_total_s: float
    uncoded_communication_s: float
    planning_s: float
    plans: int
    warm_up_s: float = 0.0
    uncoded_warm_up_s: float = 0.0

    @property
    def warm(self) -> "Time":
        """The same without the warm-up."""
        uncoded = self.uncoded_total_s - self.uncoded_warm_up_s
        compute, total = self.compute_s - self.warm_up_s, self.total_s - self.warm_up_s
        return replace(self, compute_s=compute, total_s=total, uncoded_total_s=uncoded)


class Summary(BaseModel):
    """What a run was and what it achieved: the content of `summary.json`.

    An optional field is None if it does not apply to the run, and its key is then absent from the file. Further keys
    are the last measurements (`bits_total`), or those of the round whose models the run hands out (`primal`,
    `test_error`, ...), and further settings of the algorithm (`mu`).

    Attributes:
        r: mean number of relays that hear a user, over all rounds.
        aggregators: who computes the models: "server", which also learns sums, or relays, which "server" may precede.
        wire: the format in which numbers travel; None: their own type.
        rates: the rates of the links, in words, from which the time of communication follows.
        V_bits: bits of an IV.
        loads: measured load of each tier [IVs per round].
        loads_theory: the same by formula, for rounds in which all users take part.
        loads_uncoded: the same for plain forwarding.
        bounds: lower bounds of the loads of schemes in which the same nodes learn the same IVs or sums.
        handover_bits: bits of state sent to relays that had missed rounds.
        bits_per_number: bits of a number in the rows of each tier, if sums travel and these differ.
        adding: relays that send sums to the server, if sums travel.
        pieces: pieces of a row of sums, each as long as a share; 1: relays send whole rows.
        secure: what secure sums promise (see `Secure.describe`), and the `overhead` that they add to a round in which
            all users take part [bits by tier]; absent if sums are not secure.
        why: why sums travel, although the communicator was to code.
        note: remarks on what travels, such as that numbers are rounded.
        error_measure: what the errors measure.
        passes: local passes over a user's rows per round.
        omega_learned: whether Ω was updated at least once.
        models_after: number of rounds after which the models were the best and are handed out; None: always the last.
        stopped_early: whether the validation error ended the run, see `TrainerSettings.early_stopping`.
        empty_rounds: number of rounds in which nobody counted, see `Outcome.empty`.
        clip, noise, randomness: see `hmtl.mtl.privacy.Privacy`.
        epsilon, delta: differential privacy of all rounds against those who see the models, but do not know who else
            took part in which round, see `hmtl.training.accountant.Accountant`.
        epsilon_sample_known: the same against those who know it, such as relays and server.
        against: which of both `privacy.epsilon` limits: that of "outsiders", or the larger one for "everyone".
        baseline: errors of users who learn alone, see `hmtl.training.baseline`.
        metrics: "sums" if only sums over users were measured, so that there are no worst users; None: each user was.
        worst_users: users with the largest errors.
        users, links: the content of `users.csv`, and of `links.csv` as a DataFrame, of a run that has just ended; they
            are not in the file.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    K: int
    H: int
    r: float
    communicator: str
    scheme: str
    aggregators: list[int | str] | str
    medium: str
    wire: str | None = None
    rates: str | None = None
    V_bits: int
    loads: dict[str, float]
    loads_theory: dict[str, float]
    bounds: dict[str, float]
    loads_uncoded: dict[str, float] | None = None
    handover_bits: int | None = None
    bits_per_number: dict[str, float] | None = None
    adding: list[int | str] | None = None
    pieces: int | None = None
    last_hop: str | None = None
    secure: dict[str, Any] | None = None
    why: str | None = None
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
    models_after: int | None = None
    stopped_early: bool | None = None
    empty_rounds: int | None = None
    epsilon: float | None = None
    epsilon_sample_known: float | None = None
    against: str | None = None
    delta: float | None = None
    clip: float | None = None
    noise: float | None = None
    randomness: str | None = None
    baseline: dict[str, float] | None = None
    metrics: str | None = None
    time: Time
    worst_users: list[UserRow]
    users: list[UserRow] = Field(default=[], exclude=True)
    links: Any = Field(default=None, exclude=True)

    @property
    def figures(self) -> dict[str, Any]:
        """The further keys."""
        return self.model_extra or {}

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        content = {key: value for key, value in self.model_dump().items() if value is not None}
        content["worst_users"] = content.pop("worst_users")  # the last key
        return content


def summarize(
    algorithm: Algorithm,
    communicator: Communicator,
    history: Sequence[Measurements],
    users: Sequence[UserRow],
    best: int | None = None,
    **settings: Any,
) -> Summary:
    """Return the summary of a run.

    Args:
        algorithm, communicator, history: of the run.
        users: measures of each user.
        best: the round whose models the run hands out, see `Trainer.best`.
        settings: further fields of the summary, such as `dataset` and `seed`.
    """
    last = next((row for row in reversed(history) if is_evaluated(row)), {}) | history[-1]
    if best is not None:
        last |= history[best] | {name: last[name] for name in OF_ALL_ROUNDS if name in last}
    of_one_round = {key for key in last if key in OF_ONE_ROUND or key.endswith("_s") or "/" in key}
    figures: dict[str, Any] = {
        key: value for key, value in last.items() if key not in of_one_round and value == value
    }  # not NaN
    described = communicator.describe()
    if "secure" in described:
        described["secure"]["overhead"] = added_by_secure_sums(communicator)
    return Summary.model_construct(
        **described,
        **algorithm.describe(),
        **(figures | settings),  # ε also of sums that were released before a run was killed
        K=communicator.topology.K,
        H=communicator.topology.H,
        rounds=len(history),
        models_after=None if best is None else best + 1,
        empty_rounds=sum(int(row["empty"]) for row in history) or None,
        time=_time(communicator, history),
        users=users,
        links=communicator.ledger.table(),
        worst_users=sorted(filter(is_evaluated, users), key=user_error, reverse=True)[:WORST_USERS],
    )


def _time(communicator: Communicator, rows: Sequence[Measurements]) -> Time:
    sending, uncoded = communicator.setup_seconds

    def total(name: str, setup: float = 0.0) -> float:
        return math.fsum([setup, *(row[name] for row in rows)])

    compute, communication = total("compute_s"), total("communication_s", sending)
    computed = [[row["compute_s"], row["uncoded_s"] - row["uncoded_communication_s"]] for row in rows]
    (first, learning), (usual, usual_learning) = computed[0], map(median, zip(*(computed[1:] or computed), strict=True))
    is_cold = first > WARM * usual
    return Time(
        local_s=total("local_s"),
        compute_s=compute,
        communication_s=communication,
        total_s=compute + communication,
        uncoded_total_s=total("uncoded_s", uncoded),
        uncoded_communication_s=total("uncoded_communication_s", uncoded),
        planning_s=communicator.planning.seconds,
        plans=communicator.planning.plans,
        warm_up_s=is_cold * (first - usual),
        uncoded_warm_up_s=is_cold * (learning - usual_learning),
    )


def user_rows(algorithm: Algorithm, measured: Mapping[str, Tensor]) -> list[UserRow]:
    """Return the rows of all users, and the measures among what `Users.measure` returned, if there are any."""
    problem = algorithm.problem
    columns: dict[str, Iterable[str | int | float | None]] = {
        "user": [task.name for task in problem.everybody],
        "train_rows": [task.y_train.shape[0] for task in problem.everybody],
        "test_rows": [task.y_test.shape[0] for task in problem.everybody],
    }
    for name in (f"{split}_{measure}" for measure in problem.measures for split in ("train", "test")):
        if name in measured:
            values = [None if math.isnan(value) else value for value in measured[name].tolist()]
            columns[name] = values + [None] * (problem.K - len(values))  # only hosts measure their users
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def user_error(user: UserRow) -> float:
    """Return the error by which users are ranked: on test rows if there are any, else on training rows; 0: unknown."""
    error = user.get("test_error")
    return float((user.get("train_error") or 0.0) if error is None else error)
