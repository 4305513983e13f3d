"""The models of a run, with what was fitted beside them, so that they predict on raw rows: `models.npz`.

K users, n rows and d raw features, C classes; m numbers in a model.
"""

import difflib
import math
import re
import shutil
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hmtl.config.checks import found
from hmtl.errors import ConfigError, DataError, few
from hmtl.io.files import replacing, write_json
from hmtl.io.npz import load_arrays

if TYPE_CHECKING:  # torch takes a second to import, and not everybody who imports hmtl predicts
    from torch import Tensor

    from hmtl.inference.user_model import UserModel
    from hmtl.mtl import Algorithm
    from hmtl.mtl.networks.flat import FlatModel, MakeModel


@dataclass(frozen=True, eq=False)
class Models:
    """One model for each user; see `load_run`.

    Args:
        names: of the K users, or their tasks.
        W: [K, m], m numbers of a network, or C scores of D weights each, one after the other, D = d or d + 1.
        mean, scale: [K, d], of the features.
        target_mean: [K].
        intercept: whether the last of the D weights is one.
        labels: [C] of several classes, [2] of two, empty where numbers are predicted.
        seed: of the network's other numbers.
        shape: of a raw row, [d] or that of an image, whose numbers count as d.
        columns: [d], what the features are called; empty where they have no names.
        maker: what makes the network; None where the models are linear.
    """

    names: tuple[str, ...]
    W: NDArray[Any] = field(repr=False)
    mean: NDArray[np.float64] = field(repr=False)
    scale: NDArray[np.float64] = field(repr=False)
    target_mean: NDArray[np.float64] = field(repr=False)
    intercept: bool
    labels: NDArray[Any]
    seed: int
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    maker: "MakeModel | None" = None

    def model(self, user: str) -> "UserModel":
        """A module of this user's own: raw rows to scores. Its state holds the preprocessing, too.

        Raises:
            DataError: no such user. ConfigError: `maker` makes another network.
        """
        import torch

        from hmtl.data import Scaling
        from hmtl.inference.user_model import UserModel, linear
        from hmtl.mtl.networks.flat import FlatModel

        if user not in self.names:
            near = difflib.get_close_matches(str(user), self.names, n=1)
            what = f"is {near[0]!r} meant?" if near else f"give one of {few(self.names)}."
            raise DataError(f"There is no user {user!r} among the {len(self.names)}: {what}")
        k, C = self.names.index(user), len(self.labels) if len(self.labels) > 2 else 1
        mean, scale, w = (torch.tensor(rows[k]) for rows in (self.mean, self.scale, self.W))
        scaling, D = Scaling(mean, scale, self.intercept, float(self.target_mean[k])), len(mean) + self.intercept
        if self.maker is None:
            return UserModel(linear(w.view(C, D)), scaling, (D,)).eval()
        shape = self.shape if len(self.shape) > 1 else ()
        flat = FlatModel(self.maker, torch.zeros(1, D), C, self.seed, shape)
        if len(flat.start) != len(w):
            raise ConfigError(f"model has {len(flat.start)} parameters, not {len(w)}. Give algorithm.model of the run.")
        flat.module.load_state_dict(flat.split(w), strict=False)  # what is not trained is as it was made
        return UserModel(flat.module, scaling, flat.shape).eval()

    def scores(self, user: str, x: ArrayLike) -> NDArray[Any]:
        """Scores of raw rows x [n, d] (images in their shape): [n], or [n, C] of several classes.

        Where numbers are predicted, they are in the units of y. Columns of a table (a DataFrame) go by their names, if
        those that the model was trained on had some: in any order, and others beside them are left out.

        Raises:
            DataError: no such user, other columns than it was trained on, or no finite number where one belongs.
        """
        import torch

        from hmtl.data.arrays import numbers

        model, rows = self.model(user), numbers(x, "x", self.columns)
        if rows.shape == (0,):  # a list of no rows
            rows = rows.reshape(0, *self.shape)
        if rows.shape[1:] != self.shape:
            wanted = f"[n, d] with d={self.shape[0]}" if len(self.shape) == 1 else f"[n, {str(list(self.shape))[1:]}"
            raise DataError(f"x has shape {list(rows.shape)}, not {wanted}. Give raw rows.")
        if (bad := ~np.isfinite(rows)).any():  # some label would come of it all the same
            row = int(np.argwhere(bad)[0, 0])
            raise DataError(f"x is NaN or infinite in row {row} (from 0). Fix or drop such rows.")
        with torch.no_grad():
            scores: NDArray[Any] = model(torch.from_numpy(rows)).numpy()
        return scores

    def predict(self, user: str, x: ArrayLike) -> NDArray[Any]:
        """Labels as the data had them, or numbers in the units of y, for raw rows x [n, d], see `scores`: [n]."""
        scores = self.scores(user, x)
        if not len(self.labels):
            return scores
        picked: NDArray[Any] = self.labels[scores.argmax(1) if scores.ndim > 1 else (scores > 0).astype(int)]
        return picked

    def save(self, path: Path) -> None:
        """Write what `load_run` reads, but for the maker, which is code."""
        arrays = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "maker"}
        with replacing(path) as file:
            np.savez(file, **arrays, network=self.maker is not None)

    def export(self, path: str | Path) -> None:
        """Write a new folder with each user's `model(user).state_dict()` as safetensors, and `users.json`.

        That file tells what else there is to know: each user's file, labels, columns and shape of a row.

        Raises:
            ConfigError: there is something of that name already, or safetensors is not installed.
        """
        try:
            from safetensors.torch import save_model
        except ImportError as error:
            raise ConfigError("Exporting needs safetensors: pip install 'hmtl[export]'.") from error
        path, places = Path(path), len(str(len(self.names) - 1))
        if path.exists():
            raise ConfigError(f"{path} exists: give the name of a new folder.")
        half = path.with_name(f"{path.name}.half")
        shutil.rmtree(half, ignore_errors=True)  # of an export that was killed
        half.mkdir(parents=True)
        try:
            files = {}
            for k, user in enumerate(self.names):
                plain = re.sub(r"[^\w.-]+", "_", user)[:99]
                files[user] = f"{k:0{places}} {plain}.safetensors"
                save_model(self.model(user), str(half / files[user]))
            names = {"users": files, "labels": self.labels.tolist(), "columns": self.columns, "shape": self.shape}
            write_json(half / "users.json", names)
            half.rename(path)
        finally:
            shutil.rmtree(half, ignore_errors=True)


