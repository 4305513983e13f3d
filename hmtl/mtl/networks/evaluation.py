"""Losses and measures of the users' networks on their own rows.

K users, N rows of all users, one user after the other, m parameters of a network.
"""

import torch
from torch import Tensor

from hmtl.mtl.networks.copies import copies
from hmtl.mtl.networks.flat import FlatModel
from hmtl.mtl.problem import AT_ONCE, Problem


class Evaluation:
    """The users' training and test rows, and the losses and measures of models on them.

    Args:
        problem: data and loss.
        model: the network.
    """

    def __init__(self, problem: Problem, model: FlatModel) -> None:
        self.problem = problem
        self.model = model
        self.rows = problem.rows_in(model.start.dtype)

    @torch.no_grad()
    def measure(self, models: Tensor) -> dict[str, Tensor]:
        """Return Σ_j s_kj ℓ, and the measures on the rows of each split, of models [K, m], [K] each."""
        train = self._predictions("train", models)
        return {
            "losses": self.problem.losses(train),
            **self.problem.measure("train", train),
            **(self.measure_test(models, "validation") if "validation" in self.problem.splits else {}),
            **self.measure_test(models),
        }

    @torch.no_grad()
    def measure_test(self, models: Tensor, split: str = "test") -> dict[str, Tensor]:
        """Return the measures on test rows, or those of another split, of models [K, m], [K] each."""
        return self.problem.measure(split, self._predictions(split, models))

    def _predictions(self, split: str, models: Tensor) -> Tensor:
        """Return the predictions [N] or, with several outputs, [N, C]."""
        self.model.module.eval()
        x_train = torch.split(self.rows.X, list(self.rows.counts))
        x = x_train if split == "train" else [getattr(task, f"x_{split}") for task in self.problem.tasks]
        predictions = [models.new_empty(0, *[self.model.C][: self.model.C > 1])]
        for w, own in zip(models, x, strict=True):
            one = copies(self.model, w[None])
            predictions += [one.predict(part.to(w)[None])[0] for part in torch.split(own, AT_ONCE)]
        return torch.cat(predictions)
