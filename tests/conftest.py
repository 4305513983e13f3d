"""Fixtures that several folders share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from omegaconf import DictConfig
from problems import make

from hmtl.config.build import compose

settings.register_profile("hmtl", deadline=None, derandomize=True)
settings.load_profile("hmtl")
torch.set_num_threads(1)  # small products; more threads only wait for each other


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., DictConfig]:
    """`configure("K=4", ...)`: the configuration of a run, or a plan, that writes to `tmp_path`."""

    def configure(*overrides: str, name: str = "config") -> DictConfig:
        return compose(f"output_dir={tmp_path}", *overrides, name=name)

    return configure


@pytest.fixture(scope="session")
def random_problem():
    return make