def load_run(path: str | Path, model: "MakeModel | None" = None) -> Models:
    """The models of a finished run.

    Args:
        path: the run's folder, or the `models.npz` in it.
        model: what makes the networks, if the run was one of networks; None: what `algorithm.model` says in the
            configuration that Hydra left in the run's folder, which is executed as any configuration is.

    Raises:
        DataError: there are none, or the file is damaged.
        ConfigError: networks whose maker is unknown, or linear models with one.
    """
    folder = Path(path)
    file = folder / "models.npz" if folder.is_dir() else folder
    try:
        saved = load_arrays(file)
        network = bool(saved.pop("network"))
        for name in ("names", "shape", "columns"):
            saved[name] = tuple(saved[name].tolist())  # type: ignore[assignment]  # words, no more arrays
        models: dict[str, Any] = {**saved, "intercept": bool(saved["intercept"]), "seed": int(saved["seed"])}
        made = Models(**models)
        _check(made, network)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} holds no models of a run ({error}). Give the folder of a run that has ended."
        ) from error
    if model is not None and not network:
        raise ConfigError(f"{file} holds linear models: leave model out.")
    return replace(made, maker=_maker_of(file.parent) if network and model is None else model)


def _check(models: Models, network: bool) -> None:
    """Refuse arrays that do not belong together."""
    K, d = len(models.names), math.prod(models.shape)
    C = len(models.labels) if len(models.labels) > 2 else 1
    m = models.W.size // max(1, K) if network else C * (d + models.intercept)
    shapes = {"W": (K, m), "mean": (K, d), "scale": (K, d), "target_mean": (K,)}
    for name, shape in shapes.items():
        if getattr(models, name).shape != shape:
            raise ValueError(f"{name} has shape {getattr(models, name).shape}, not {shape}")
        if not np.isfinite(getattr(models, name)).all():
            raise ValueError(f"{name} is not finite")


def _maker_of(folder: Path) -> "MakeModel":
    """What makes the networks of the run in `folder`, as the configuration has it that Hydra left there."""
    try:
        said = OmegaConf.load(folder / ".hydra" / "config.yaml")
        wanted: Any = OmegaConf.to_container(OmegaConf.select(said, "algorithm.model"), resolve=True)
    except (OSError, ValueError, OmegaConfBaseException) as error:  # of None, too
        raise ConfigError(
            f"{folder} holds networks, and no .hydra/config.yaml that says what made them: give as model what "
            "algorithm.model was."
        ) from error
    settings = {name: value for name, value in wanted.items() if not name.startswith("_")}
    if any(isinstance(value, dict) and "_target_" in value for value in settings.values()):
        raise ConfigError(f"algorithm.model in {folder} has parts of its own: give as model what it was.")
    return partial(found("algorithm.model._target_", wanted["_target_"]), **settings)


def models_of(algorithm: "Algorithm", W: "Tensor | None" = None) -> Models:
    """What an algorithm has learned; W [m, K] are the models where `algorithm` has not all of them."""
    problem = algorithm.problem
    tasks, scalings = problem.everybody, [task.scaling for task in problem.everybody]
    labels: Any = tasks[0].labels
    if labels is None:
        labels = range(tasks[0].classes) if tasks[0].classes else problem.loss.labels or ()
    labels = np.asarray(labels)
    network: FlatModel | None = getattr(algorithm, "model", None)
    return Models(
        names=tuple(task.name for task in tasks),
        W=(algorithm.W if W is None else W).T.detach().cpu().numpy(),
        mean=np.stack([scaling.mean.numpy() for scaling in scalings]),
        scale=np.stack([scaling.scale.numpy() for scaling in scalings]),
        target_mean=np.array([scaling.target_mean for scaling in scalings]),
        intercept=scalings[0].intercept,
        labels=labels.astype(str) if labels.dtype == object else labels,
        seed=algorithm.seed,
        shape=tuple(problem.shape if len(problem.shape) > 1 else tasks[0].raw.x_train.shape[1:]),
        columns=tasks[0].columns or (),
        maker=network.make if network else None,
    )
