"""Networks that learn by gradients, and any module as a function of one flat vector of parameters.

d features, C outputs (classes, or 1), m parameters.
"""

import copy
import inspect
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector

from hmtl.errors import ConfigError
from hmtl.rng import generator

MakeModel = Callable[..., nn.Module]
"""Makes a module from d and C, as the class `torch.nn.Linear` does. It is applied to vectors, [n, d].

One with an argument `shape` is told a row's shape, such as (3, 32, 32), and its module applied to rows [n, *shape].
"""
TORCHS_GENERATORS = threading.Lock()  # one set for all threads of the process
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def mlp(d: int, C: int, hidden: int = 64) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, C))


def cnn(d: int, C: int, channels: int = 8, shape: Sequence[int] = ()) -> nn.Module:
    """Two convolutions, each followed by pooling, of images.

    Args:
        channels: of the first convolution's output; the second has twice as many.
        shape: [channels, height, width] of an image, or [height, width]; of vectors, square images of one channel.

    Raises:
        ConfigError: d is not the number of pixels of a square, or an image is smaller than 4 × 4.
    """
    lead: list[nn.Module] = []
    if len(shape) < 2:
        side = math.isqrt(d)
        if side**2 != d or side < 4:
            raise ConfigError(f"d={d} is not side² with side ≥ 4: of vectors, cnn takes square images. Choose mlp.")
        shape, lead = (1, side, side), [nn.Unflatten(-1, (1, side, side))]
    elif len(shape) == 2:
        shape, lead = (1, *shape), [nn.Unflatten(-2, (1, shape[0]))]
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ConfigError(f"Rows of shape {tuple(shape)} are no images of at least 4 × 4, which cnn takes. Choose mlp.")
    depth, height, width = shape
    return nn.Sequential(
        *lead,
        *(nn.Conv2d(depth, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(2 * channels * (height // 4) * (width // 4), C),
    )


class FlatModel:
    """A module whose trained parameters are a vector w [m].

    Args:
        make: gives the module.
        x: [n, d], rows to try it on.
        C: number of outputs; of one output, predictions are [n], otherwise [n, C].
        seed: of the first parameters, `start`.
        shape: of a row, for a module that is made with it; (): it is a vector.

    Raises:
        ConfigError: the module cannot be made or applied.
    """

    def __init__(self, make: MakeModel, x: Tensor, C: int, seed: int, shape: tuple[int, ...] = ()) -> None:
        self.make, d, self.C = make, x.shape[1], C
        self.shape = (shape or (d,)) if has_argument(make, "shape") else (d,)
        told = {"shape": self.shape} if has_argument(make, "shape") else {}
        try:
            with seeded(seed, "model"):
                self.module = make(d, C, **told)
            trained = {name: w for name, w in self.module.named_parameters() if w.requires_grad}
            self.shapes = {name: w.shape for name, w in trained.items()}
            self._places = _places(self.module, trained)
            self.start = parameters_to_vector(trained.values()).detach().to(x.device)
            self.module.to(x.device)
            with torch.no_grad():
                found = self.module.eval()(self._rows(x.to(self.start))).shape
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"The model does not work with d={d} features and C={C} outputs ({error}): give a class or a function "
                "that is called with d and C and returns a module, in a configuration with _partial_: true. It is "
                f"applied to rows of shape {self.shape}; one with an argument `shape`, to rows in their shape."
            ) from error
        if found != (len(x), C):
            raise ConfigError(f"The model gives shape {tuple(found)} for {len(x)} rows, not {(len(x), C)}: C={C} each.")

    def check_training(self, x: Tensor) -> None:
        """Try on rows x [n, d] whether the module learns as `LocalSGD` has it: many users at once, w all that it keeps.

        Raises:
            ConfigError: it normalises over a batch, keeps anything but parameters from one step to the next, which no
                message would carry, or does what `torch.func.vmap` cannot do for several users at once.
        """
        if any(isinstance(part, BATCH_NORMS) for part in self.module.modules()):
            raise ConfigError(
                "The model has a BatchNorm, whose running statistics are no parameters, so that nobody would send "
                "them. Replace it by GroupNorm or LayerNorm."
            )
        module, x = copy.deepcopy(self.module).train(), x.to(self.start)
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}

        def total(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            scores: Tensor = functional_call(module, parameters, (self._rows(x),))
            return scores.sum()

        with seeded(0, "check"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a slow part warns when it trains
            module(self._rows(x))
            kept = [name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])]
            if kept:
                raise ConfigError(
                    f"The model changes its buffer {kept[0]} as it learns, which is no parameter, so that nobody would "
                    "send it. Replace the part that keeps it, for instance a norm that tracks statistics by GroupNorm."
                )
            try:
                vmap(grad(total), randomness="different")(self.split(self.start.expand(2, -1)), x.expand(2, *x.shape))
            except RuntimeError as error:
                reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
                raise ConfigError(
                    f"The model cannot learn for several users at once ({reason}). See torch.func.vmap: no .item(), no "
                    "branch on what a tensor holds, no layer without a batching rule."
                ) from error

    def split(self, W: Tensor) -> dict[str, Tensor]:
        """The module's parameters [..., *shape] as views into W [..., m]."""
        parts = torch.split(W, [shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view(*W.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def __call__(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """Predictions for rows x [n, d]."""
        # left to torch, the parameters of a module that is there twice would be set twice, and not come back
        placed = {place: parameters[name] for place, name in self._places.items()}
        prediction: Tensor = functional_call(self.module, placed, (self._rows(x),), tie_weights=False)
        return prediction if self.C > 1 else prediction.squeeze(-1)

    def _rows(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], *self.shape)


def _places(module: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, str]:
    """Each place of these parameters, by a name that leads there, with the parameter's own name."""
    names = {id(w): name for name, w in trained.items()}
    places = (
        place
        for prefix, part in module.named_modules()  # each once
        for place in part.named_parameters(prefix, recurse=False, remove_duplicate=False)
    )
    return {place: names[id(w)] for place, w in places if id(w) in names}


def has_argument(make: Callable[..., Any], name: str) -> bool:
    """Whether a function or class takes an argument of that name."""
    try:
        return name in inspect.signature(make).parameters
    except (TypeError, ValueError):  # not callable, or not looked into
        return False


@contextmanager
def seeded(seed: int, *name: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Torch's own generators set for what modules draw (first weights, dropout), and put back afterwards."""
    with TORCHS_GENERATORS, torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        torch.manual_seed(_drawn(seed, *name))
        yield


def reseed(seed: int, *name: str | int) -> None:
    """Within `seeded`: the generator for processors set anew, which takes a hundredth of the time."""
    torch.default_generator.manual_seed(_drawn(seed, *name))


def _drawn(seed: int, *name: str | int) -> int:
    return int(generator(seed, *name).integers(2**63))
