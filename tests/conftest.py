"""Fixtures that several folders share."""

import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from examples import ALL, QUICK
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf
from problems import make

import hmtl.distributed  # noqa: F401  # before a test imports grpc
from hmtl.config.build import compose, conf_dir

settings.register_profile("quick", deadline=None, derandomize=True, max_examples=QUICK)
settings.register_profile("all", deadline=None, derandomize=True, max_examples=ALL)
settings.load_profile("quick")  # unless --hypothesis-profile names another one
torch.set_num_threads(1)  # small products; more threads only wait for each other


gc.disable()  # until all tests are collected: they live to the end

with suppress(ImportError):  # when Hydra sets up logging, absl closes its stream, which may be the one of pytest
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


def pytest_collection_finish() -> None:
    gc.freeze()  # a collection need not visit tests and modules again and again
    gc.enable()


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., DictConfig]:
    """`configure("K=4", ...)`: the configuration of a run, or a plan, that writes to `tmp_path`."""

    def configure(*overrides: str, name: str = "config") -> DictConfig:
        values = [each for each in overrides if _is_value(each)]
        cfg = compose("output_dir=.", *(each for each in overrides if not _is_value(each)), name=name)
        for each in OverridesParser.create().parse_overrides([f"output_dir={tmp_path}", *values]):
            OmegaConf.update(cfg, each.key_or_group, each.value())
        return cfg

    return configure


def _is_value(override: str) -> bool:
    """Whether it sets a value, and neither chooses from a group nor adds or deletes."""
    return override[0] not in "+~" and not (conf_dir() / override.partition("=")[0]).is_dir()


@pytest.fixture(scope="session")
def random_problem():
    return make
