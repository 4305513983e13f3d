"""Solvers that train modules: by any optimizer of torch, or one user's after another by code of your own.

K users, n rows each, C outputs, m numbers in a model; T steps on minibatches of at most B rows.
"""

import inspect
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from hmtl.data.items import Items, each_tensor
from hmtl.errors import ConfigError, DataError, reason
from hmtl.mtl.losses import Loss
from hmtl.mtl.networks.calls import called, on_rows, scores_of, with_targets, without_gradients
from hmtl.mtl.networks.copies import group_size, trains_side_by_side
from hmtl.mtl.networks.flat import BATCH_NORMS, FlatModel, seeded
from hmtl.mtl.problem import Problem, Rows
from hmtl.mtl.solvers.base import SomeIds
from hmtl.mtl.solvers.networks import MinibatchSolver, NetworkSolver, NetworkSubproblem
from hmtl.mtl.solvers.side_by_side import StepRule, side_by_side
from hmtl.mtl.torch_loss import TorchLoss, paired
from hmtl.rng import generator

TrainModule = Callable[[int, nn.Module], nn.Module]
SEPARABLE = SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Adamax, optim.NAdam
"""Optimizers that treat each number alone."""
MIN_GROUP = 8  # of fewer copies, `torch.func.vmap` costs more than it saves


def one_by_one(subproblem: NetworkSubproblem, budgets: Tensor, train: TrainModule, lend: bool = False) -> Tensor:
    """Return the models [K, m] after `train(k, module)` for each user k with a budget above 0.

    Each module is a new one, or with `lend` the same one with other numbers. Parameters that are not trained get their
    numbers back. In the meantime torch's global generators are seeded by the user and the round, so that modules and
    transforms of data draw reproducibly.
    """
    model, W = subproblem.model, subproblem.copied()
    untrained = [name for name in model.shapes if subproblem.trained is not None and name not in subproblem.trained]
    for k in budgets.nonzero()[:, 0].tolist():
        seed = (*subproblem.stream, int(subproblem.users[k]))
        with seeded(*seed, device=W.device), model.keeping(), torch.enable_grad():  # other threads wait
            module = (model.lent if lend else model.holding)(W[k], subproblem.trained)
            model.write(train(k, model.to_train(module)), W[k])
        before = model.split(subproblem.W[k])
        for name, numbers in model.split(W[k]).items():
            if name in untrained and name not in model.buffers:
                numbers.copy_(before[name])
    return W


class LocalTrainer(NetworkSolver):
    """Your own training code: a subclass defines `train`. A straggler trains as everybody does.

    `train` replaces the method of torch modules that switches them to training; a trainer has no such modes.
    """

    def eval(self) -> Self:
        """Return the trainer itself, which has no modes."""
        return self

    @abstractmethod
    def train(  # type: ignore[override]  # see above
        self, model: nn.Module, data: Dataset[Any], round: int, generator: torch.Generator
    ) -> nn.Module:
        """Return the trained module of one user.

        What travels are the parameters of the result that require gradients in `model`, and the buffers that training
        changes, by name. The result has to depend on the arguments alone: `train` is also called to measure its time.

        Args:
            model: a module with the user's numbers, in training mode, to be changed and returned. Parameters that the
                algorithm holds fixed need no gradients, and get their numbers back.
            data: the user's training rows, as pairs of a row in the shape that the module takes and its target: a class
                number (int64), ±1, or a number; or the user's own Dataset, as it is.
            round: number of the round, from 0.
            generator: for random draws, such as a DataLoader's order. torch's global generators are seeded, too.
        """

    def steps(self, counts: Sequence[int]) -> Tensor:
        return torch.ones(len(counts), dtype=torch.int64)

    def draw(self, seed: int, round: int, users: SomeIds, counts: Sequence[int]) -> Tensor:
        """Return no order [0], since `train` chooses its own."""
        return torch.empty(0, dtype=torch.int64)

    def forward(self, loss: Loss, rows: Rows, subproblem: NetworkSubproblem, order: Tensor, budgets: Tensor) -> Tensor:
        def train(k: int, module: nn.Module) -> nn.Module:
            seed, *name = subproblem.stream
            number = generator(seed, "trainer", *name, int(subproblem.users[k])).integers(2**63)
            own = torch.Generator().manual_seed(int(number))
            data = subproblem.data(k)
            trained = self.train(module, data.dataset if isinstance(data, Items) else data, subproblem.round, own)
            if not isinstance(trained, nn.Module):
                raise ConfigError(
                    f"{type(self).__name__}.train returned a {type(trained).__name__}. Return the trained module."
                )
            return trained

        return one_by_one(subproblem, budgets, train)


