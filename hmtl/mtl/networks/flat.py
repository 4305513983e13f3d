"""Any module as a function of one flat vector of numbers: its parameters, and the buffers that training changes.

d features, C outputs (classes, or 1), m numbers, n rows.
"""

import copy
import dis
import inspect
import json
import math
import random
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from hashlib import sha256
from itertools import chain
from types import FunctionType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import UninitializedBuffer, is_lazy

from hmtl.data.items import TARGETS, described, each_tensor, is_text
from hmtl.errors import ConfigError, HmtlError, reason
from hmtl.mtl.networks.calls import arguments, called, scores_of, with_targets, without_gradients
from hmtl.mtl.networks.layers import layers_of
from hmtl.mtl.networks.notes import Notes
from hmtl.rng import generator

MakeModel = Callable[..., nn.Module]
"""Makes a module from d and C, like the class `torch.nn.Linear`. The module is applied to vectors [n, d].

If it has an argument `shape`, it gets the shape of a row, such as (3, 32, 32), and its module gets rows [n, *shape].
"""
MAX_NETWORKS = 1 << 20  # networks
# memory of what is computed at once: on a CPU it should fit in the cache; on a GPU, fewer calls are faster
CPU_BYTES = 4 << 20
GPU_BYTES = 1 << 30
FEWEST_ROWS, MOST_ROWS = 16, 1024  # of which predictions are computed at once
LARGE = 1024  # numbers in a buffer
WRITES_INTO_TRUNK = (
    "Training writes into {}, which is frozen and exists once for all users. Let it require a gradient if it is to be "
    "trained, or make it a buffer if forward changes it."
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_seeding = threading.RLock()  # torch has one set of generators for all threads of a process


class FlatModel:
    """A module whose trained parameters are one vector w [m], together with the buffers that training changes.

    If training changes a buffer of a layer, as it does in BatchNorm, all floating-point buffers of this layer belong to
    w, and so do the integers that change, except `num_batches_tracked`. That, frozen parameters and plain attributes
    stay as the module was made. Lazy layers are initialized by the rows on which the module is tried out.

    Args:
        make: makes the module.
        x: rows on which the module is tried out, real ones if there are any: [n, d], or with `as_given` any inputs.
        C: number of outputs. Predictions are [n] for one output, otherwise [n, C]. None: they have any shape.
        seed: seed of the first parameters.
        shape: shape of a row, for a module that is made with it; (): rows are vectors.
        as_given: whether rows are passed to the module as they are, see `arguments`; otherwise they are vectors [n, d].
        device: where the module is.
        frozen: mode of layers that have parameters, but none to train, while others train. In evaluation mode, dropout
            leaves numbers as they are, and BatchNorm uses the statistics that it has, which then do not travel.

    Attributes:
        module: the module.
        shapes: shape of each trained parameter, and then of each buffer in w, by name.
        buffers: names of the buffers in w.
        types: types of those that are not of the type of w, by name.
        start: the first numbers [m], float64 if the first parameter is, and float32 otherwise.
        layers: the layers of a network of linear maps and activations, otherwise none; see `layers_of`.
        side_by_side: whether several users train at once; solvers that can do this set it, see `trains_side_by_side`.
        random: whether a training step draws random numbers, as dropout does; known where `side_by_side` is.
        most_at_once: number of networks whose intermediate results fit in a processor's cache; known there, too.
        kept: frozen parameters, and large buffers that training leaves alone, by name; all modules share them.
        frozen: names of the layers that stay in evaluation mode.
        channels_last: whether the module runs with kernels whose channels are last in memory, see `channels_last`.
        rows_at_once: number of rows whose predictions are computed at once.

    Raises:
        ConfigError: the module cannot be made or applied.
    """

    def __init__(
        self,
        make: MakeModel,
        x: Any,
        C: int | None,
        seed: int,
        shape: tuple[int, ...] = (),
        as_given: bool = False,
        device: str | torch.device | None = None,
        frozen: Literal["eval", "train"] = "eval",
    ) -> None:
        remedy = "In a configuration, name a class or function that takes d and C, with _partial_: true"
        if as_given:
            shape = tuple(x.shape[1:]) if isinstance(x, Tensor) else ()
        d = math.prod(shape) if as_given else x.shape[1]
        device = device or (x.device if isinstance(x, Tensor) else "cpu")
        self.make, self.C, self.as_given = make, C, as_given
        self.shape: tuple[int, ...] = (d,)
        try:
            with seeded(seed, "model"):
                self.module, self.shape = made(make, d, C or 1, shape)
                self.shape = shape if as_given else self.shape
                if isinstance(x, Mapping) and TARGETS[0] in x:
                    y, x = x[TARGETS[0]], {name: each for name, each in x.items() if name != TARGETS[0]}
                    x = with_targets(self.module, x, y)
                remedy = "Make a module that takes such rows and has parameters to train"
                if any(map(is_lazy, chain(self.module.parameters(), self.module.buffers()))):
                    lazy = each_tensor(x, Tensor.cpu)
                    self.row_dtype = torch.get_default_dtype()
                    without_gradients(lambda: called(self.module.eval(), self._rows(lazy)))
            if isinstance(self.module, nn.DataParallel):
                raise ConfigError("The model is a DataParallel, which splits rows over devices. Give its `module`.")
            if any(isinstance(part, torch.jit.ScriptModule) for part in self.module.modules()):
                raise ConfigError(
                    "The model has a script, whose copies torch cannot train. Give the module before `script`."
                )
            trained = {name: w for name, w in self.module.named_parameters() if w.requires_grad}
            if is_complex := [name for name, w in trained.items() if w.is_complex()]:
                raise ConfigError(
                    f"The model's {is_complex[0]} is complex. Make it a real parameter [..., 2], and call "
                    "torch.view_as_complex in forward."
                )
            self._places = _places(self.module, trained)
            self.module.to(device)
            if not trained:
                raise ConfigError("The model has no parameters to train, or all are frozen. Call requires_grad_().")
            self._lent: nn.Module | None = None
            self._notes: Notes | None = None  # of the module that is lent
            self._first_notes = Notes(self.module)
            first = {name: each.detach().clone() for name, each in self.module.named_buffers() if is_small(each)}
            self.frozen = _frozen(self.module) if frozen == "eval" else ()
            w = next(iter(trained.values()))
            like = w.new_empty(0, dtype=torch.float64 if w.dtype == torch.float64 else torch.float32)
            x = each_tensor(x, lambda each: each.to(device))
            self.row_dtype = self._dtype_of_rows(x, like.dtype)
            self.buffers = self._changing(self._rows(x))
            tensors = trained | {name: each for name, each in self.module.named_buffers() if name in self.buffers}
            self.kept = self._kept()
            self.shapes = {name: each.shape for name, each in tensors.items()}
            self.types = {name: each.dtype for name, each in tensors.items() if each.dtype != like.dtype}
            self._first_buffers = {
                name: each for name, each in first.items() if name not in self.shapes and name not in self.kept
            }
            self._places |= {name: name for name in chain(self.buffers, self._first_buffers)}
            self.start = torch.cat([each.detach().flatten().to(like) for each in tensors.values()])
            self.module.eval()
            self.layers = () if as_given or self.types else layers_of(self.module, self.shape)
            self.side_by_side, self.random = False, not self.layers
            self.most_at_once = MAX_NETWORKS
            sizes = list[int]()
            with _sizes_of_results(self.module, sizes):
                output = without_gradients(lambda: called(self.module, self._rows(x)))
            self.rows_at_once = self._rows_within(max(sizes, default=0) / 2)
            self.channels_last = self._runs_with_channels_last(x)
            self._check_modes(self._rows(x))
        except HmtlError:
            raise
        except Exception as error:  # a module is any code
            if as_given:
                cause = "The last entry of an item that is not a dictionary is its target"
                if isinstance(error, IndexError) and "range" in str(error):
                    cause = "Number ids from 0, each below the number of embeddings"
                elif isinstance(x, Mapping) and any(
                    isinstance(each, list) and not is_text(each) for each in x.values()
                ):
                    cause = "Lists of numbers become tensors with datasets.Dataset.with_format('torch')"
                elif isinstance(x, list | tuple):
                    cause = (
                        "All entries but the last, the target, are arguments of forward; put a list that is one "
                        "argument into a dictionary"
                    )
                elif isinstance(x, Mapping):
                    cause = "Name entries as the parameters of forward, or let collate_fn of a DataLoader return (x, y)"
                raise ConfigError(
                    f"The model does not work with a batch of two items, {described(x)} ({reason(error)}). {remedy}: "
                    f"call it on such a batch. {cause}."
                ) from error
            raise ConfigError(
                f"The model does not work with d={d} features and C={C} outputs ({reason(error)}). The module gets "
                f"rows of shape {self.shape}. {remedy}; a function with a parameter `shape` gets rows in their shape."
            ) from error
        if C is None:
            return
        scores = scores_of(output)
        n = len(x) if isinstance(x, Tensor) else len(scores)
        if tuple(scores.shape) not in ((n, C), (n,) * (C == 1)):
            numbers = f"classes are 0..{C - 1}: subtract 1 if yours begin at 1" if C > 1 else "classes are integers"
            raise ConfigError(
                f"The model returns shape {tuple(scores.shape)} for {n} rows, not {(n, C)}. Return C={C} "
                f"numbers per row ({numbers}). If there are more classes than anybody's rows show, give the data as "
                "hmtl.data.from_datasets(data, classes=C)."
            )

    def _dtype_of_rows(self, x: Any, dtype: torch.dtype) -> torch.dtype:
        """Return the type of rows with which the module runs: `dtype`, or that of its first parameter."""
        first = next(self.module.parameters()).dtype
        is_float = isinstance(x, Tensor) and x.is_floating_point()
        if (self.as_given and not is_float) or first == dtype or not first.is_floating_point:
            return dtype
        self.row_dtype = dtype
        try:
            without_gradients(lambda: called(self.module.eval(), self._rows(x)))
        except RuntimeError:
            return first
        return dtype

    def _changing(self, rows: Any) -> list[str]:
        """Return the names of the buffers that a training pass changes, and of the other floats of their layers."""
        module = self.module
        saved = {name: each for name, each in module.named_buffers() if name in module.state_dict()}
        if not saved:
            return []
        trial = self.to_train(copied(module, module.parameters()))
        with seeded(0, "check", device=next(module.parameters()).device):
            without_gradients(lambda: called(trial, rows))
        after = dict(trial.named_buffers())
        changed = {name for name, each in saved.items() if not torch.equal(each, after[name])}
        if resized := [name for name in changed if after[name].shape != saved[name].shape]:
            raise ConfigError(
                f"The model's {min(resized)} gets another shape in training. First call the model on a batch in "
                "training mode."
            )
        layers = {name.rpartition(".")[0] for name in changed}
        own = {name: each for name, each in saved.items() if name.rpartition(".")[0] in layers}
        counters = {name for name in changed if name.endswith("num_batches_tracked")}
        if endless := [name for name in changed if not own[name].isfinite().all()]:
            raise ConfigError(
                f"The model's {min(endless)} is not finite before training, so that it has no averages. First call the "
                "model on a batch in training mode."
            )
        return [
            name
            for name, each in own.items()
            if name in changed - counters or (each.is_floating_point() and each.isfinite().all())
        ]

    def _rows_within(self, nbytes: float) -> int:
        """Return how many rows to predict at once, if the largest result of a layer has `nbytes` per row."""
        most = CPU_BYTES if self.start.is_cpu else GPU_BYTES
        return int(min(max(most // max(nbytes, 1), FEWEST_ROWS), MOST_ROWS))

    def _runs_with_channels_last(self, x: Any) -> bool:
        """Return whether the module runs with kernels whose channels are last; `view` may need the usual order."""
        parameters = self.split(self.start)
        if not self.start.is_cpu or all(w.ndim != 4 for w in parameters.values()):
            return False
        try:
            placed = {name: channels_last(w) for name, w in parameters.items()}
            without_gradients(lambda: self.output(placed, self._rows(x)))
        except RuntimeError:
            return False
        return True

    @torch.no_grad()
    def _check_modes(self, rows: Any) -> None:
        """Raise ConfigError if the module computes with weights that it set when its mode was changed last."""
        if not (own := _own_modes(self.module)):
            return
        w, outputs = self.start.clone(), list[Tensor]()
        module = self.to_train(self.holding(w))
        with seeded(0, "check", device=w.device):
            for name, numbers in self.split(w).items():
                if name not in self.buffers:
                    numbers += torch.randn(numbers.shape).to(numbers) / 32

        def keep(each: Tensor) -> Tensor:
            outputs.append(each.double())
            return each

        with seeded(0, "check", device=w.device):
            each_tensor(without_gradients(lambda: self.output(self.placed(self.split(w)), rows)), keep)
        with seeded(0, "check", device=w.device):
            each_tensor(without_gradients(lambda: called(self._with(module, w, None).eval(), rows)), keep)
        self.forget()
        n = len(outputs) // 2
        pairs = zip(outputs[:n], outputs[n:], strict=True)
        if not all(torch.allclose(*pair, rtol=1e-3, atol=1e-5, equal_nan=True) for pair in pairs):
            raise ConfigError(
                f"The model sets weights when it is switched to evaluation mode, by {own[0].__name__}.train, and then "
                "computes with these. Leave weights as they are (merge_weights=False), or compute others in forward."
            )

    @property
    def outline(self) -> str:
        """What a process needs to know of this network to load its numbers, as JSON."""
        tensors = {name: list(shape) for name, shape in self.shapes.items()}
        about = {"C": self.C or 1, "shape": self.shape, "as_given": self.as_given, "tensors": tensors}
        about["row_dtype"] = str(self.row_dtype).removeprefix("torch.")
        return json.dumps(about | {"kept": list(self.kept), "trunk": self.trunk})

    def check_no_buffers(self, algorithm: str) -> None:
        """Raise ConfigError if w contains buffers, for an algorithm that must not take steps on them."""
        if self.buffers:
            name, is_count = self.buffers[0], self.buffers[0] in self.types
            remedy = "register it with persistent=False" if is_count else "GroupNorm or LayerNorm in place of BatchNorm"
            raise ConfigError(
                f"{algorithm} does more than average models, but the model's buffer {name} changes in training and can "
                f"only be averaged. Choose algorithm=fedavg or fedper, or {remedy}."
            )

    def to_train(self, module: nn.Module) -> nn.Module:
        """Set a module to training mode, except for frozen layers, and return it."""
        module.train()
        for name in self.frozen:
            module.get_submodule(name).eval()
        return module

    def holding(self, w: Tensor, trained: Collection[str] | None = None) -> nn.Module:
        """Return a new module with the numbers w [m], of whose parameters only `trained` need gradients; None: all.

        All such modules share the tensors in `kept`.
        """
        return self._with(self._copied(), w, trained)

    def forget(self) -> None:
        """Let the attributes of `module` be as they were before it was tried out, in its present mode."""
        self._first_notes.restore()
        if _own_modes(self.module):
            self.module.train(self.module.training)

    def _copied(self) -> nn.Module:
        """Return a copy of the module that shares `kept`, with attributes as they were before it was tried out."""
        self.forget()
        module = copied(self.module, self.kept.values())
        self._reset_buffers(module)
        return module

    def _reset_buffers(self, module: nn.Module) -> None:
        """Let small buffers that do not travel be as they were before the module was tried out."""
        named = dict(module.named_buffers())
        for name, each in self._first_buffers.items():
            if name in named:
                named[name].copy_(each)

    @property
    def keeps_notes(self) -> bool:
        """Whether the module that was lent last has written into its attributes since, such as a count of its calls."""
        return self._notes is not None and self._notes.are_changed

    def lent(self, w: Tensor, trained: Collection[str] | None = None) -> nn.Module:
        """Return `holding(w, trained)` in a module that the next call takes back; all calls are from one thread.

        Its mode is that of its last use.
        """
        if self._lent is None or self._notes is None:
            self._lent = self.to_train(self._copied())
            self._notes = Notes(self._lent)
            for name, each in self._lent.named_parameters():
                each.data = channels_last(each.data) if self.channels_last and name in self.shapes else each.data
        self._notes.restore()
        self._reset_buffers(self._lent)
        return self._with(self._lent, w, trained)

    @torch.no_grad()
    def _with(self, module: nn.Module, w: Tensor, trained: Collection[str] | None) -> nn.Module:
        named = dict(chain(module.named_parameters(), module.named_buffers()))
        for name, numbers in self.split(w).items():
            named[name].copy_(as_type(numbers, named[name].dtype))
            if name not in self.buffers:
                named[name].requires_grad_(trained is None or name in trained).grad = None
        return module

    def _kept(self) -> dict[str, Tensor]:
        """Return what training leaves alone: frozen parameters, and buffers that are too large to count something."""
        frozen = {name: w for name, w in self.module.named_parameters() if not w.requires_grad}
        layers = {name.rpartition(".")[0] for name in self.buffers}
        large = {name: each for name, each in self.module.named_buffers() if not is_small(each)}
        return frozen | {name: each for name, each in large.items() if name.rpartition(".")[0] not in layers}

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Raise ConfigError if the code in this context writes into a tensor that all modules share."""
        before = [place_of(each) for each in self.kept.values()]
        yield
        for (name, each), place in zip(self.kept.items(), before, strict=True):
            if place_of(each) != place:
                raise ConfigError(WRITES_INTO_TRUNK.format(name))

    @contextmanager
    def keeping_numbers(self) -> Iterator[None]:
        """Do as `keeping` does, but compare the numbers, since code can change these through `data` unnoticed."""
        before = {name: digest({name: each}) for name, each in self.kept.items()}
        yield
        for name, each in self.kept.items():
            if digest({name: each}) != before[name]:
                raise ConfigError(WRITES_INTO_TRUNK.format(name))

    @cached_property
    def trunk(self) -> str:
        """A digest of the frozen tensors, by which another trunk is recognized; empty if there are none."""
        return digest(self.kept)

    def write(self, module: nn.Module, w: Tensor) -> None:
        """Write the numbers of a module with the same named tensors into w [m].

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
        for name, numbers in self.split(w).items():
            numbers.copy_(named[name].detach())

    def split(self, W: Tensor) -> dict[str, Tensor]:
        """Return the parameters and buffers [..., *shape] as views of W [..., m]."""
        parts = torch.split(W, [shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view(W.shape[:-1] + shape)  # a shape may be ()
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
        return self.predictions(scores_of(self.output(parameters, self._rows(x))))

    def output(self, parameters: dict[str, Tensor], inputs: Any) -> Any:
        """Return the module's output for inputs, with these parameters and buffers."""
        typed = {name: as_type(w, self.types[name]) if name in self.types else w for name, w in parameters.items()}
        # torch.view_as_complex takes no view that begins anywhere in a vector
        typed = {name: w.clone() if w.shape[-1:] == (2,) else w for name, w in typed.items()}
        # tie_weights=False: if a module occurs twice, torch would set its weights twice and not restore them
        placed = {place: typed[name] for place, name in self._places.items() if name in typed}
        args, named = arguments(self.module, inputs)
        return functional_call(self.module, placed, args, named, tie_weights=False)

    def placed(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return named parameters as the module runs fastest with them, and copies of buffers, which it may change."""
        ordered = {name: channels_last(each) if self.channels_last else each.detach() for name, each in parts.items()}
        buffers = {name: ordered[name] for name in self.buffers} | self._first_buffers
        return ordered | {name: each.clone() for name, each in buffers.items()}

    def inputs(self, x: Any) -> Any:
        """Return rows as the module takes them, on its device: [n, d] or, if they are passed as given, any inputs."""
        return self._rows(each_tensor(x, self.to_device))

    def to_device(self, each: Tensor) -> Tensor:
        """Return a tensor on the device of the module."""
        return each.to(self.start.device)

    def predictions(self, scores: Tensor) -> Tensor:
        """Return the module's scores [..., C] as predictions, [...] if C = 1."""
        return scores.squeeze(-1) if self.C == 1 and scores.shape[-1:] == (1,) else scores

    def _rows(self, x: Any) -> Any:
        """Return rows [..., n, d] as the module takes them; of several inputs as given, float64 alone is narrowed."""
        if self.as_given:
            x = narrowed(x, self.row_dtype)
            is_flat = isinstance(x, Tensor) and x.shape[1:] == (math.prod(self.shape),)
            return x.view(len(x), *self.shape) if is_flat else x
        return x.to(self.row_dtype).view(*x.shape[:-1], *self.shape)


def made(make: MakeModel, d: int, C: int, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a module and the shape of its rows, which is [d] if `make` takes no shape."""
    shaped = "shape" in inspect.signature(make).parameters
    shape = shape if shape and shaped else (d,)
    return make(d, C, **({"shape": shape} if shaped else {})), shape


def maker_of(model: nn.Module | MakeModel) -> MakeModel:
    """Return a function of d and C that copies the module, or calls a function that takes no arguments.

    Raises:
        ConfigError: the model is neither.
    """
    if not callable(model):
        raise ConfigError(f"model is a {type(model).__name__}. Give the module that was trained, or what made it.")
    if isinstance(model, nn.Module):
        return lambda *_: copied(model, ())
    try:
        inspect.signature(model).bind()
    except TypeError:
        return model
    return lambda *_: model()


def loaded(make: MakeModel, outline: str, w: Tensor, seed: int) -> nn.Module:
    """Return a new module with the numbers w [m] of a trained network that `outline` describes; no rows are needed.

    Raises:
        ConfigError: `make` fails, or creates another network.
    """
    about = json.loads(outline)
    shapes = {name: torch.Size(shape) for name, shape in about["tensors"].items()}
    try:
        with seeded(seed, "model"):  # numbers that were not trained come from the seed
            module, _ = made(make, math.prod(about["shape"]), about["C"], tuple(about["shape"]))
        named = dict(chain(module.named_parameters(), module.named_buffers()))
    except Exception as error:  # what makes a module is any code
        raise ConfigError(
            f"model makes no network ({reason(error)}). Give the run's module or algorithm.model."
        ) from error
    for name, shape in shapes.items():
        if name not in named or not (is_lazy(named[name]) or named[name].shape == shape):
            raise ConfigError(
                f"model creates a network without {name} of shape {list(shape)}, which was trained. Give the "
                "run's module or algorithm.model."
            )
    if any(name not in named for name in about["kept"]) or (
        about["trunk"] != digest({name: named[name] for name in about["kept"]})
    ):
        raise ConfigError(
            "model creates a network whose frozen numbers are others than those of the run. Give the same pretrained "
            "numbers."
        )
    parts = torch.split(w, [shape.numel() for shape in shapes.values()])
    numbers = {
        name: as_type(part.view(shape), named[name].dtype)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    module.load_state_dict(numbers, strict=False)
    return module


def is_small(buffer: Tensor) -> bool:
    """Return whether a buffer is small enough to be a counter, which may change later than in the first steps."""
    return buffer.numel() <= LARGE


def narrowed(inputs: Any, dtype: torch.dtype) -> Any:
    """Return inputs as a module takes them: floats in this type, of several tensors only those that are float64."""
    is_float = isinstance(inputs, Tensor) and inputs.is_floating_point()
    return each_tensor(inputs, lambda each: each.to(dtype) if is_float or each.dtype == torch.float64 else each)


def as_type(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers in a type; averages are rounded to integers if the type is one."""
    return (numbers if dtype.is_floating_point else numbers.round()).to(dtype)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Let parameters be as they were if a change of the mode, also of copies that share them, may write into them."""
    before = [(w, w.detach().clone()) for w in module.parameters() if not is_lazy(w)] if _own_modes(module) else []
    try:
        yield
    finally:
        with torch.no_grad():
            for w, numbers in before:
                if not torch.equal(w, numbers):
                    w.copy_(numbers)


def copied(module: nn.Module, shared: Iterable[Tensor]) -> nn.Module:
    """Return a deep copy of a module that shares some of its tensors, if their shapes are known.

    torch can copy neither what `torch.nn.utils.weight_norm` keeps of its last call, nor a buffer of a lazy layer.

    Raises:
        ConfigError: a parameter has a hook, which torch would leave out, the module holds a function that refers to it,
            which torch does not copy, or something that has no copy.
    """
    for name, w in module.named_parameters():
        if w._backward_hooks or w._post_accumulate_grad_hooks:
            raise ConfigError(
                f"The model's {name} has a hook, which the users' copies would lack. Call a torch.autograd.Function in "
                "forward instead."
            )
    memo: dict[int, Any] = {id(each): each for each in shared if not is_lazy(each)}
    memo |= {id(each): UninitializedBuffer() for each in module.buffers() if isinstance(each, UninitializedBuffer)}
    held = (each for part in module.modules() for each in vars(part).values())
    memo |= {id(each): each.detach() for each in held if isinstance(each, Tensor) and not each.is_leaf}
    # a frozen part in evaluation mode is the same in all copies
    trains = [part for part in module.modules() if part.training or any(w.requires_grad for w in part.parameters())]
    own = {id(each) for each in chain(trains, (w for w in module.parameters() if w.requires_grad))} - memo.keys()
    try:
        made = copy.deepcopy(module, memo)
    except (TypeError, RuntimeError, ValueError) as error:  # open files, locks
        raise ConfigError(
            f"The model cannot be copied for the users ({error}). Leave out of it what has no copy, such as open files."
        ) from error
    for part in made.modules():
        for name, each in vars(part).items():
            if _refers(each, own):
                raise ConfigError(
                    f"A function that the model holds ({name}) refers to the model, of which users train copies. Make "
                    "it a method of the model, or refer to frozen parts in evaluation mode alone."
                )
    return made


def place_of(tensor: Tensor) -> tuple[int, int]:
    """Return the address and the version of a tensor; if its numbers change, one of these usually does."""
    return tensor.data_ptr(), tensor._version


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of tensors by name; empty if there are none."""
    content = sha256()
    for name, each in tensors.items():
        content.update(f"{name} {each.dtype} {list(each.shape)}".encode())
        content.update(each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest() if tensors else ""


def channels_last(w: Tensor) -> Tensor:
    """Return a parameter, with its channels last in memory if it is the kernel of a convolution on a CPU.

    Layers pass this order on to their outputs, and convolutions and pooling are faster with it.
    """
    if w.ndim != 4 or not w.is_cpu:
        return w
    return torch.empty_like(w, memory_format=torch.channels_last).copy_(w)  # unlike `contiguous`, also for one channel


def _frozen(module: nn.Module) -> tuple[str, ...]:
    """Return the outermost layers that have parameters, but none to train."""
    found: list[str] = []
    for name, part in module.named_modules():
        parameters = list(part.parameters())
        is_frozen = parameters and not any(w.requires_grad for w in parameters)
        if is_frozen and not name.startswith(tuple(f"{outer}." for outer in found)):
            found.append(name)
    return tuple(found)


def _own_modes(module: nn.Module) -> list[type]:
    """Return the types of a module's parts that do more than note their mode when it is changed."""
    return [type(part) for part in module.modules() if type(part).train is not nn.Module.train]


def _refers(value: Any, own: Set[int], depth: int = 3) -> bool:
    """Return whether a function, or one of several, refers to an object with one of these identities."""
    if isinstance(value, Mapping | list | tuple):
        return any(_refers(each, own, depth) for each in (value.values() if isinstance(value, Mapping) else value))
    if isinstance(value, partial):
        return _refers([value.func, *value.args, *value.keywords.values()], own, depth)
    if not isinstance(value, FunctionType) or not depth:
        return False
    held = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    loaded = {each.argval for each in dis.get_instructions(value) if each.opname == "LOAD_GLOBAL"}
    if any(_is_or_belongs_to(value.__globals__.get(name), own) for name in loaded):
        return True
    for cell in value.__closure__ or ():
        with suppress(ValueError):  # it is empty
            held.append(cell.cell_contents)
    return any(_is_or_belongs_to(each, own) or _refers(each, own, depth - 1) for each in held)


def _is_or_belongs_to(value: Any, own: Set[int]) -> bool:
    """Return whether a value, or the object that it is a method of, has one of these identities."""
    return bool({id(value), id(getattr(value, "__self__", None))} & own)


def _places(module: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, str]:
    """Return the name of the trained parameter by each name that it has in the module."""
    names = {id(w): name for name, w in trained.items()}
    places = (
        place
        for prefix, part in module.named_modules()  # each module once
        for place in part.named_parameters(prefix, recurse=False, remove_duplicate=False)
    )
    return {place: names[id(w)] for place, w in places if id(w) in names}


@contextmanager
def seeded(seed: int, *name: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python, and restore them afterwards."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with _seeding, torch.random.fork_rng(devices):
        number = int(generator(seed, *name).integers(2**63))
        torch.default_generator.manual_seed(number)  # torch.manual_seed takes milliseconds where CUDA is not in use
        if devices:
            torch.cuda.manual_seed_all(number)  # the device need not be the current one
        states = random.getstate(), np.random.get_state()  # noqa: NPY002, what others draw from
        random.seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def _sizes_of_results(module: nn.Module, sizes: list[int]) -> Iterator[None]:
    """Append the sizes in bytes of what a module and its parts take and return in this context."""

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        def measured(each: Tensor) -> Tensor:
            sizes.append(each.nbytes)
            return each

        if not torch.compiler.is_compiling():  # the compiler knows no sizes in bytes
            each_tensor((inputs, output), measured)

    hooks = [part.register_forward_hook(add) for part in module.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
