"""The command line: a task becomes a command that tells a user's errors in one line each, and exits with a number.

Exit status: 0 done; 2 an `HmtlError`, a configuration that Hydra refuses, or a place that cannot be read or written;
128 + n after signal n. Whatever else is raised is a defect, and shows its traceback.
"""

import io
import logging
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hmtl.config.build import compose, conf_dir
from hmtl.config.checks import no_setting
from hmtl.config.schema import PlanConfig, PredictConfig, TrainConfig, flat
from hmtl.errors import ConfigError, HmtlError, Interrupted, complain
from hmtl.reporting.console import Console
from hmtl.training.folder import held


def main(task: Callable[[DictConfig], None], config_name: str, complain: Callable[[str], None] = complain) -> NoReturn:
    """Run `task` as a command, its configuration composed from the command line. In a sweep one bad job does not keep
    the others from running.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us as they are, instead of as Hydra's own report
    warnings.filterwarnings("error", "provider=.* is not available", UserWarning)  # a folder that is not there
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # λ, where the terminal's encoding has none
    statuses = []

    def checked(cfg: DictConfig) -> None:
        for key in set(cfg) - _ROOTS[config_name]:
            raise ConfigError(_no_setting(str(key), config_name))
        task(cfg)

    def job(cfg: DictConfig) -> int:  # reports its own errors, for Hydra says its own word on what leaves a job
        statuses.append(status(partial(checked, cfg), config_name, complain))
        if statuses[-1] > 2:
            sys.exit(statuses[-1])
        return statuses[-1]

    if int(os.environ.get("RANK") or 0) > 0 and {"engine=torch_distributed", "engine=multicast"} & set(sys.argv):
        sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null"]  # the first process keeps the results
    command = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)
    with _warnings_in_lines():
        for action in (_check_flags, command):
            statuses.append(status(action, config_name, complain))
            if statuses[-1]:
                break
    sys.exit(max(*statuses, *Jobs.failed))


@contextmanager
def _warnings_in_lines() -> Iterator[None]:
    """What is logged as a warning goes to stderr as it is, and not the way of Hydra's own messages."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # Hydra would show that it looks for fonts
    log, handler = logging.getLogger("hmtl"), logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = True


class Jobs(Callback):
    """Refuses a folder in which another run is, before Hydra writes down there what this one is; closes a sweep."""

    failed: ClassVar[list[int]] = [0]  # statuses of a sweep's jobs, which may have run in processes of their own

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

    def on_multirun_start(self, config: DictConfig, **others: Any) -> None:
        for file in Path(config.hydra.sweep.dir).glob(f"*/{config.hydra.output_subdir}/failed"):
            file.unlink()  # of an earlier sweep in this folder

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **others: Any) -> None:
        if config.hydra.output_subdir is not None:
            failed = Path(config.hydra.runtime.output_dir, config.hydra.output_subdir, "failed")
            failed.unlink(missing_ok=True)
            status = job_return.return_value if job_return.status is JobStatus.COMPLETED else 1
            if status:
                failed.write_text(str(status))

    def on_multirun_end(self, config: DictConfig, **others: Any) -> None:
        from hmtl.report import find, table

        sweep = Path(config.hydra.sweep.dir)
        self.failed.extend(int(file.read_text()) for file in sweep.glob(f"*/{config.hydra.output_subdir}/failed"))
        if any(sweep.rglob("summary.json")):
            Console().table(table(find([sweep])))
            if failed := sum(map(bool, self.failed)):
                print(f"{failed} job{'s' * (failed > 1)} ended with an error, told above.")
            print(f"Compare in a picture: python -m hmtl.report {shlex.quote(str(sweep))}")


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


def status(action: Callable[[], None], config_name: str = "config", complain: Callable[[str], None] = complain) -> int:
    """Exit status of an action whose errors are told in one line."""
    try:
        try:
            action()
        finally:
            sys.stdout.flush()
        return 0
    except Interrupted as interrupted:
        return 128 + interrupted.signum
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as left:  # Hydra's, of 1 after a word of its own
        return 2 if left.code == 1 else int(left.code or 0)
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        setting = "output" if config_name in ("predict", "report") else "hydra.run.dir"
        message = _no_choice(error) or (
            f"{error.filename or 'output'}: {error.strerror or error}. If results go there, choose a folder that can "
            f"be written to: {setting}=PATH."
        )
    except Exception as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        ours = frame.f_globals["__name__"].split(".")[0] not in ("hydra", "omegaconf")
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate" in str(error)):  # torch's
            message = f"the memory does not hold so much ({error}): choose smaller numbers, of users or rows say."
        elif ours and not isinstance(error, HmtlError | HydraException | OmegaConfBaseException):
            raise
        else:
            message = _told(error, config_name)
    with suppress(BrokenPipeError):
        complain(" ".join(message.split()))
    return 2


def _check_flags() -> None:
    """Refuse what begins with a dash and is no flag, in one line instead of Hydra's page."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}: see --help for the flags; settings, key=value, stand side by side.")

    parser.error = refuse  # type: ignore[method-assign]  # argparse would print a page and exit
    parser.parse_args()


_ROOTS = {
    name: {field.name for field in fields(kind)}
    for name, kind in (("config", TrainConfig), ("plan", PlanConfig), ("predict", PredictConfig))
}
_COMMANDS = {"config": "hmtl.train", "plan": "hmtl.plan", "predict": "hmtl.predict"}


def _told(error: Exception, config_name: str) -> str:
    """What an error says, in the words of the command line where it has Hydra's own."""
    message = str(error)
    if refused := re.match("Could not override '(.+)'", message):
        return _no_setting(refused[1], config_name)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set: give {error.full_key}=..., see --help for what it is."
    if "Config group override" in message:
        for key, _, value in (word.partition("=") for word in sys.argv[1:]):
            if key and re.fullmatch(r"null|true|false|[\d.]+", value, re.IGNORECASE) and (choices := _choices(key)):
                return f"{key}={value}: a group cannot be null or a number, choose one of {', '.join(choices)}."
    if isinstance(error, HydraException) and error.__cause__:
        message += f": {str(error.__cause__).splitlines()[0]}"
    return re.sub(r"\s+full_key: (\S*).*", r" (\1)", message, flags=re.DOTALL)


def _no_setting(key: str, config_name: str) -> str:
    """Says that there is no such setting, and which one, of the parts chosen, may be meant."""
    root = key.partition(".")[0]
    for other, roots in _ROOTS.items():
        if other != config_name and root in roots - _ROOTS[config_name]:
            return f"there is no setting {key!r} here, it is one of {_COMMANDS[other]}: leave it out."
    known = sorted(_ROOTS[config_name])
    with suppress(HydraException, OmegaConfBaseException):
        chosen = [word for word in sys.argv[1:] if _choices(word.partition("=")[0])]
        cfg = hydra.compose(config_name, chosen) if HydraConfig.initialized() else compose(*chosen, name=config_name)
        known += flat(cfg, resolve=False)
    return no_setting(key, known)


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")) if group else []


def _no_choice(error: OSError) -> str:
    """Which choice of a group there is not, and which there are; "" of an error that Hydra did not make an OSError."""
    if not isinstance(error, MissingConfigException):
        return ""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group or not error.options:
        return str(error).partition("Config search path")[0]
    elsewhere = ", or give the folder that has it by --config-dir PATH" if group == "experiment" else ""
    return f"{group}={choice} is unknown: choose one of {', '.join(error.options)}{elsewhere}."
