"""The trained models of all users, with the preprocessing that was fitted, so that they predict on raw rows.

Shapes: K users, n rows, d raw features, C classes, m numbers per model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from torch import Tensor, nn
from torch.utils.data import default_convert

from hmtl.data import Scaling, Task
from hmtl.data.arrays import features
from hmtl.data.items import described, only_entry
from hmtl.data.sparse import finite
from hmtl.data.table_features import TableFeatures
from hmtl.errors import ConfigError, DataError, did_you_mean, few, reason
from hmtl.io.files import add_digest, check_digest, replacing
from hmtl.io.npz import load_arrays, open_file
from hmtl.mtl import Algorithm, Dense, MixedEffects
from hmtl.mtl.networks.calls import called, scores_of, without_gradients
from hmtl.mtl.networks.flat import FlatModel, MakeModel, loaded, maker_of, narrowed
from hmtl.mtl.symmetric import LowRank, Symmetric

OMEGA = "Omega."  # before the names of the parts of Ω in a file
BY_USER = "W", "mean", "scale"  # arrays with a row for each user; a file has the distinct rows
ROWS = "_rows"  # after their names: which row is that of each user [K]


class UserModel(nn.Module):
    """A user's model for raw rows; the fitted preprocessing is part of its state.

    Maps raw rows [n, ...] to scores, [n] or, for several classes, [n, C].

    Args:
        learned: module that maps preprocessed rows [n, D], or [n, ...] with `shape`, to [n, C].
        scaling: the scaling that was fitted for this user.
        shape: shape of a row as `learned` expects it.

    Attributes:
        mean, scale: [d], see `Scaling`.
        target_mean: number added to the scores, which are then in the units of y.
    """

    mean: Tensor
    scale: Tensor
    target_mean: Tensor

    def __init__(self, learned: nn.Module, scaling: Scaling, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.learned = learned
        self._shape = shape
        self._intercept = scaling.intercept
        self.register_buffer("mean", scaling.mean)
        self.register_buffer("scale", scaling.scale)
        self.register_buffer("target_mean", torch.tensor(scaling.target_mean, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        rows = rows if rows.dtype == torch.float32 else rows.double()  # the dtypes of a Task
        rows = Scaling(self.mean, self.scale, self._intercept).features(rows)
        rows = rows.to(next(self.learned.parameters()))
        scores = scores_of(self.learned(rows.view(x.shape[0], *self._shape)))  # torch.export would take len(x) as fixed
        return (scores if scores.shape[1] > 1 else scores.squeeze(1)) + self.target_mean


@dataclass(frozen=True, eq=False)
class Models:
    """One model for each user, as `hmtl.load_run` and `MultiTask.models_` provide it.

    Args:
        names: names of the K users, or tasks.
        W: [K, m]: the parameters of networks, or C weight vectors of D = d or d + 1 numbers each, one after the other.
        mean, scale: mean and scale of the features, [K, d].
        target_mean: mean that was subtracted from y, [K].
        intercept: whether the last of the D weights is an intercept.
        labels: names of the classes, [C] or, for two classes, [2]; empty if numbers are predicted.
        seed: seed of the networks' untrained numbers.
        shape: shape of a raw row: [d], or that of an image with d pixels; () if networks read rows as they are.
        columns: names of the features, [d], or of the raw columns of `table`; empty if they have none.
        maker: function that creates the network; None: the models are linear.
        table: how raw rows with categories or missing numbers become features; None: they are the features.
        outputs: number of scores of a row; 0: one for each class if there are more than two, else 1.
        network: outline of the network, see `FlatModel.outline`; empty if the models are linear.
        relationship: the parts of Ω, see `Symmetric`; empty if it was not learned.
    """

    names: tuple[str, ...]
    W: NDArray[Any]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    target_mean: NDArray[np.float64]
    intercept: bool
    labels: NDArray[Any]
    seed: int
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    maker: MakeModel | None = None
    table: TableFeatures | None = None
    outputs: int = 0
    network: str = ""
    relationship: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __repr__(self) -> str:
        kind = "networks" if self.network else "linear models"
        what = few(list(map(str, self.labels))) or "numbers"
        return f"<{kind} of {len(self.names)} users ({few(self.names)}), which predict {what}>"

    @property
    def Omega(self) -> NDArray[np.float64] | None:
        """Ω after the last round, how the users' models are related [K, K]; None if it was not learned."""
        if not (parts := {name: torch.from_numpy(part) for name, part in self.relationship.items()}):
            return None
        return np.asarray((LowRank(**parts) if "U" in parts else Dense(**parts)).dense())

    def model(self, user: str) -> nn.Module:
        """Return a new module with this user's model, which maps raw rows, or their features by `table`, to scores.

        If the network was trained on rows as they are, it is the network itself.

        Raises:
            DataError: if there is no such user.
            ConfigError: if `maker` creates another network than the one that was trained.
        """
        k, C = self._number(user), self._outputs
        mean, scale, w = (torch.tensor(rows[k]) for rows in (self.mean, self.scale, self.W))
        scaling, D = Scaling(mean, scale, self.intercept, float(self.target_mean[k])), len(mean) + self.intercept
        if self.maker is not None:
            network, about = loaded(self.maker, self.network, w, self.seed), json.loads(self.network)
            return network.eval() if about["as_given"] else UserModel(network, scaling, tuple(about["shape"])).eval()
        layer = nn.Linear(D, C, bias=False, device="meta")  # draws no random weights
        layer.weight = nn.Parameter(w.view(C, D))
        return UserModel(layer, scaling, (D,)).eval()

    @property
    def _outputs(self) -> int:
        """How many scores a prediction has, C."""
        return self.outputs or (len(self.labels) if len(self.labels) > 2 else 1)

    def _number(self, user: str) -> int:
        """Return a user's number; raise DataError if there is no such user."""
        if user not in self.names:
            remedy = did_you_mean(str(user), self.names, f"Give one of {few(self.names)}.", repr)
            raise DataError(f"There is no user {user!r} among the {len(self.names)}. {remedy}")
        return self.names.index(user)

    def scores(self, user: str, x: ArrayLike) -> NDArray[Any]:
        """Return the scores of raw rows, [n] or, for several classes, [n, C].

        Predicted numbers are in the units of y.

        Args:
            user: name of the user.
            x: rows [n, d], which may be sparse, or images in their shape. Columns of a table such as a DataFrame are
                selected by the names that the model was trained with, if it has names; further columns are ignored. For
                networks that read rows as they are, a batch of inputs as a DataLoader makes it.

        Raises:
            DataError: if there is no such user, columns are missing, a value is not a finite number, rows are sparse
                and the models are networks, or a network does not work with them.
        """
        if not self.shape:
            return self._scores_of_items(self.model(user), x)
        rows = self.table.features(self.table.table(x, "x")) if self.table else features(x, "x", self.columns)
        if rows.shape == (0,):  # an empty list
            rows = rows.reshape(0, *self.shape)
        if rows.shape[1:] != self.shape:
            wanted = f"[n, d] with d={self.shape[0]}" if len(self.shape) == 1 else f"[n, {str(list(self.shape))[1:]}"
            raise DataError(f"x has shape {list(rows.shape)}, not {wanted}. Give raw rows.")
        if not (good := finite(rows if issparse(rows) else torch.from_numpy(rows))).all():
            raise DataError(f"x is NaN or infinite in row {int(good.int().argmin())} (from 0). Fix or drop such rows.")
        if issparse(rows):
            return self._sparse_scores(self._number(user), rows)
        model = self.model(user)
        scores: NDArray[Any] = without_gradients(lambda: model(torch.from_numpy(rows))).detach().numpy()
        return scores

    def _scores_of_items(self, model: nn.Module, x: Any) -> NDArray[Any]:
        """Return the scores of rows that the network reads as they are, a batch as the collate function returns it."""
        dtype = getattr(torch, json.loads(self.network).get("row_dtype", "float32"))
        inputs = narrowed(default_convert(x), dtype)  # type: ignore[no-untyped-call]
        try:
            try:
                output = without_gradients(lambda: called(model, inputs))
            except Exception:  # see below
                if not isinstance(inputs, Mapping):
                    raise
                output = without_gradients(lambda: called(model, only_entry(inputs)))  # as in training
        except Exception as error:  # a module is any code
            raise DataError(
                f"The model does not work with x, a batch of {described(inputs)} ({reason(error)}). Give a batch of "
                "inputs as in training, without targets."
            ) from error
        scores: NDArray[Any] = scores_of(output).detach().float().numpy()
        return scores

    def _sparse_scores(self, k: int, x: Any) -> NDArray[Any]:
        """Return the scores of sparse rows: the models are scaled, not the rows, so that these stay sparse."""
        if self.maker is not None:
            raise DataError("x is sparse, but the models are networks, which need dense rows. Give x.toarray().")
        w, d = self.W[k].reshape(self._outputs, -1), len(self.scale[k])
        scaled = w[:, :d] / self.scale[k]
        offset = w[:, d:].sum(1) - scaled @ self.mean[k] + self.target_mean[k]
        scores: NDArray[Any] = x @ scaled.T + offset
        return scores if self._outputs > 1 else scores[:, 0]

    def predict(self, user: str, x: ArrayLike) -> NDArray[Any]:
        """Return the predicted labels, or numbers in the units of y, for raw rows x [n, d], see `scores`: [n]."""
        scores = self.scores(user, x)
        if not len(self.labels):
            return scores
        classes = scores.argmax(1) if scores.ndim > 1 else (scores > 0).astype(int)
        predicted: NDArray[Any] = self.labels[classes]
        return predicted

    def save(self, path: Path) -> None:
        """Write the npz file that `load_models` reads: without the maker, which is code, and each distinct row once."""
        arrays = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("maker", "relationship")
        }
        for name in BY_USER:
            arrays[name], arrays[name + ROWS] = _distinct(arrays[name])
        arrays |= {OMEGA + name: part for name, part in self.relationship.items()}
        arrays["table"] = self.table.to_json() if self.table else ""
        with replacing(path) as file:
            np.savez(file, **arrays)
            add_digest(file)


