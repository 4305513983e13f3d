"""The loss of a plain PyTorch loop: a function of a batch's predictions and targets, or the module's own."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.losses import Loss
from hmtl.mtl.networks.calls import loss_of, scores_of


class TorchLoss(Loss):
    """A loss of torch, or a function of your own, or what the module itself returns as `loss`.

    It is evaluated batch by batch, in training and in measuring, since it may be a mean over other things than rows,
    such as words. Targets may have any shape, and get the type of predictions where both have the same shape. To be
    measured, a row has the prediction [s + 1]: its s scores, those of classes, or one for a number, or none for another
    target, and then its loss, that of its batch if the function returns a mean. Users then train one after the other.

    Args:
        function: maps predictions and targets of a batch of n rows to their mean loss, or to losses [n]. A function of
            your own gets both in the shapes that they have; one of torch gets them in the same shape where they differ
            by a last dimension of 1. If a module returns more than its predictions, a function of your own gets all of
            it, or the predictions alone if it fails on all of the first batch; so does one of torch if a row has
            several targets. None: the module gets the targets, too, and returns its loss, as the models of transformers
            do.

    Attributes:
        classes: whether rows have class numbers.
        outputs: number of a row's scores, s. The problem sets both.
    """

    labels = None

    def __init__(self, function: Callable[[Tensor, Any], Tensor] | None = None) -> None:
        super().__init__()
        self.function = function() if isinstance(function, type) else function
        self.classes = False  # type: ignore[misc]  # depends on the data
        self.outputs = 0
        self._takes_all: bool | None = None  # what a module returns; unknown before the first batch

    @property
    def name(self) -> str:
        if self.function is None:
            return "the module's own loss"
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def measure(self) -> str:
        return "share misclassified" if self.classes else "mean loss"

    @property
    def is_of_torch(self) -> bool:
        """Whether it is a loss of torch, and not a function of your own or the module's."""
        function = getattr(self.function, "func", self.function)  # of a partial
        name = getattr(function, "__module__", None) or "torch."  # compiled ones name none
        return function is not None and name.startswith("torch.")

    def of_batch(self, output: Any, y: Any) -> Tensor:
        """Return the loss of a module's output, a mean or one for each row [n].

        Raises:
            ConfigError: the module returns none.
        """
        if self.function is not None:
            is_single = isinstance(output, Tensor) or (self.is_of_torch and isinstance(y, Tensor))
            if is_single or self._takes_all is False:
                return self.function(*self._paired(output, y))
            try:
                loss, self._takes_all = self.function(output, y), True
                return loss
            except Exception:  # the function is any code
                if self._takes_all:
                    raise
                with suppress(Exception):
                    loss, self._takes_all = self.function(*self._paired(output, y)), False
                    return loss
                raise
        if (loss := loss_of(output)) is None:
            raise ConfigError("The module returns no loss of its own. Name one, such as loss=torch.nn.MSELoss().")
        return loss

    def _paired(self, output: Any, y: Any) -> tuple[Tensor, Any]:
        return paired(scores_of(output), y, alike=self.is_of_torch)

    def prediction(self, output: Any, y: Any, n: int) -> Tensor:
        """Return the predictions of a batch of n rows for measuring [n, s + 1]."""
        losses = self.of_batch(output, y)
        losses = (losses.flatten(1).mean(1) if losses.ndim > 1 else losses.expand(n))[:, None].float()
        if not self.outputs:
            return losses
        try:
            scores = scores_of(output).reshape(n, -1)[:, : self.outputs].float()
        except (ConfigError, RuntimeError):  # a module may return its loss alone
            scores = torch.full_like(losses, torch.nan).expand(n, self.outputs)
        return torch.cat([scores, losses], dim=1)

    def forward(self, prediction: Tensor, y: Tensor) -> Tensor:
        return prediction[..., -1]

    def scores(self, prediction: Tensor) -> Tensor:
        return prediction[..., :-1] if self.classes else prediction[..., 0]

    def error(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Return 1 for a wrong class, or the loss of a row if it has no class."""
        return (self.scores(prediction).argmax(-1) != y).double() if self.classes else prediction[..., -1].double()


def paired(scores: Any, y: Any, alike: bool = True) -> tuple[Any, Any]:
    """Return predictions and targets as a loss takes them.

    If they are to be `alike`, a last dimension of 1 is dropped that only one of both has. Targets get the type of the
    predictions if they are floats, or if both have the same shape, so that a target is a number and not a class.
    """
    if isinstance(y, Tensor):
        if alike and scores.ndim == y.ndim + 1 and scores.shape[-1] == 1:
            scores = scores.squeeze(-1)
        elif alike and y.ndim == scores.ndim + 1 and y.shape[-1] == 1:
            y = y.squeeze(-1)
        if y.is_floating_point() or y.shape == scores.shape:
            y = y.to(scores.dtype)
    return scores, y
