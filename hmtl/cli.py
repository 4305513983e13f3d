"""The command line: a task becomes a command that tells a user's errors in one line each, and exits with a number.

Exit status: 0 done; 2 an `HmtlError`, a configuration that Hydra refuses, or a place that cannot be read or written;
128 + n after signal n. Whatever else is raised is a defect, and shows its traceback.
"""

import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hmtl.config import PlanConfig, TrainConfig, conf_dir, flat
from hmtl.errors import ConfigError, HmtlError, Interrupted, complain
from hmtl.folders import held
from hmtl.leaving import leave_with
from hmtl.settings import no_setting


def main(task: Callable[[DictConfig], None], config_name: str, complain: Callable[[str], None] = complain) -> None:
    """Run `task` as a command, its configuration composed from the command line. In a sweep one bad job does not keep
    the others from running.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as they are, instead of as Hydra's own report
    known = {field.name for field in fields(TrainConfig if config_name == "config" else PlanConfig)}
    statuses = []

    def checked(cfg: DictConfig) -> None:
        for key in set(cfg) - known:
            raise ConfigError(no_setting(str(key), known))
        task(cfg)

    def job(cfg: DictConfig) -> None:  # reports its own errors, for Hydra says its own word on what leaves a job
        statuses.append(_status(partial(checked, cfg), known, complain))
        if statuses[-1] > 2:
            sys.exit(statuses[-1])

    if int(os.environ.get("RANK") or 0) > 0 and {"engine=torch_distributed", "engine=multicast"} & set(sys.argv):
        sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null"]  # the first process keeps the results
    command = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)
    with _warnings_in_lines():
        statuses.append(_status(command, known, complain))
    leave_with(max(statuses))


@contextmanager
def _warnings_in_lines() -> Iterator[None]:
    """What is logged as a warning goes to stderr as it is, and not the way of Hydra's own messages."""
    log, handler = logging.getLogger("hmtl"), logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = True


class Folder(Callback):
    """Refuses a folder in which another run is, before Hydra writes down there what this one is."""

    def on_run_start(self, config: DictConfig, **others: Any) -> None:
        folder = Path(config.hydra.run.dir)
        if config.hydra.output_subdir is None or not folder.is_dir():
            return
        try:
            with suppress(OSError), held(folder):  # where it cannot be written to, the run will tell
                pass
        except ConfigError as error:
            complain(str(error))
            sys.exit(2)  # Hydra makes a warning of any other exception


def as_experiment(cfg: DictConfig, chosen: Mapping[str, Any]) -> str:
    """A file for the group `experiment`: the values `chosen`, and all else that the command line made of the defaults.

    Outside of a command it is not known what a configuration was made of, and `chosen` is all.
    """
    tuned, values = OmegaConf.create(), dict(chosen)
    if HydraConfig.initialized():  # and so is hydra.compose, with the command's folders of configurations
        usual = hydra.compose("config", return_hydra_config=True).hydra.runtime.choices
        changed = {
            group: choice
            for group, choice in HydraConfig.get().runtime.choices.items()
            if choice != usual.get(group) and group != "experiment" and not group.startswith("hydra/")
        }
        tuned.defaults = [{f"override /{group}": choice} for group, choice in changed.items()]
        base = hydra.compose("config", [f"{group}={choice}" for group, choice in changed.items()])
        ours, theirs = (flat(c, ("output_dir", "resume", "tune", "logger"), resolve=False) for c in (cfg, base))
        values = {key: value for key, value in ours.items() if key not in theirs or theirs[key] != value} | values
    for key, value in values.items():
        OmegaConf.update(tuned, key, value, force_add=True)
    return f"# @package _global_\n{OmegaConf.to_yaml(tuned)}"


def own_folders() -> str:
    """What the next command line needs to find the folders of configurations that this one was given; "" for none."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    ours = [s for s in sources if s.provider == "command-line" or s.provider.startswith("hydra.searchpath")]
    places = [s.path if s.schema != "file" else f"file://{Path(s.path).resolve()}" for s in ours]
    return shlex.quote(f"hydra.searchpath=[{','.join(places)}]") if places else ""


def _status(action: Callable[[], None], known: Collection[str], complain: Callable[[str], None]) -> int:
    """Exit status of an action whose errors are told in one line; `known` are the settings that there are."""
    try:
        action()
        return 0
    except Interrupted as interrupted:
        return 128 + interrupted.signum
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except MissingConfigException as error:  # Hydra makes it an OSError
        message = _no_choice(error)
    except (HmtlError, HydraException, OmegaConfBaseException) as error:
        message = str(error)
        if refused := re.match("Could not override '(.+)'", message):
            message = no_setting(refused[1], known)
        elif isinstance(error, HydraException) and error.__cause__:
            message += f": {str(error.__cause__).splitlines()[0]}"
    except OSError as error:
        message = (
            f"{error.filename or 'output'}: {error.strerror or error}. If results go there, choose a folder that can "
            "be written to: hydra.run.dir=PATH."
        )
    except ValueError as error:
        if "Config group override" not in str(error):  # Hydra's word on loss=null; all else is a defect
            raise
        message = f"{error}: a group cannot be null, choose one of its parts, see --help."
    complain(" ".join(message.split()))
    return 2


def _no_choice(error: MissingConfigException) -> str:
    """Which choice of a group there is not, and which there are."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group or not error.options:
        return str(error).partition("Config search path")[0]
    return f"{group}={choice} is unknown: choose one of {', '.join(error.options)}."
