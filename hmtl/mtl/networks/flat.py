"""Any module as a function of one flat vector of parameters.

d features, C outputs (classes, or 1), m parameters, n rows.
"""

import copy
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector

from hmtl.errors import ConfigError
from hmtl.mtl.networks.layers import layers_of
from hmtl.rng import generator

MakeModel = Callable[..., nn.Module]
"""Makes a module from d and C, like the class `torch.nn.Linear`. The module is applied to vectors [n, d].

If it has an argument `shape`, it gets the shape of a row, such as (3, 32, 32), and its module gets rows [n, *shape].
"""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_seeding = threading.Lock()  # torch has one set of generators for all threads of a process


class FlatModel:
    """A module whose trained parameters are one vector w [m].

    Args:
        make: makes the module.
        x: rows [n, d] on which the module is tried out.
        C: number of outputs. Predictions are [n] for one output, otherwise [n, C].
        seed: seed of the first parameters.
        shape: shape of a row, for a module that is made with it; (): rows are vectors.

    Attributes:
        module: the module.
        shapes: shape of each trained parameter, by name.
        start: the first parameters [m].
        layers: the layers of a network of linear maps and activations, otherwise none; see `layers_of`.
        random: whether a training step draws random numbers, as dropout does; known after `check_training`.

    Raises:
        ConfigError: the module cannot be made or applied.
    """

    def __init__(self, make: MakeModel, x: Tensor, C: int, seed: int, shape: tuple[int, ...] = ()) -> None:
        d = x.shape[1]
        self.make = make
        self.C = C
        self.shape: tuple[int, ...] = (d,)
        try:
            shaped = "shape" in inspect.signature(make).parameters
            self.shape = shape if shape and shaped else (d,)
            with seeded(seed, "model"):
                self.module = make(d, C, **({"shape": self.shape} if shaped else {}))
            trained = {name: w for name, w in self.module.named_parameters() if w.requires_grad}
            self.shapes = {name: w.shape for name, w in trained.items()}
            self._places = _places(self.module, trained)
            self.start = parameters_to_vector(trained.values()).detach().to(x.device)
            self.layers = layers_of(self.module.eval(), self.shape)
            self.random = not self.layers
            self.module.to(x.device)
            with torch.no_grad():
                output = self.module(self._rows(x.to(self.start)))
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"The model does not work with d={d} features and C={C} outputs ({error}). Give a class or a function "
                "that takes d and C and returns a module, in a configuration with _partial_: true. The module is "
                f"applied to rows of shape {self.shape}; to rows in their own shape if the class or function has an "
                "argument `shape`."
            ) from error
        if output.shape != (len(x), C):
            raise ConfigError(
                f"The model returns shape {tuple(output.shape)} for {len(x)} rows, not {(len(x), C)}. Return C={C} "
                "numbers per row."
            )

    def check_training(self, x: Tensor) -> None:
        """Check on rows x [n, d] that the module can be trained for several users at once.

        Raises:
            ConfigError: the module normalises over a batch, changes buffers during training (no message carries them),
                or does something that `torch.func.vmap` cannot handle.
        """
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
            unsent = [type(part).__name__ for part in module.modules() if isinstance(part, BATCH_NORMS)]
            unsent += [name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])]
            if unsent:
                raise ConfigError(
                    f"The model's {unsent[0]} changes with the minibatches of training, but is not a parameter, so no "
                    "message carries it. Replace the layer; if it is a norm, use GroupNorm or LayerNorm."
                )
            try:
                vmap(grad(total), randomness="different")(self.split(self.start.expand(2, -1)), x.expand(2, *x.shape))
            except RuntimeError as error:
                reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
                raise ConfigError(
                    f"The model cannot be trained for several users at once ({reason}). Remove .item(), branches on "
                    "the values of a tensor, and layers without a batching rule: torch.func.vmap does not allow them."
                ) from error

    def split(self, W: Tensor) -> dict[str, Tensor]:
        """Return the module's parameters [..., *shape] as views of W [..., m]."""
        parts = torch.split(W, [shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view(*W.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

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
