"""The models of a finished run, with what was fitted beside them, so that they predict on raw rows: `models.npz`.

K tasks, n rows and d raw features, C classes; m numbers in a model.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hmtl.atomic import replacing
from hmtl.errors import ConfigError, DataError
from hmtl.npz import load_arrays

if TYPE_CHECKING:  # torch takes a second to import, and not everybody who imports hmtl predicts
    from torch import Tensor

    from hmtl.mtl import Algorithm
    from hmtl.mtl.models import MakeModel


@dataclass(frozen=True, eq=False)
class Models:
    """One model for each task; see `load_models`.

    Args:
        names: of the K tasks.
        W: [K, m], m numbers of a network, or C scores of D weights each, one after the other, D = d or d + 1.
        mean, scale: [K, d], of the features.
        target_mean: [K].
        intercept: whether the last of the D weights is one.
        labels: [C] of several classes, [2] of two, empty where numbers are predicted.
        seed: of the network's other numbers.
        model: what makes the network; None where the models are linear.
        shape: of a raw row, [d] or that of an image, whose numbers count as d.
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
    model: "MakeModel | None" = None

    def scores(self, task: str, x: ArrayLike) -> NDArray[Any]:
        """Scores of raw rows x [n, d] (images in their shape): [n], or [n, C] of several classes.

        Where numbers are predicted, they are in the units of y.

        Raises:
            DataError: no such task, or other columns than it was trained on.
        """
        import torch

        from hmtl.data import Scaling

        if task not in self.names:
            near = difflib.get_close_matches(task, self.names, n=1) or list(self.names[:3])
            raise DataError(f"There is no task {task!r} among the {len(self.names)}: is {' or '.join(near)} meant?")
        k, rows = self.names.index(task), torch.as_tensor(np.asarray(x))
        if tuple(rows.shape[1:]) != self.shape:
            wanted = f"[n, d] with d={self.shape[0]}" if len(self.shape) == 1 else f"[n, {str(list(self.shape))[1:]}"
            raise DataError(f"x has shape {list(rows.shape)}, not {wanted}. Give raw rows.")
        mean, scale = torch.from_numpy(self.mean[k]), torch.from_numpy(self.scale[k])
        w = torch.from_numpy(self.W[k])
        scores: Tensor = self._apply(Scaling(mean, scale, self.intercept).features(rows.flatten(1)).to(w), w)
        found: NDArray[Any] = scores.numpy() + self.target_mean[k]
        return found

    def _apply(self, x: "Tensor", w: "Tensor") -> "Tensor":
        several = len(self.labels) > 2
        if self.model is None:
            scores = x @ w.reshape(-1, x.shape[1]).T
            return scores if several else scores[:, 0]
        import torch

        from hmtl.mtl.models import FlatModel

        C, shape = len(self.labels) if several else 1, self.shape if len(self.shape) > 1 else ()
        network = FlatModel(self.model, x[:1], C, self.seed, shape)
        if len(network.start) != len(w):
            raise ConfigError(
                f"model has {len(network.start)} parameters, not {len(w)}. Give algorithm.model of the run."
            )
        with torch.no_grad():
            return network(network.split(w), x)

    def predict(self, task: str, x: ArrayLike) -> NDArray[Any]:
        """Labels as the data had them, or numbers in the units of y, for raw rows x [n, d]: [n]."""
        scores = self.scores(task, x)
        if not len(self.labels):
            return scores
        picked: NDArray[Any] = self.labels[scores.argmax(1) if scores.ndim > 1 else (scores > 0).astype(int)]
        return picked


def load_models(path: str | Path, model: "MakeModel | None" = None) -> Models:
    """The models of a finished run.

    Args:
        path: the run's folder, or the `models.npz` in it.
        model: what `algorithm.model` was, such as torch.nn.Linear, if the run was one of networks.

    Raises:
        DataError: there are none, or the file is damaged.
        ConfigError: networks without `model`, or linear models with one.
    """
    file = Path(path) / "models.npz" if Path(path).is_dir() else Path(path)
    try:
        saved = load_arrays(file)
        network = bool(saved.pop("network"))
        models = Models(
            tuple(saved.pop("names").tolist()),
            intercept=bool(saved.pop("intercept")),
            seed=int(saved.pop("seed")),
            shape=tuple(saved.pop("shape").tolist()),
            model=model,
            **saved,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} holds no models of a run ({error}). Give the folder of a run that has ended."
        ) from error
    if network != (model is not None):
        remedy = "give as model what algorithm.model was" if network else "leave model out"
        raise ConfigError(f"{file} holds {'networks' if network else 'linear models'}: {remedy}.")
    return models


def save_models(path: Path, algorithm: "Algorithm", W: "Tensor | None" = None) -> None:
    """Write what `load_models` reads; W [m, K] are the models where `algorithm` has not all of them."""
    problem = algorithm.problem
    tasks, scalings = problem.everybody, [task.scaling for task in problem.everybody]
    labels: Any = tasks[0].labels
    if labels is None:
        labels = range(tasks[0].classes) if tasks[0].classes else problem.loss.labels or ()
    labels = np.asarray(labels)
    arrays = {
        "names": np.array([task.name for task in tasks]),
        "W": (algorithm.W if W is None else W).T.detach().cpu().numpy(),
        "mean": np.stack([scaling.mean.numpy() for scaling in scalings]),
        "scale": np.stack([scaling.scale.numpy() for scaling in scalings]),
        "target_mean": np.array([scaling.target_mean for scaling in scalings]),
        "intercept": scalings[0].intercept,
        "labels": labels.astype(str) if labels.dtype == object else labels,
        "network": hasattr(algorithm, "model"),
        "seed": algorithm.seed,
        "shape": problem.shape if len(problem.shape) > 1 else tasks[0].raw.x_train.shape[1:],
    }
    with replacing(path) as file:
        np.savez(file, **arrays)
