"""APFL: each user predicts with a mixture of its own network and the shared one."""

from collections.abc import Mapping

from torch import Tensor

from hmtl.errors import ConfigError
from hmtl.mtl.learners.base import Numbers, Train
from hmtl.mtl.learners.personal_models import PersonalModels


class APFL(PersonalModels):
    """FedAvg's w, and for each user a mixture α v + (1 − α) w of its own v and the shared model.

    The mixture takes steps on the user's rows, and v moves by α times as much as the mixture.

    Args:
        alpha: α in (0, 1]; 1 trains v alone.

    For one step per round, this is the paper's rule. For several, the paper takes each gradient at the mixture of the
    present v and w, and here it is taken where the steps on the mixture itself have led.

    Ref: Deng, Kamani, Mahdavi 2020, *Adaptive personalized federated learning*, with one α for all users.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        if not 0 < alpha <= 1:
            raise ConfigError(f"alpha={alpha:g} is not in (0, 1]. Give the share of the user's own model.")
        self.alpha = alpha

    def local(self, shared: Numbers, own: Numbers, train: Train) -> Mapping[str, Tensor]:
        w = train(shared.w)
        mixed = self._mixed(own.v, shared.w)
        own.v = own.v + self.alpha * (train(mixed) - mixed)
        return {"w": w}

    def predictor(self, shared: Numbers, own: Numbers) -> Tensor:
        return self._mixed(own.v, shared.w)

    def _mixed(self, v: Tensor, w: Tensor) -> Tensor:
        return self.alpha * v + (1 - self.alpha) * w
