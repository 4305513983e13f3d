"""Steps of many users' networks side by side, in groups whose numbers fit in the processor's cache.

K users, N rows of all users, d features, m numbers in a model; T steps on minibatches of at most B rows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hmtl.mtl.losses import Loss
from hmtl.mtl.networks.copies import copies, group_size
from hmtl.mtl.networks.flat import seeded
from hmtl.mtl.problem import Rows
from hmtl.mtl.solvers.networks import NetworkSubproblem

LOOKED_UP = 1 << 16  # rows of minibatches that are looked up at once


@dataclass(frozen=True)
class StepRule:
    """How a step changes a model.

    Attributes:
        rate: step size of a gradient step.
        optimizer: makes an optimizer that treats each number alone, so that one is one for each user; None: steps are
            gradient steps.
        clip: largest norm of a gradient; None: any.
    """

    rate: float
    optimizer: Callable[[Sequence[nn.Parameter]], Optimizer] | None
    clip: float | None


def side_by_side(
    loss: Loss, rows: Rows, subproblem: NetworkSubproblem, order: Tensor, usual: Tensor, budgets: Tensor, rule: StepRule
) -> Tensor:
    """Return the models [K, m] after the users' steps.

    Users are sorted by their number of steps, and leave a group after their last one. If networks draw random numbers,
    a group are the users k with the same k // G, and they draw together, from a stream of their own.

    Args:
        loss, rows, subproblem, order: as a solver gets them.
        usual: number of steps of each user in `order` [K].
        budgets: number of steps that it takes [K].
        rule: how a step changes models.
    """
    model = subproblem.model
    W = subproblem.copied()
    model.to_train(model.module)
    G = group_size(model, order.shape[1] * rows.X.shape[1], W)
    sorted_users = np.argsort(-budgets.cpu().numpy(), kind="stable")[: int((budgets > 0).sum())]
    groups = (subproblem.users[sorted_users] if model.random else np.arange(len(sorted_users))) // G
    minibatches = Minibatches(rows, order.to(W.device), (usual.cumsum(0) - usual).to(W.device))
    for group in np.unique(groups):
        users = sorted_users[groups == group]
        # `seeded` lets trainings in other threads wait
        with seeded(*subproblem.stream, int(group), device=W.device) if model.random else nullcontext():
            _train(loss, subproblem, minibatches, users, budgets[users].tolist(), W, rule)
    return W


@dataclass(frozen=True, eq=False)
class Minibatches:
    """The minibatches of all users: their rows, in this order [T, B], where the first of each user is at `starts`."""

    rows: Rows
    order: Tensor
    starts: Tensor

    def of(self, users: Tensor, first: int, last: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield x [a, B, d], y and weights [a, B] of these users' steps from the first to before the last one."""
        rows, d = self.rows, self.rows.X.shape[1]
        width = max(1, LOOKED_UP // (self.order.shape[1] * len(users)))
        for t in range(first, last, width):
            steps = torch.arange(t, min(t + width, last), device=users.device)
            own = self.order[self.starts[users, None] + steps]
            present, at = own >= 0, own.clamp_min(0) + rows.starts[users, None, None]
            scale = rows.s[at] * rows.n[users, None, None].to(rows.s)
            weights = present * (scale / present.sum(2, keepdim=True).clamp_min(1))
            for at_t, y, weight in zip(*(each.unbind(1) for each in (at, rows.y[at], weights)), strict=True):
                yield rows.X.index_select(0, at_t.flatten()).view(*at_t.shape, d), y, weight


def _train(
    loss: Loss,
    subproblem: NetworkSubproblem,
    minibatches: Minibatches,
    users: Sequence[int],
    budgets: Sequence[int],
    W: Tensor,
    rule: StepRule,
) -> None:
    """Train the users of a group, the one with most steps first, and write their models to W [K, m]."""
    model, trained, correction = subproblem.model, subproblem.trained, subproblem.correction
    lam, anchor = subproblem.anchor or (0.0, None)
    moves = model.moving(trained)
    names = [""] if trained is None else [name for name in model.shapes if name in trained]  # "": all numbers
    numbers = torch.tensor(users, device=W.device)
    is_run = users[-1] - users[0] == len(users) - 1 and bool((numbers.diff() == 1).all())
    at = slice(users[0], users[-1] + 1) if is_run else numbers  # views, where there are
    own, gradient, held = W[at], W[:0], list[nn.Parameter]()
    fixed = None if anchor is None else anchor[at]
    further = None if correction is None else correction[at]
    is_more = fixed is not None or further is not None  # than the gradients of losses
    # keeps gradients apart; those of one large network take less memory one by one
    is_apart = rule.optimizer is not None or (rule.clip is not None and (is_more or len(users) > 1))
    if is_apart:
        gradient = torch.empty_like(own)
    if rule.optimizer:
        whole = model.split(own)
        held = [nn.Parameter(whole[name] if name else own) for name in names]  # state may be made with the optimizer
        optimizer = rule.optimizer(held)
    first = 0
    for a in range(len(users), 0, -1):
        if (last := budgets[a - 1]) == first:
            continue
        w = own[:a]
        networks = copies(model, w, trained)
        target, parts, scale = w, networks.parameters, -rule.rate
        if is_apart:
            target, scale = gradient[:a], 1.0
            parts = model.split(target)
        if rule.optimizer:
            for parameter, name in zip(held, names, strict=True):
                parameter.grad, parameter.data = None, networks.parameters[name] if name else w
                parameter.grad, state = parts[name] if name else target, optimizer.state[parameter]
                state.update({key: each[:a] for key, each in state.items() if isinstance(each, Tensor) and each.ndim})
        for x, y, weights in minibatches.of(numbers[:a], first, last):
            distance = None if fixed is None else moves * (w - fixed[:a])
            if is_apart:
                target.zero_()
            networks.add_gradients(x, y, weights, loss, parts, scale, None if is_apart else rule.clip)
            if distance is not None:
                target.add_(distance, alpha=scale * lam)
            if further is not None:
                target.add_(moves * further[:a], alpha=scale)
            if rule.clip is not None and is_apart:
                share = (rule.clip / (torch.linalg.vector_norm(target, dim=1, keepdim=True) + 1e-6)).clamp_max(1)
                if not rule.optimizer:
                    w.addcmul_(target, share, value=-rule.rate)
                    continue
                target.mul_(share)
            if rule.optimizer:
                optimizer.step()
        first = last
    if not is_run:
        W[at] = own
