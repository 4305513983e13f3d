"""Losses and errors of the users' networks on their own rows.

K users, n rows each (padded), m parameters of a network.
"""

import torch
from torch import Tensor

from hmtl.mtl.networks.copies import copies
from hmtl.mtl.networks.flat import FlatModel
from hmtl.mtl.problem import Problem


class Evaluation:
    """The users' training and test rows, and the losses and errors of models on them.

    Args:
        problem: data and loss.
        model: the network.
    """

    def __init__(self, problem: Problem, model: FlatModel) -> None:
        self.problem = problem
        self.model = model
        self.rows = problem.padded(model.start.dtype)
        longest = max(len(task.y_test) for task in problem.everybody)
        test = self.rows.y.new_ones(len(self.rows.y), longest)
        for y, task in zip(test, problem.tasks, strict=True):
            y[: len(task.y_test)] = task.y_test
        self.y = {"train": self.rows.y, "test": test}
        here = problem.tasks
        self.counts = {split: problem.s.new_tensor([len(getattr(t, f"y_{split}")) for t in here]) for split in self.y}

    @torch.no_grad()
    def measure(self, models: Tensor) -> dict[str, Tensor]:
        """Return Σ_j ℓ, s, and the train and test error of models [K, m], [K] each."""
        train = self._predictions("train", models)
        return {
            "losses": self._row_sums("train", self.problem.loss(train, self.y["train"])),
            "s": self.problem.s,
            "train_error": self._errors("train", train),
            "test_error": self.test_errors(models),
        }

    @torch.no_grad()
    def test_errors(self, models: Tensor) -> Tensor:
        """Return the mean test error of models [K, m], [K]."""
        return self._errors("test", self._predictions("test", models))

    def _errors(self, split: str, predictions: Tensor) -> Tensor:
        return self._row_sums(split, self.problem.loss.error(predictions, self.y[split])) / self.counts[split]

    def _predictions(self, split: str, models: Tensor) -> Tensor:
        """Return the predictions [K, n] or, with several outputs, [K, n, C]."""
        self.model.module.eval()
        y = self.y[split]
        predictions = models.new_zeros(*y.shape, *[self.model.C][: self.model.C > 1])
        for k, (w, task) in enumerate(zip(models, self.problem.tasks, strict=True)):
            x = self.rows.X[k, : self.rows.counts[k]] if split == "train" else task.x_test.to(w)
            predictions[k, : len(x)] = copies(self.model, w[None]).predict(x[None])[0]
        return predictions

    def _row_sums(self, split: str, values: Tensor) -> Tensor:
        """Return the sum over each user's rows of values [K, n], without the padding: [K] float64."""
        present = torch.arange(values.shape[1], device=values.device) < self.counts[split][:, None]
        return torch.where(present, values, 0).double().sum(1)
