"""Networks that learn by gradients, and any module as a function of one flat vector of parameters.

d features, C outputs (classes, or 1), m parameters.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from hmtl.errors import ConfigError
from hmtl.rng import generator

MakeModel = Callable[[int, int], nn.Module]
"""Makes a module from d and C, as the class `torch.nn.Linear` does."""
TORCHS_GENERATORS = threading.Lock()  # one set for all threads of the process
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def mlp(d: int, C: int, hidden: int = 64) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, C))


def cnn(d: int, C: int, channels: int = 8) -> nn.Module:
    """Two convolutions, each followed by pooling, of square images with one channel.

    Raises:
        ConfigError: d is not the number of pixels of such an image, of at least 4 × 4.
    """
    side = math.isqrt(d)
    if side**2 != d or side < 4:
        raise ConfigError(f"d={d} is not side² with side ≥ 4: cnn takes square images of one channel. Choose mlp.")
    return nn.Sequential(
        nn.Unflatten(-1, (1, side, side)),
        *(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(2 * channels * (side // 4) ** 2, C),
    )


class FlatModel:
    """A module whose trained parameters are a vector w [m].

    Args:
        make: gives the module.
        x: [n, d], rows to try it on.
        C: number of outputs; of one output, predictions are [n], otherwise [n, C].
        seed: of the first parameters, `start`.

    Raises:
        ConfigError: the module cannot be made or applied, or normalises over a batch, whose running statistics no
            message carries.
    """

    def __init__(self, make: MakeModel, x: Tensor, C: int, seed: int) -> None:
        d, self.C = x.shape[1], C
        try:
            with seeded(seed, "model"):
                self.module = make(d, C)
            trained = {name: w for name, w in self.module.named_parameters() if w.requires_grad}
            self.shapes = {name: w.shape for name, w in trained.items()}
            self.start = parameters_to_vector(trained.values()).detach().to(x.device)
            self.module.to(x.device)
            with torch.no_grad():
                found = self.module.eval()(x.to(self.start)).shape
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"The model does not work with d={d} features and C={C} outputs ({error}): give a class or a function "
                "that is called with d and C and returns a module, in a configuration with _partial_: true."
            ) from error
        if found != (len(x), C):
            raise ConfigError(f"The model gives shape {tuple(found)} for {len(x)} rows, not {(len(x), C)}: C={C} each.")
        if any(isinstance(part, BATCH_NORMS) for part in self.module.modules()):
            raise ConfigError(
                "The model has a BatchNorm, whose running statistics are no parameters, so that nobody would send "
                "them. Replace it by GroupNorm or LayerNorm."
            )

    def split(self, W: Tensor) -> dict[str, Tensor]:
        """The module's parameters [..., *shape] as views into W [..., m]."""
        parts = torch.split(W, [shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view(*W.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def __call__(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """Predictions for rows x [n, d]."""
        prediction: Tensor = functional_call(self.module, parameters, (x,))
        return prediction if self.C > 1 else prediction.squeeze(-1)


@contextmanager
def seeded(seed: int, *name: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Torch's own generators set for what modules draw (first weights, dropout), and put back afterwards."""
    with TORCHS_GENERATORS, torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        torch.manual_seed(int(generator(seed, *name).integers(2**63)))
        yield
