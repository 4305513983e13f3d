"""Local training of networks, and what the trained networks predict.

m numbers of a network (parameters, and buffers that training changes), b users of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hmtl.data.items import each_tensor
from hmtl.errors import ConfigError
from hmtl.io.arrays import Ids
from hmtl.mtl.learners.base import Learner
from hmtl.mtl.networks.calls import on_rows, scores_of, with_targets, without_gradients
from hmtl.mtl.networks.copies import copies
from hmtl.mtl.networks.flat import FlatModel, seeded
from hmtl.mtl.participation import Participation
from hmtl.mtl.privacy import Privacy
from hmtl.mtl.problem import Problem
from hmtl.mtl.solvers.networks import NetworkSolver, NetworkSubproblem
from hmtl.mtl.torch_loss import TorchLoss

LOSS_ROWS = 128  # in a batch for which a function measures a loss, which may depend on their number


@dataclass(frozen=True, eq=False)
class Setting:
    """What local training needs; see `NetworkAlgorithm`."""

    problem: Problem
    learner: Learner
    solver: NetworkSolver
    model: FlatModel
    seed: int
    participation: Participation
    privacy: Privacy | None = None

    @torch.no_grad()
    def predictions(self, split: str, users: Ids, models: Tensor) -> Tensor:
        """Return the predictions [N] or, with several outputs, [N, C] on users' rows of a split, of models [b, m]."""
        self.model.module.eval()
        if self.problem.items or isinstance(self.problem.loss, TorchLoss):
            return self._predictions_of_batches(split, users, models)
        shared = len(users) > 1 and models.stride(0) == 0
        if split == "train":
            rows = self.problem.rows_in(self.model.start.dtype)
            x = [rows.X]
            if not shared or len(users) < len(rows.counts):
                x = [
                    rows.X[i : i + n] for i, n in zip(rows.starts[users].tolist(), rows.n[users].tolist(), strict=True)
                ]
        else:
            x = [getattr(self.problem.tasks[k], f"x_{split}") for k in users]
        predictions = [self._no_predictions]
        for w, own in [(models[0], x)] if shared else zip(models, ([each] for each in x), strict=True):
            if not self.model.layers:
                self.model.forget()
            one = copies(self.model, w[None])
            for part in batches(own, self.model.rows_at_once):
                predicted = without_gradients(partial(one.predict, part.to(w)[None]))
                predictions.append(predicted[0].detach().to(w))
        return torch.cat(predictions)

    @property
    def _no_predictions(self) -> Tensor:
        C, loss = self.model.C or 1, self.problem.loss
        if isinstance(loss, TorchLoss):
            return self.model.start.new_empty(0, loss.outputs + 1)
        return self.model.start.new_empty(0, *[C][: C > 1])

    def _predictions_of_batches(self, split: str, users: Ids, models: Tensor) -> Tensor:
        """Return predictions user by user, for rows that are read as they are, or losses of batches."""
        model, loss, predictions = self.model, self.problem.loss, [self._no_predictions]
        most = LOSS_ROWS if isinstance(loss, TorchLoss) else model.rows_at_once
        for k, w in zip(users.tolist(), models, strict=True):
            model.forget()
            parameters, user = model.placed(model.split(w)), int(self.problem.users[k])
            with on_rows(f"user {user}"), seeded(self.seed, "measure", split, user, device=w.device):
                for x, y, n in self.problem.batches(split, k, most):  # transforms of rows may draw
                    predicted = without_gradients(partial(self._predictions_of_batch, parameters, x, y, n))
                    predictions.append(predicted.detach().to(w))
        return torch.cat(predictions)

    def _predictions_of_batch(self, parameters: dict[str, Tensor], x: Any, y: Any, n: int) -> Tensor:
        model, loss, inputs = self.model, self.problem.loss, self.model.inputs(x)
        if not isinstance(loss, TorchLoss):
            return model.predictions(scores_of(model.output(parameters, inputs)))
        y = each_tensor(y, model.to_device)
        inputs = inputs if loss.function else with_targets(model.module, inputs, y)
        return loss.prediction(model.output(parameters, inputs), y, n)


class BlockTraining:
    """Local training of the users of a block in a round; see `Train`.

    Args:
        setting: how users train.
        round: number of the round.
        users: the users, by their place among those of this process [b].
        budgets: number of steps of each [b].
        room: memory for the models that are trained first [b, m], if there is any.

    Attributes:
        last: the models that were trained last [b, m].
    """

    def __init__(self, setting: Setting, round: int, users: Ids, budgets: Tensor, room: Tensor | None = None) -> None:
        self._room = room
        self.setting, self.round, self.users, self.budgets = setting, round, users, budgets
        self.rows = setting.problem.rows_in(setting.model.start.dtype).of_users(users)
        self.steps = budgets[:, None].to(setting.model.start)
        self._orders: dict[int, Tensor] = {}
        self._times = 0
        self.last = setting.model.start.expand(len(users), -1)

    @property
    def rate(self) -> float:
        return self.setting.solver.rate(self.round)

    def __call__(
        self,
        w: Tensor,
        anchor: tuple[float, Tensor] | None = None,
        correction: Tensor | None = None,
        only: frozenset[str] | None = None,
        phase: int = 0,
    ) -> Tensor:
        setting, phases, shape = self.setting, self.setting.learner.phases, (len(self.users), -1)
        if not 0 <= phase < phases:
            raise ConfigError(f"phase={phase}, but the learner has {phases}. Set `phases` to their number.")
        if anchor:
            setting.solver.check_proximal("anchor", anchor[0])
            anchor = anchor[0], anchor[1].expand(shape)
        if correction is not None:
            setting.solver.check_correction()
            correction = correction.expand(shape)
        steps = (phase + 1) * self.budgets // phases - phase * self.budgets // phases
        ids = setting.problem.users[self.users]
        if phase not in self._orders:
            number = self.round * phases + phase
            self._orders[phase] = setting.solver.draw(setting.seed, number, ids, self.rows.counts)
        stream = (setting.seed, "dropout", self.round, self._times)
        self._times += 1
        start = NetworkSubproblem(
            setting.model,
            w,
            ids,
            self.round,
            stream,
            lambda k: setting.problem.dataset(int(self.users[k]), w.dtype, setting.model.shape),
            anchor,
            correction,
            only,
            self._room if self._room is not None and self._room.shape == w.shape else None,
        )
        self._room = None
        self.last = setting.solver(setting.problem.loss, self.rows, start, self._orders[phase], steps)
        return self.last


def batches(x: Sequence[Tensor], most: int) -> Iterator[Tensor]:
    """Yield the rows of all these tensors, at most `most` at a time."""
    few, n = list[Tensor](), 0
    parts = (torch.split(each, most) if len(each) > most else (each,) for each in x)
    for part in chain.from_iterable(parts):
        if not len(part):
            continue
        if few and n + len(part) > most:
            yield torch.cat(few)
            few, n = [], 0
        few.append(part)
        n += len(part)
    yield from [torch.cat(few)] if len(few) > 1 else few
