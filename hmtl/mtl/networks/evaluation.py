"""Losses and measures of the users' networks on their own rows.

K users, n rows each (padded), m parameters of a network.
"""

import torch
from torch import Tensor

from hmtl.mtl.networks.copies import copies
from hmtl.mtl.networks.flat import FlatModel
from hmtl.mtl.problem import Problem


class Evaluation:
    """The users' training and test rows, and the losses and measures of models on them.

    Args:
        problem: data and loss.
        model: the network.
    """

    def __init__(self, problem: Problem, model: FlatModel) -> None:
        self.problem = problem
        self.model = model
        self.rows = problem.padded(model.start.dtype)

    @torch.no_grad()
    def measure(self, models: Tensor) -> dict[str, Tensor]:
        """Return Σ_j s_kj ℓ, and the measures on the rows of each split, of models [K, m], [K] each."""
        train = self._predictions("train", models)
        return {
            "losses": (self.problem.weights * self.problem.loss(train, self.rows.y)).sum(1),
            **self.problem.measure("train", train),
            **(self.measure_test(models, "validation") if "validation" in self.problem.splits else {}),
            **self.measure_test(models),
        }

    @torch.no_grad()
    def measure_test(self, models: Tensor, split: str = "test") -> dict[str, Tensor]:
        """Return the measures on test rows, or those of another split, of models [K, m], [K] each."""
        return self.problem.measure(split, self._predictions(split, models))

    def _predictions(self, split: str, models: Tensor) -> Tensor:
        """Return the predictions [K, n] or, with several outputs, [K, n, C], zero in the padding."""
        self.model.module.eval()
        most = max(len(getattr(task, f"y_{split}")) for task in self.problem.everybody)
        predictions = models.new_zeros(len(models), most, *[self.model.C][: self.model.C > 1])
        for k, (w, task) in enumerate(zip(models, self.problem.tasks, strict=True)):
            x = self.rows.X[k, : self.rows.counts[k]] if split == "train" else getattr(task, f"x_{split}").to(w)
            predictions[k, : len(x)] = copies(self.model, w[None]).predict(x[None])[0]
        return predictions
