"""Fixtures that several folders share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import settings
from omegaconf import DictConfig

from hmtl.config import conf_dir

settings.register_profile("hmtl", deadline=None, derandomize=True)
settings.load_profile("hmtl")
torch.set_num_threads(1)  # small products; more threads only wait for each other


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., DictConfig]:
    """`configure("K=4", ...)`: the configuration of a run, or a plan, that writes to `tmp_path`."""

    def configure(*overrides: str, name: str = "config") -> DictConfig:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose(name, [f"output_dir={tmp_path}", *overrides])

    return configure
