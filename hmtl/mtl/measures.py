"""Measures of the users' predictions on their own rows, and their summaries over users.

K users, N rows of all users, one user after the other, C classes. A user for whom a measure is undefined has the value
NaN, and summaries leave this user out.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.losses import Loss

Measure = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps predictions [N] or [N, C], targets y [N] and the users' numbers of rows [K] to values [K]."""
SUMMARIES = ("_weighted", "_median", "_worst", "_users")
"""Ends of the names of summaries, see `summarize`."""
ERROR_NAME = re.compile(r"(\w+_)?(train|test|validation)_(balanced_)?error(_weighted|_median|_worst)?")
"""Names of errors, which are shares of rows or, if the targets are numbers, mean squares."""
OwnMeasure = Callable[..., float]
"""Maps a user's predictions [n] or [n, C] and targets [n], as NumPy arrays, to a number."""


def measures_for(loss: Loss, own: Mapping[str, OwnMeasure], outputs: int) -> dict[str, Measure]:
    """Return the measures by name: the error, for classes the balanced error, for two classes the AUC, and own ones.

    Raises:
        ConfigError: an own measure has the name of another one or of a summary, or one that is not an identifier.
    """

    def error(predictions: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        return totals(loss.error(predictions, y), counts) / counts

    def balanced(predictions: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        number, C = (y.long(), predictions.shape[-1]) if loss.classes else ((y > 0).long(), 2)
        return balanced_error(loss.error(predictions, y), number, counts, C)

    measures: dict[str, Measure] = {"error": error}
    if loss.classes or loss.labels == (-1.0, 1.0):
        measures["balanced_error"] = balanced
    if loss.labels == (-1.0, 1.0):
        measures["auc"] = auc
    elif loss.classes and outputs == 2:
        measures["auc"] = lambda p, y, counts: auc(loss.scores(p)[:, 1] - loss.scores(p)[:, 0], y, counts)
    for name, function in own.items():
        if name in {*measures, "r2"} or name.endswith(SUMMARIES) or not name.isidentifier():
            raise ConfigError(
                f"measures.{name}: the name is taken, ends like that of a summary ({', '.join(SUMMARIES)}), or is not "
                "an identifier. Choose another one."
            )
        measures[name] = _by_user(name, function, loss)
    return measures


def shares(measurements: Iterable[str]) -> set[str]:
    """Return the names of errors that are shares of rows: those of all errors if some are balanced, else none."""
    errors = set(filter(ERROR_NAME.fullmatch, measurements))
    return errors if any("balanced_error" in name for name in errors) else set()


def totals(values: Tensor, counts: Tensor) -> Tensor:
    """Return the sum of values [N] over each user's rows [K], float64."""
    return torch.segment_reduce(values.double(), "sum", lengths=counts)


def balanced_error(errors: Tensor, number: Tensor, counts: Tensor, C: int) -> Tensor:
    """Return the mean over a user's classes of the share misclassified in each class [K]; absent classes do not count.

    Args:
        errors: 1 for each misclassified row, else 0 [N].
        number: class numbers [N] in 0..C−1.
        counts: numbers of rows [K].
        C: number of classes.
    """
    K = len(counts)
    which = C * torch.arange(K, device=counts.device).repeat_interleave(counts) + number
    rows, wrong = (torch.bincount(which, weights, K * C) for weights in (None, errors.double()))
    return (wrong / rows).view(K, C).nanmean(1)


def auc(predictions: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """Return the area under the ROC curve [K] for y = ±1, or 0 and 1; undefined for users with rows of one class only.

    It is the probability that a row with y = 1 has a larger prediction than one of the other class; ties count half.
    """
    N, positive = len(y), y > 0
    before = (counts.cumsum(0) - counts).repeat_interleave(counts)  # rows of other users
    place = torch.unique(predictions, return_inverse=True)[1]
    scores = before * N + place  # in the order of users, then of predictions
    in_order = scores.sort().values
    below, up_to = (torch.searchsorted(in_order, scores, right=right) for right in (False, True))
    ranks = (below + up_to + 1).double() / 2 - before  # from 1; ties share their mean rank
    n_positive = totals(positive, counts)
    wins = totals(torch.where(positive, ranks, 0), counts) - n_positive * (n_positive + 1) / 2
    return wins / (n_positive * (counts - n_positive))


def summarize(name: str, values: Tensor, counts: Tensor) -> dict[str, float]:
    """Return the mean of values [K] over users, the mean weighted by rows, the median, and the worst user's value.

    If a measure is undefined for some users with rows, the number of users that count is in the result, too; if it is
    undefined for all of them, its values are NaN.

    Args:
        name: name of the values, and beginning of all names in the result. Large values are bad if it ends with
            "error" or "loss", otherwise small ones.
        values: the values [K].
        counts: numbers of rows [K].
    """
    figures = means(name, terms_of_means(values, counts).sum(0))
    defined = values[(counts > 0) & ~values.isnan()].double()
    each = (math.nan, math.nan)
    if len(defined):
        each = float(defined.quantile(0.5)), float(defined.max() if name.endswith(("error", "loss")) else defined.min())
    users = {key: figures.pop(key) for key in list(figures) if key == f"{name}_users"}  # the last one
    return figures | dict(zip((f"{name}_median", f"{name}_worst"), each, strict=True)) | users


def terms_of_means(values: Tensor, counts: Tensor) -> Tensor:
    """Return what users add to the sums that `means` needs [K, 5], for values [K] and numbers of rows [K]."""
    defined = (counts > 0) & ~values.isnan()
    own, n = torch.where(defined, values, 0).double(), torch.where(defined, counts, 0).double()
    return torch.stack([defined.double(), own, n, n * own, (counts > 0).double()], dim=1)


def means(name: str, sums: Tensor) -> dict[str, float]:
    """Return the mean over users and the mean weighted by rows, see `summarize`, from sums of `terms_of_means` [5]."""
    users, total, rows, weighted, with_rows = sums.tolist()
    both = (total / users, weighted / rows) if users else (math.nan, math.nan)
    figures = dict(zip((name, f"{name}_weighted"), both, strict=True))
    return figures | ({f"{name}_users": int(users)} if users < with_rows else {})


def _by_user(name: str, function: OwnMeasure, loss: Loss) -> Measure:
    """Return a measure that calls a function for each user that has rows."""

    def measure(predictions: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        values = torch.full((len(counts),), math.nan, dtype=torch.float64)
        lengths = counts.tolist()
        both = (torch.split(each.cpu(), lengths) for each in (loss.scores(predictions), y))
        for k, pair in enumerate(zip(*both, strict=True)):
            if not lengths[k]:
                continue
            try:
                values[k] = float(function(*(each.numpy() for each in pair)))
            except Exception as error:  # a function of a user's own may raise anything
                raise ConfigError(
                    f"measures.{name} cannot be computed ({type(error).__name__}: {error}). It gets a user's "
                    "predictions and targets, and has to return a number; nan if it is undefined."
                ) from error
        return values

    return measure
