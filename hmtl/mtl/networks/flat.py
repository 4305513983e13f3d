"""Any module as a function of one flat vector of numbers: its parameters, and the buffers that training changes.

d features, C outputs (classes, or 1), m numbers, n rows.
"""

import copy
import inspect
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.parameter import is_lazy

from hmtl.errors import ConfigError
from hmtl.mtl.networks.layers import layers_of
from hmtl.rng import generator

MakeModel = Callable[..., nn.Module]
"""Makes a module from d and C, like the class `torch.nn.Linear`. The module is applied to vectors [n, d].

If it has an argument `shape`, it gets the shape of a row, such as (3, 32, 32), and its module gets rows [n, *shape].
"""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_seeding = threading.RLock()  # torch has one set of generators for all threads of a process


class FlatModel:
    """A module whose trained parameters are one vector w [m], together with the buffers that training changes.

    If training changes a buffer of a layer, as it does in BatchNorm, all floating-point buffers of this layer belong to
    w. Integers, such as `num_batches_tracked`, and frozen parameters stay as the module was made. Lazy layers are
    initialised by the rows on which the module is tried out.

    Args:
        make: makes the module.
        x: rows [n, d] on which the module is tried out.
        C: number of outputs. Predictions are [n] for one output, otherwise [n, C].
        seed: seed of the first parameters.
        shape: shape of a row, for a module that is made with it; (): rows are vectors.

    Attributes:
        module: the module.
        shapes: shape of each trained parameter, and then of each buffer in w, by name.
        buffers: names of the buffers in w.
        start: the first numbers [m].
        layers: the layers of a network of linear maps and activations, otherwise none; see `layers_of`.
        random: whether a training step draws random numbers, as dropout does; known after `check_training`.

    Raises:
        ConfigError: the module cannot be made or applied.
    """

    def __init__(self, make: MakeModel, x: Tensor, C: int, seed: int, shape: tuple[int, ...] = ()) -> None:
        d, remedy = x.shape[1], "In a configuration, name a class or function that takes d and C, with _partial_: true"
        self.make = make
        self.C = C
        self.shape: tuple[int, ...] = (d,)
        try:
            shaped = "shape" in inspect.signature(make).parameters
            self.shape = shape if shape and shaped else (d,)
            with seeded(seed, "model"):
                self.module = make(d, C, **({"shape": self.shape} if shaped else {}))
                remedy = "Make a module that takes such rows and has parameters to train"
                if any(map(is_lazy, chain(self.module.parameters(), self.module.buffers()))):
                    self.module.eval()(self._rows(x.to("cpu", torch.get_default_dtype())))
            trained = {name: w for name, w in self.module.named_parameters() if w.requires_grad}
            self._places = _places(self.module, trained)
            self.module.to(x.device)
            if not trained:
                raise ValueError("it has no parameters to train")
            first = next(iter(trained.values()))
            trial = torch.stack([torch.zeros_like(x[0]), torch.ones_like(x[0])]).to(first)
            self.buffers = _changing(self.module, self._rows(trial))
            tensors = trained | {name: each for name, each in self.module.named_buffers() if name in self.buffers}
            self.shapes = {name: each.shape for name, each in tensors.items()}
            self._places |= {name: name for name in self.buffers}
            self.start = torch.cat([each.detach().flatten().to(first) for each in tensors.values()])
            self.layers = layers_of(self.module.eval(), self.shape)
            self.random = not self.layers
            with torch.no_grad():
                output = self.module(self._rows(x.to(self.start)))
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"The model does not work with d={d} features and C={C} outputs ({error}). The module gets rows "
                f"of shape {self.shape}. {remedy}; a function with a parameter `shape` gets rows in their own shape."
            ) from error
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"The model returns a {type(output).__name__}. Return a tensor with C={C} numbers per row."
            )
        if output.shape != (len(x), C):
            numbers = f" (classes are 0..{C - 1}: subtract 1 if yours begin at 1)" if C > 1 else ""
            raise ConfigError(
                f"The model returns shape {tuple(output.shape)} for {len(x)} rows, not {(len(x), C)}. Return C={C} "
                f"numbers per row{numbers}. If there are more classes than anybody's rows show, give the data as "
                "hmtl.data.from_datasets(data, classes=C)."
            )

    def check_training(self, x: Tensor) -> None:
        """Check on rows x [n, d] that the module can be trained for several users at once.

        Raises:
            ConfigError: the module normalises over a batch, changes buffers during training, or does something that
                `torch.func.vmap` cannot handle.
        """
        if self.layers:
            return  # linear maps and activations can
        module, x = copy.deepcopy(self.module).train(), x.to(self.start)
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}

        def total(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            scores: Tensor = functional_call(module, parameters, (self._rows(x),))
            return scores.sum()

        with seeded(0, "check", device=x.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a slow layer warns again when it trains
            state = _generator_state(x.device)
            module(self._rows(x))
            self.random = not torch.equal(state, _generator_state(x.device))
            norms = [type(part).__name__ for part in module.modules() if isinstance(part, BATCH_NORMS)]
            others = [name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])]
            if changing := [*norms, *others, *self.buffers]:
                raise ConfigError(
                    f"The model's {changing[0]} changes with the minibatches of training, which solver=sgd cannot do "
                    "for several users at once. Choose solver=torch, or GroupNorm or LayerNorm if it is a norm."
                )
            try:
                vmap(grad(total), randomness="different")(self.split(self.start.expand(2, -1)), x.expand(2, *x.shape))
            except RuntimeError as error:
                reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
                raise ConfigError(
                    f"The model cannot be trained for several users at once ({reason}). Remove .item(), branches on "
                    "the values of a tensor, and layers without a batching rule: torch.func.vmap does not allow them. "
                    "Or choose solver=torch."
                ) from error

    def check_no_buffers(self, algorithm: str) -> None:
        """Raise ConfigError if w contains buffers, for an algorithm that must not take steps on them."""
        if self.buffers:
            raise ConfigError(
                f"{algorithm} moves the numbers of models otherwise than to an average, and the model's "
                f"{self.buffers[0]} must not be. Choose algorithm=fedavg or fedper, or GroupNorm or LayerNorm for it."
            )

    def holding(self, w: Tensor, trained: Collection[str] | None = None) -> nn.Module:
        """Return a new module with the numbers w [m], of whose parameters only `trained` need gradients; None: all."""
        module = copy.deepcopy(self.module)
        module.load_state_dict(self.split(w), strict=False)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in self.shapes and (trained is None or name in trained))
        return module

    def vector(self, module: nn.Module) -> Tensor:
        """Return the numbers [m] of a module with the same named tensors.

        Raises:
            ConfigError: a tensor is missing or has another shape.
        """
        named = dict(chain(module.named_parameters(), module.named_buffers()))
        for name, shape in self.shapes.items():
            if name not in named or named[name].shape != shape:
                raise ConfigError(
                    f"The trained module has no {name} of shape {list(shape)}. Return the module that was passed, or "
                    "one with the same parameters and buffers."
                )
        return torch.cat([named[name].detach().flatten().to(self.start) for name in self.shapes])

    def split(self, W: Tensor) -> dict[str, Tensor]:
        """Return the parameters and buffers [..., *shape] as views of W [..., m]."""
        parts = torch.split(W, [shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view(*W.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def moving(self, trained: Collection[str] | None) -> Tensor:
        """Return 1 for numbers of these parameters and 0 for others [m]; [1] for all parameters (None)."""
        if trained is None:
            return self.start.new_ones(1)
        each = [self.start.new_full((shape.numel(),), name in trained) for name, shape in self.shapes.items()]
        return torch.cat(each)

    def __call__(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return the predictions for rows x [n, d]."""
        # tie_weights=False: if a module occurs twice, torch would set its weights twice and not restore them
        placed = {place: parameters[name] for place, name in self._places.items()}
        prediction: Tensor = functional_call(self.module, placed, (self._rows(x),), tie_weights=False)
        return self.predictions(prediction)

    def predictions(self, output: Tensor) -> Tensor:
        """Return the module's output [..., C] as predictions, [...] if C = 1."""
        return output if self.C > 1 else output.squeeze(-1)

    def _rows(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], *self.shape)


def _changing(module: nn.Module, rows: Tensor) -> list[str]:
    """Return the floating-point buffers of the layers whose buffers change in a training pass over rows."""
    saved = {name: each for name, each in module.named_buffers() if name in module.state_dict()}
    if not saved:
        return []
    trial = copy.deepcopy(module).train()
    with seeded(0, "check", device=rows.device), torch.no_grad():
        trial(rows)
    after = dict(trial.named_buffers())
    layers = {name.rpartition(".")[0] for name, each in saved.items() if not torch.equal(each, after[name])}
    return [name for name, each in saved.items() if name.rpartition(".")[0] in layers and each.is_floating_point()]


def _places(module: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, str]:
    """Return, for each place where a trained parameter is used, the name of that parameter."""
    names = {id(w): name for name, w in trained.items()}
    places = (
        place
        for prefix, part in module.named_modules()  # each module once
        for place in part.named_parameters(prefix, recurse=False, remove_duplicate=False)
    )
    return {place: names[id(w)] for place, w in places if id(w) in names}


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def seeded(seed: int, *name: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generators, from which modules draw, and restore them afterwards."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with _seeding, torch.random.fork_rng(devices):
        number = int(generator(seed, *name).integers(2**63))
        torch.default_generator.manual_seed(number)  # torch.manual_seed takes milliseconds where CUDA is not in use
        if devices:
            torch.cuda.manual_seed_all(number)  # the device need not be the current one
        yield