def load_models(file: Path, maker: nn.Module | MakeModel | None, find_maker: Callable[[], MakeModel]) -> Models:
    """Return the models in a file that `Models.save` wrote; without a maker, networks need what `find_maker` returns.

    Raises:
        DataError: if the file is missing, damaged, or holds something else.
        ConfigError: if the models are linear and a maker is given.
    """
    try:
        with open_file(file) as stream:
            check_digest(stream)
        saved: dict[str, Any] = dict(load_arrays(file))
        saved["network"] = str(saved["network"])
        is_network = bool(saved["network"])
        for name in BY_USER:
            each, rows = saved[name], saved.pop(name + ROWS, np.arange(len(saved[name])))
            saved[name] = np.broadcast_to(each, (len(rows), *each.shape[1:])) if len(each) == 1 else each[rows]
        for name in ("names", "shape", "columns"):
            saved[name] = tuple(saved[name].tolist())
        saved |= {"intercept": bool(saved["intercept"]), "seed": int(saved["seed"])}
        saved["outputs"] = int(saved.get("outputs", 0))
        text = str(saved.pop("table", ""))
        parts = {name: saved.pop(name) for name in list(saved) if name.startswith(OMEGA)}
        saved["relationship"] = {name.removeprefix(OMEGA): part for name, part in parts.items()}
        models = Models(**saved, table=TableFeatures.from_json(text) if text else None)
        _check(models, is_network)
    except (OSError, LookupError, TypeError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise DataError(
            f"{file} does not hold the models of a run ({cause}). Give the folder of a finished run."
        ) from error
    if is_network:
        return replace(models, maker=find_maker() if maker is None else maker_of(maker))
    if maker is not None:
        raise ConfigError(f"{file} holds linear models. Leave model out.")
    return models


def _check(models: Models, is_network: bool) -> None:
    """Raise ValueError if the arrays do not match each other, or are not finite."""
    K, d, C = len(models.names), int(np.prod(models.shape)), models._outputs
    m = models.W.size // max(1, K) if is_network else C * (d + models.intercept)
    for name, shape in {"W": (K, m), "mean": (K, d), "scale": (K, d), "target_mean": (K,)}.items():
        array = getattr(models, name)
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, not {shape}")
        if not np.isfinite(array if array.strides[0] else array[:1]).all():
            raise ValueError(f"{name} is not finite")
    parts = dict(models.relationship)
    q = len(parts["C"]) if "U" in parts else K
    known: dict[str, tuple[int, ...]] = {"C": (q, q)} | ({"delta": (), "U": (K, q)} if "U" in parts else {})
    if parts and {name: part.shape for name, part in parts.items()} != known:
        raise ValueError(f"the parts of Ω have shapes {[part.shape for part in parts.values()]}")
    if not all(np.isfinite(part).all() for part in parts.values()):
        raise ValueError("Ω is not finite")
    if models.table and models.shape != (len(models.table.names),):
        raise ValueError(f"the table has {len(models.table.names)} features, not {list(models.shape)}")


def learned_omega(algorithm: Algorithm | MixedEffects) -> Symmetric | None:
    """Return the Ω that an algorithm has learned; None if it has not."""
    if not isinstance(algorithm, Algorithm) or algorithm.describe().get("omega_learned") is False:
        return None
    return algorithm.Omega if algorithm.problem.regularizer.learns else None


def models_of(
    algorithm: Algorithm | MixedEffects, W: Tensor | None = None, tasks: Sequence[Task] | None = None
) -> Models:
    """Return the models that an algorithm has trained.

    Args:
        algorithm: the algorithm.
        W: the models [m, K] if it does not hold all of them itself.
        tasks: the tasks of the users whose models these are; None: of all.
    """
    problem = algorithm.problem
    tasks = problem.everybody if tasks is None else tasks
    scalings = [task.scaling for task in tasks]
    labels: Any = tasks[0].labels
    if labels is None:
        labels = range(tasks[0].classes) if tasks[0].classes else problem.loss.labels or ()
    labels = np.asarray(labels)
    network: FlatModel | None = getattr(algorithm, "model", None)
    shape = problem.shape if len(problem.shape) > 1 else tasks[0].raw.x_train.shape[1:]
    Omega = learned_omega(algorithm) if tasks is problem.everybody else None
    return Models(
        names=tuple(task.name for task in tasks),
        W=(algorithm.W if W is None else W).T.detach().cpu().numpy(),
        mean=_stacked([scaling.mean for scaling in scalings]),
        scale=_stacked([scaling.scale for scaling in scalings]),
        target_mean=np.array([scaling.target_mean for scaling in scalings]),
        intercept=scalings[0].intercept,
        labels=labels.astype(str) if labels.dtype == object else labels,
        seed=algorithm.seed,
        shape=() if problem.items else tuple(shape),
        columns=tasks[0].columns or (),
        table=tasks[0].table.features if tasks[0].table else None,
        maker=network.make if network else None,
        outputs=problem.outputs,
        network=network.outline if network else "",
        relationship={name: part.cpu().numpy() for name, part in Omega.state_dict().items()} if Omega else {},
    )


def _stacked(rows: list[Tensor]) -> NDArray[np.float64]:
    """Return rows [K, d] as an array, of which all are one in memory if they are the same tensor."""
    if all(row is rows[0] for row in rows):
        return np.broadcast_to(rows[0].numpy(), (len(rows), len(rows[0])))
    return np.stack([row.numpy() for row in rows])


def _distinct(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the rows that differ, and the number of each user's row among them [K]."""
    if len(rows) and not rows.strides[0]:
        return rows[:1], np.zeros(len(rows), dtype=np.int64)
    number = dict[bytes, int]()
    own = np.array([number.setdefault(sha256(row.tobytes()).digest(), len(number)) for row in rows], dtype=np.int64)
    _, first = np.unique(own, return_index=True)
    return rows if len(first) == len(rows) else rows[first], own
