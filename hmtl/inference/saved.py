"""Saved models: the file `models.npz` in a run's folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hmtl.errors import ConfigError, DataError
from hmtl.inference.models import Models
from hmtl.io.npz import load_arrays
from hmtl.mtl.networks.flat import MakeModel


def load_models(file: Path, maker: MakeModel | None = None) -> tuple[Models, bool]:
    """Return the models in a file that `Models.save` wrote, and whether they are networks.

    Args:
        file: the npz file.
        maker: function that creates the networks.

    Raises:
        DataError: if the file is missing, damaged, or holds something else.
        ConfigError: if the models are linear and a maker is given.
    """
    try:
        saved: dict[str, Any] = dict(load_arrays(file))
        is_network = bool(saved.pop("network"))
        for name in ("names", "shape", "columns"):
            saved[name] = tuple(saved[name].tolist())
        saved |= {"intercept": bool(saved["intercept"]), "seed": int(saved["seed"])}
        models = Models(**saved)
        models.check(is_network)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} does not hold the models of a run ({error}). Give the folder of a finished run."
        ) from error
    if maker is not None and not is_network:
        raise ConfigError(f"{file} holds linear models. Leave model out.")
    return replace(models, maker=maker), is_network
