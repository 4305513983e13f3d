"""Finished runs: their models, with the networks that their configuration names."""

from pathlib import Path

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hmtl.errors import ConfigError
from hmtl.inference.models import Models, load_models
from hmtl.mtl.networks.flat import MakeModel


def load_run(path: str | Path, model: MakeModel | None = None) -> Models:
    """Return the models of a finished run.

    Args:
        path: the run's folder, or the `models.npz` in it.
        model: function that creates the networks, if the run trained networks; None: the `algorithm.model` of the
            configuration in the run's folder. That configuration is executed like any other.

    Raises:
        DataError: if there are no models, or the file is damaged.
        ConfigError: if the models are networks without a known `algorithm.model`, or linear and `model` is given.
    """
    folder = Path(path)
    file = folder / "models.npz" if folder.is_dir() else folder
    return load_models(file, model, lambda: _network_of(file.parent))


def _network_of(folder: Path) -> MakeModel:
    """Return what creates the networks of the run in `folder`, according to its configuration."""
    try:
        maker: MakeModel = instantiate(OmegaConf.load(folder / ".hydra" / "config.yaml").algorithm.model)
    except (OSError, HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{folder} holds networks, but its .hydra/config.yaml does not say how to create them ({reason}). Give the "
            "run's algorithm.model as model."
        ) from error
    return maker