class TorchTrainer(MinibatchSolver):
    """A solver that trains by an optimizer of torch, made anew in each round.

    Users train side by side where that is faster, and gives the same models: small networks without convolutions, on
    tensors, by the loss of the problem and an optimizer in SEPARABLE. Otherwise, they train in one module, in turn.

    The gradient of a proximal term, and a correction, are added to the gradients before these are clipped. Stragglers
    stop after their number of steps. Networks with BatchNorm skip a minibatch of one row, which has no variance.

    Args:
        optimizer: makes an optimizer from parameters, such as `functools.partial(torch.optim.AdamW, lr=1e-3)`.
        scheduler: makes a scheduler from an optimizer. Each round is one of its steps: the step size is constant within
            a round, and that of a round is the same for all users.
        loss: maps predictions, [B, C] or [B] for one output, and targets [B] to a loss per row [B] or to their mean;
            None: the loss of the problem. Errors and objective are always those of the problem.
        transform: maps the rows of a minibatch [B, ...] to new ones, such as random crops. For draws of each row's own,
            give transforms to the Dataset.
        clip: largest norm of a gradient; None: any.
        epochs: passes per round.
        batch: rows in a minibatch, B.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        loss: Callable[..., Tensor] | None = None,
        transform: Callable[..., Tensor] | None = None,
        clip: float | None = None,
        epochs: int = 5,
        batch: int = 20,
    ) -> None:
        super().__init__(epochs, batch)
        if clip is not None and not clip > 0:
            raise ConfigError(f"clip={clip} is not a norm above 0. Leave it out to clip nothing.")
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.loss = loss
        self.transform = transform
        self.clip = clip
        self._like: Sequence[Tensor] = ()  # tensors with the shapes of the network's parameters, once it is known

    def rate(self, round: int) -> float:
        if self.scheduler is not None:
            raise ConfigError(
                "solver.scheduler is set, but this algorithm takes steps as long as the local ones, which it cannot "
                "follow. Leave solver.scheduler out, or choose an algorithm such as fedavg."
            )
        if self.clip is not None:
            raise ConfigError(
                "Gradients are clipped, but this algorithm needs plain gradient steps, which have a known length. "
                "Leave solver.clip out, or set plain_steps = True in a learner of your own."
            )
        if len(rates := {float(group["lr"]) for group in self._groups(round)}) > 1:
            raise ConfigError(
                f"solver.optimizer has several step sizes {sorted(rates)}, but this algorithm takes steps as long as "
                "the local ones. Give all parameters the same lr, or choose an algorithm such as fedavg."
            )
        return rates.pop()

    def check_proximal(self, name: str, weight: float) -> None:
        if not 0 <= weight < math.inf:
            raise ConfigError(f"{name}={weight:g} is not a finite number from 0. Set {name} to one.")

    def check_correction(self) -> None:
        self.rate(0)
        if not isinstance(self._make(), SGD) or any(group.get("momentum") for group in self._groups(0)):
            super().check_correction()

    def check_network(self, model: FlatModel, problem: Problem) -> None:
        """Choose whether users train side by side, and raise ConfigError if a step on this network fails."""
        self._like = [model.start.new_zeros(()).expand(w.shape) for w in model.module.parameters() if w.requires_grad]
        self._check_optimizer()
        if not problem.tasks:
            return  # processes that train try it
        like, counts = model.start, torch.tensor(problem.here, dtype=torch.int64)
        scale = problem.weights * counts.repeat_interleave(counts).to(problem.weights)
        ends = torch.stack(scale.aminmax())  # the rows with the least and the largest weight, as it were
        at = torch.tensor([0, min(1, problem.here[0] - 1)])
        model.side_by_side = self._side_by_side(model, problem)  # stacks rows, if they are not
        X, y = problem.rows_in(like.dtype).X[at], problem.rows_in(like.dtype).y[at]
        data = problem.dataset(0, like.dtype, model.shape)
        own = data.of(at) if isinstance(data, Items) else Subset(data, at.tolist())
        rows = Rows(X, y, y, (2,), ends.to(like) / 2)
        start = NetworkSubproblem(model, like[None], np.arange(1), 1, (0, "check"), [own].__getitem__)
        try:
            with model.keeping_numbers():
                steps = 2 if model.kept else 1  # the second shows whether frozen numbers follow trained ones
                self(problem.loss, rows, start, torch.arange(2).repeat(steps, 1), torch.tensor([steps]))
            if self.loss or isinstance(problem.loss, TorchLoss):
                with seeded(0, "check", device=like.device):
                    module = model.to_train(model.lent(like))
                    x, y = self._minibatch(problem.loss, model, own, torch.arange(2), y, rows.s)
                    losses = self._losses(problem.loss, model, module, x, y)
                    again = self._minibatch(problem.loss, model, own, torch.arange(2), y, rows.s)
                    _check_leaves(losses, self._losses(problem.loss, model, module, *again), module)
                    _check_evaluation(problem.loss, module.eval(), x, y)
        except ConfigError:
            raise
        except Exception as error:  # the parts are any code
            cause = error.__cause__ if isinstance(error, DataError) else error
            if isinstance(cause, IndexError):
                raise
            raise ConfigError(
                f"The solver cannot train this model ({reason(cause or error)}). Check solver.optimizer, scheduler, "
                "loss and transform: a loss takes predictions, [rows, C] or [rows], and targets [rows]. If it takes "
                "more, give a function of a module's output and targets, such as loss=lambda output, y: f(*output, y)."
            ) from error

    def _side_by_side(self, model: FlatModel, problem: Problem) -> bool:
        """Return whether users train side by side, and let `problem` have rows for that."""
        own, example = self.loss or self.transform or isinstance(problem.loss, TorchLoss), problem.example()
        if own or self._class not in SEPARABLE or not isinstance(example, Tensor):
            return False
        B = min(self.batch, max(problem.here))
        is_small = model.layers or group_size(model, B * example[0].numel(), model.start) >= MIN_GROUP
        if not is_small or not problem.stack(model.start.dtype):
            return False
        rows = problem.rows_in(model.start.dtype)
        at = torch.tensor([0, min(1, len(rows.X) - 1)])
        return trains_side_by_side(model, problem.loss, rows.X[at], rows.y[at], B)

    def forward(self, loss: Loss, rows: Rows, subproblem: NetworkSubproblem, order: Tensor, budgets: Tensor) -> Tensor:
        lam, anchors = subproblem.anchor or (0.0, None)
        model, settings = subproblem.model, self._groups(subproblem.round, lam=lam)[0]
        usual, rate = self.steps(rows.counts), float(settings["lr"])
        plain = not any(settings.get(each) for each in ("momentum", "weight_decay", "maximize"))

        groups = list[dict[str, Any]]()  # the same for all users

        def make(parameters: Sequence[nn.Parameter]) -> Optimizer:
            optimizer = self._make(parameters)
            groups[:] = groups or self._groups(subproblem.round, parameters)
            for group, own in zip(optimizer.param_groups, groups, strict=True):
                group.update(own)
            return optimizer

        how = None if plain and self._class is SGD else make
        is_wrong = settings.get("fused") and subproblem.trained is not None  # torch's fused steps on parts of W are
        if model.side_by_side and not is_wrong:
            with on_rows("some user"):
                return side_by_side(loss, rows, subproblem, order, usual, budgets, StepRule(rate, how, self.clip))
        starts, first_rows = (usual.cumsum(0) - usual).tolist(), rows.starts.tolist()

        def train(k: int, module: nn.Module) -> nn.Module:
            named = {name: w for name, w in module.named_parameters() if w.requires_grad}
            parameters = list(named.values())
            optimizer = make(parameters) if how else None
            anchor = {} if anchors is None else model.split(anchors[k])
            correction = {} if subproblem.correction is None else model.split(subproblem.correction[k])
            normalized = any(isinstance(part, BATCH_NORMS) and part.training for part in module.modules())
            own, data = order[starts[k] :][: int(budgets[k])], subproblem.data(k)
            sizes, places = (own >= 0).sum(1), own.clamp_min(0).to(rows.y.device) + first_rows[k]
            y_own, s_own = rows.y[places], rows.s[places] * (rows.counts[k] / sizes[:, None].to(rows.s))
            for t, n in enumerate(sizes.tolist()):
                if normalized and n == 1:
                    continue
                weights = s_own[t, :n]
                with on_rows(f"user {subproblem.users[k]}"):
                    x, y = self._minibatch(loss, model, data, own[t, :n], y_own[t, :n], weights)
                    losses = self._losses(loss, model, module, x, y)
                if losses.ndim:
                    losses = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
                    losses = (weights * losses).sum()
                elif (weights * n - 1).abs().max() > 1e-5:
                    raise ConfigError(
                        "The rows have weights (class_weight, or reduction=sum), but solver.loss returns a mean. Set "
                        "+solver.loss.reduction=none."
                    )
                for w in parameters:
                    w.grad = None
                losses.backward()  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    for name, w in named.items():
                        further = [correction[name]] if correction else []
                        further += [lam * (w - anchor[name])] if anchor else []
                        for each in further:
                            w.grad = each.to(w) if w.grad is None else each.to(w) + w.grad  # which may be sparse
                if self.clip is not None:
                    for w in parameters:
                        if w.grad is not None and w.grad.is_sparse:  # torch clips no sparse gradients
                            w.grad = w.grad.to_dense()
                    nn.utils.clip_grad_norm_(parameters, self.clip)
                if optimizer:
                    optimizer.step()
                    continue
                with torch.no_grad():
                    for w in parameters:
                        if w.grad is not None:
                            w.sub_(w.grad, alpha=rate)
            return module

        return one_by_one(subproblem, budgets, train, lend=True)

    def _losses(self, loss: Loss, model: FlatModel, module: nn.Module, x: Any, y: Any) -> Tensor:
        """Return the losses of a module's outputs for a minibatch [B] or [B, ...], or their mean."""
        if isinstance(loss, TorchLoss) and self.loss is None:
            return loss.of_batch(called(module, x if loss.function else with_targets(module, x, y)), y)
        predictions, y = paired(model.predictions(scores_of(called(module, x))), y)
        return (self.loss or loss)(predictions, y)

    def _minibatch(
        self, loss: Loss, model: FlatModel, data: Dataset[Any], at: Tensor, numbers: Tensor, weights: Tensor
    ) -> tuple[Any, Any]:
        """Return the inputs and the targets of the rows with these numbers, on the device of the model.

        A loss of torch gets the targets as they are, any other as numbers [B], which are `numbers` if the items are
        the same whenever they are read.
        """
        if isinstance(data, Items):
            inputs, y = data.batch(at)
            x = model.inputs(inputs)
            if data.targets_of and not data.is_stored and (read := data.targets_of(y, len(at))) is not None:
                read = read.to(numbers)
                if not torch.equal(read, numbers) and (weights != weights[0]).any():
                    raise ConfigError(
                        "dataset.class_weight weights rows by class, but the targets or their order change with each "
                        "reading. Remove it."
                    )
                numbers = read
        else:
            rows, y = data[at] if type(data) is TensorDataset else default_collate([data[i] for i in at.tolist()])
            x = rows.to(model.start.device, model.row_dtype).reshape(len(at), *model.shape)
        if isinstance(loss, TorchLoss):
            y = each_tensor(y, model.to_device)
        else:
            y = (numbers if isinstance(data, Items) else y).to(
                model.start.device, torch.int64 if loss.classes else model.start.dtype
            )
        return x if self.transform is None else self.transform(x), y

    @property
    def _class(self) -> Any:
        """The optimizer's class, or the function that makes it."""
        given = self.optimizer
        return given.func if isinstance(given, partial) and not given.args else given

    def _make(self, parameters: Sequence[nn.Parameter] = ()) -> Optimizer:
        """Return an optimizer of these parameters, or of some with the shapes of the network's."""
        parameters = parameters or [nn.Parameter(w) for w in self._like or [torch.zeros(1, 1)]]
        try:
            optimizer = self.optimizer(parameters)
        except Exception as error:  # it may be any code
            raise ConfigError(
                f"solver.optimizer cannot be made ({reason(error)}). Choose one of torch.optim that takes such "
                "parameters."
            ) from error
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"solver.optimizer returned a {type(optimizer).__name__}. Return an optimizer, such as "
                "torch.optim.SGD(parameters, lr=0.1); a scheduler is a setting of its own, solver.scheduler."
            )
        for group in optimizer.param_groups:  # a scheduler writes into step sizes that are tensors
            group.update({name: each.clone() for name, each in group.items() if isinstance(each, Tensor)})
        return optimizer

    def _check_optimizer(self) -> None:
        """Raise ConfigError if the optimizer is one of other parameters, or takes more than a gradient for a step."""
        parameters = [nn.Parameter(w) for w in self._like]
        optimizer, known = self._make(parameters), {*map(id, parameters)}
        if any(id(w) not in known for group in optimizer.param_groups for w in group["params"]):
            raise ConfigError(
                "solver.optimizer ignores the parameters that it receives, which belong to one user. Build the "
                "optimizer from them, as in functools.partial(torch.optim.SGD, lr=0.1)."
            )
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ConfigError(
                f"solver.optimizer is {type(optimizer).__name__}, whose steps compute the loss several times. Choose "
                "an optimizer that takes one gradient for a step, or train in a LocalTrainer of your own."
            )

    def _groups(self, round: int, parameters: Sequence[nn.Parameter] = (), lam: float = 0.0) -> list[dict[str, Any]]:
        """Return the settings of each group of an optimizer in a round, for a proximal term of weight `lam`."""
        optimizer = self._make(parameters)
        if self.scheduler is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the optimizer takes no steps
                scheduler = self.scheduler(optimizer)
                try:
                    for _ in range(round):
                        scheduler.step()
                except TypeError as error:
                    raise ConfigError(
                        f"solver.scheduler is {type(scheduler).__name__}, whose steps need a value ({error}). Choose a "
                        "scheduler whose steps need none, such as CosineAnnealingLR."
                    ) from error
        return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def _check_evaluation(loss: Loss, module: nn.Module, x: Any, y: Any) -> None:
    """Raise ConfigError if a loss of torch, or one's own, fails on what a module returns in evaluation mode."""
    if not isinstance(loss, TorchLoss):
        return
    try:
        without_gradients(lambda: loss.of_batch(called(module, x if loss.function else with_targets(module, x, y)), y))
    except Exception as error:  # the parts are any code
        raise ConfigError(
            f"{loss.name} fails on what the model returns in evaluation mode, in which rows are measured "
            f"({reason(error)}). Let it take what the model returns in both modes."
        ) from error


def _check_leaves(first: Tensor, second: Tensor, module: nn.Module) -> None:
    """Raise ConfigError if losses, computed twice, have a gradient by a tensor that lasts and is not the module's."""
    own = {id(each) for part in module.modules() for each in chain(part.parameters(), vars(part).values())}
    for leaf in _leaves(first) & _leaves(second):
        if id(leaf) not in own:
            raise ConfigError(
                f"The loss depends on a parameter of shape {list(leaf.shape)} that would not be trained, because each "
                "user trains only its copy of the model. For a penalty on weights, set the optimizer's weight_decay. "
                "Make other parameters a part of the model, whose forward may return the loss, or freeze them."
            )


def _leaves(losses: Tensor) -> set[Tensor]:
    """Return the tensors by which losses have a gradient."""
    seen, nodes, leaves = set(), [losses.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            leaves.add(leaf)
        nodes += [each for each, _ in node.next_functions]
    return leaves
