"""The command line: a task becomes a command that reports a user's errors in one line and exits with a status.

Exit status: 0 if all went well; 2 after an `HmtlError`, a configuration that Hydra rejects, or a path that cannot be
read or written; 128 + n after signal n. Any other exception is a defect and shows its traceback.
"""

import io
import json
import os
import re
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hmtl.config.build import build_problem, build_tasks, check, conf_dir, identity_of
from hmtl.config.schema import flat
from hmtl.config.settings_help import settings_help
from hmtl.config.targets import of_hydra
from hmtl.errors import CheckpointError, ConfigError, HmtlError, Interrupted, complain, was_interrupted
from hmtl.training.folder import held

Complain = Callable[[str], None]
ERROR = "error.txt"
"""A sweep's job that fails leaves its error in this file."""
SWEEP = "sweep.txt"
"""A sweep that has not finished, in a folder of Hydra's choice, has its command line there in this file."""
OF_TABLES = ("K", "dataset", "partition", "loss")
"""Settings that say, without their seed, whether a table can be used."""
FOLDER_NAME = re.compile(r"[\w=.,+-]{1,100}")
"""Names of jobs that can be the names of their folders."""


def main(
    task: Callable[[DictConfig], None], config_name: str, complain: Complain = complain, resumable: bool = False
) -> NoReturn:
    """Run `task` with the configuration that the command line composes, and exit.

    In a sweep, a job that fails does not stop the others. If a sweep of a `resumable` task was stopped, the same
    command continues it.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through, without Hydra's own report
    warnings.filterwarnings("error", "provider=.* is not available", UserWarning)  # a folder that does not exist
    warnings.filterwarnings("error", "Callback Jobs.on_multirun_start raised", UserWarning)  # a defect
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # λ in an encoding without it
    statuses, Jobs.status, Jobs.resumable, full = [0], 0, resumable, "-v" in sys.argv[1:]
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "-v"]

    def job(cfg: DictConfig) -> None:
        errors: list[str] = []
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        file = Path(HydraConfig.get().runtime.output_dir, ERROR)
        if (full or in_sweep) and OmegaConf.select(cfg, "logger.console.report"):
            cfg.logger.console.report = "full" if full else "none"
        if in_sweep and "label" in (OmegaConf.select(cfg, "logger.console") or ()):
            cfg.logger.console.label = _job_name()
        if in_sweep:
            file.unlink(missing_ok=True)
            if resumable and not cfg.resume and _has_finished(cfg, file.parent):
                print(f"Job {_job_name()}: finished before", flush=True)
                return
        start = time.monotonic()
        statuses.append(exit_status(lambda: task(cfg), config_name, errors.append))
        if in_sweep and statuses[-1] == 0 and not sys.stdout.isatty():  # a terminal has shown a progress bar
            _print_job(file.with_name("summary.json"), time.monotonic() - start)
        for error in errors:
            complain(f"Job {file.parent.name}: {error}" if in_sweep else error)
            if in_sweep:
                file.write_text(f"{error}\n")
        if statuses[-1] > 2:
            if in_sweep and resumable:
                print("To continue the sweep, give the same command again.", flush=True)
            sys.exit(statuses[-1])

    if config_name == "plan" and not os.access(".", os.W_OK):
        sys.argv[1:1] = ["hydra.run.dir=.", "hydra.output_subdir=null"]  # it only prints; a typed folder comes later
    Jobs.typed = sys.argv[1:] = [_quoted(word) for word in sys.argv[1:]]
    if {"-m", "--multirun"} & set(sys.argv):
        sys.argv[1:] = [word for word in sys.argv[1:] if not _of_part(word)]
    OmegaConf.register_new_resolver("settings_help", settings_help, replace=True)
    command = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)
    statuses.append(exit_status(command, config_name, complain))
    Jobs.lock.close()
    sys.exit(max(*statuses, Jobs.status))


def _job_name() -> str:
    """Return the number of a sweep's job, and what differs between jobs, such as `2 of 3: seed=1`."""
    job = HydraConfig.get().job
    number = f"{job.num + 1} of {Jobs.total}" if Jobs.total else job.num + 1  # unknown in other processes
    return f"{number}: {job.override_dirname}"


def _has_finished(cfg: DictConfig, folder: Path) -> bool:
    """Return whether a job has finished with these settings in its folder; let it resume if it was stopped there."""
    from hmtl.training.checkpoint import load_checkpoint  # late, for --help

    if not (folder / "checkpoint.pt").exists() or Path(cfg.output_dir) != folder:
        return False
    try:
        rounds = load_checkpoint(folder, "train", identity_of(cfg))["history"]["rounds"]
    except CheckpointError:  # of other settings, or damaged
        return False
    if rounds < cfg.rounds or not (folder / "summary.json").exists():
        cfg.resume = str(folder) if rounds <= cfg.rounds else None
        return False
    return bool(rounds == cfg.rounds)


def _print_job(summary: Path, seconds: float) -> None:
    """Print a line on a job of a sweep that has trained."""
    if summary.exists():
        from hmtl.reporting.console import error_in_words  # late, for --help

        values = json.loads(summary.read_text())
        error = error_in_words(values, values["error_measure"])
        print(f"Job {_job_name()}: {error}, {seconds:.0f} s", flush=True)


def exit_status(action: Callable[[], None], config_name: str, complain: Complain = complain) -> int:
    """Run an action, report its error in one line, and return the exit status."""
    try:
        try:
            action()
        finally:
            sys.stdout.flush()
        return 0
    except Interrupted as interrupted:
        return 128 + interrupted.signum
    except SystemExit as error:
        return int(error.code or 0)
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        if was_interrupted(error):
            return 128 + signal.SIGINT
        message = _message(error, config_name)
        if message is None:
            raise
    with suppress(BrokenPipeError):
        complain(" ".join(message.split()))
    return 2


def _quoted(word: str) -> str:
    """Return `key=path` as Hydra reads it if such a path exists and has `=` or `,` in it, as folders of jobs have."""
    key, _, value = word.partition("=")
    special = not word.startswith("-") and re.search("[=,]", value)
    return f'{key}="{value}"' if special and os.path.exists(value) else word  # noqa: PTH110  # any length will do


def _of_part(word: str) -> bool:
    """Return whether a word of the command line is a setting of a part, such as `solver.epochs=1`."""
    return re.match(r"(\+{0,2}(?!hydra\.)\w+\.[^=]+=|~\w+\.)", word) is not None


def _message(error: BaseException, config_name: str) -> str | None:
    """Return the message of an error that a user can fix; None for a defect."""
    if isinstance(error, HmtlError):
        return str(error)
    in_hydra = _raised_in_hydra(error) and not isinstance(error, OSError)  # that may be of a full disk
    if (isinstance(error, Exception) and in_hydra) or isinstance(error, HydraException | OmegaConfBaseException):
        return of_hydra(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate" in str(error)):
        return f"The memory is too small ({error}). Reduce the number of users or rows."
    if isinstance(error, OSError):
        setting = "output" if config_name in ("predict", "report") else "hydra.run.dir"
        reason = f"{error.filename or 'output'}: {error.strerror or error}"
        return f"{reason}. If results go there, set {setting} to a path that can be written to."
    return None


def _raised_in_hydra(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].split(".")[0] in ("hydra", "omegaconf")


class Jobs(Callback):
    """Refuses a folder that another run uses, before Hydra writes to it; checks, names and sums up a sweep's jobs."""

    status: ClassVar[int] = 0
    typed: ClassVar[Sequence[str]] = ()
    """The command line of a sweep. Hydra composes a configuration without the values that a sweep takes, where a
    setting of a part may not exist that each job has. It gets these settings in `on_multirun_start`, for the jobs."""
    resumable: ClassVar[bool] = False
    lock: ClassVar[ExitStack] = ExitStack()
    """The lock of a sweep's folder, until the command ends."""
    total: ClassVar[int] = 0
    """How many jobs the sweep has; 0: unknown."""
    older: ClassVar[set[tuple[Path, int]]] = set()
    """The errors of an earlier sweep in the same folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit if another run uses the folder."""
        folder = Path(config.hydra.run.dir)
        if config.hydra.output_subdir is None or not folder.is_dir():
            return
        try:
            with suppress(OSError), held(folder):  # the run itself reports a folder that it cannot write to
                pass
        except ConfigError as error:
            complain(str(error))
            sys.exit(2)  # Hydra turns any other exception into a warning

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the settings and tables of each job, and name jobs by what differs, folders too if names are short.

        Exit if a job cannot run as it is set.
        """
        name = str(kwargs["config_name"])
        if status := exit_status(lambda: self._prepare(config, name), name):
            sys.exit(status)
        Jobs.older = _errors(config)

    def _prepare(self, config: DictConfig, config_name: str) -> None:
        given: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)
        task = [word for word in self.typed if word in given["task"] or _of_part(word)]
        config.hydra.overrides.task = task
        overrides = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(task)
        if any(each.is_sweep_override() and not each.is_discrete_sweep() for each in overrides):
            return  # another sweeper chooses the values
        words = {each.get_key_element(): [str(each.input_line)] for each in overrides}
        for each in filter(Override.is_sweep_override, overrides):
            key = each.get_key_element()
            words[key] = [f"{key}={value}" for value in each.sweep_string_iterator()]
        swept = [key for key, choices in words.items() if len(choices) > 1]
        names: list[str] = []
        read: list[dict[str, Any]] = []
        for job in product(*words.values()):
            names.append(",".join(sorted(word for key, word in zip(words, job, strict=True) if key in swept)))
            try:
                cfg = hydra.compose(config_name, [*given["hydra"], *job, "output_dir=."])
                with suppress(OmegaConfBaseException):  # a value of this job alone, such as ${hydra:job.num}
                    check(cfg)
                    about = {key: each for key, each in flat(cfg).items() if key.startswith(OF_TABLES)}
                    about.pop("dataset.seed", None)
                    if about.get("dataset._target_") == "hmtl.data.files" and about not in read:
                        read.append(about)
                        build_problem(cfg, build_tasks(cfg)[0])
            except (HmtlError, HydraException) as error:
                raise ConfigError(f"No job was run. Job {names[-1]}: {_message(error, config_name)}") from error
        Jobs.total = len(names)
        fixed = ",".join(key.lstrip("+~") for key in words if key not in swept)
        subdir = ["hydra.sweep.subdir=${hydra.job.override_dirname}"] if all(map(FOLDER_NAME.fullmatch, names)) else []
        config.hydra.overrides.hydra = [
            f"hydra.job.config.override_dirname.exclude_keys=[{fixed}]",
            *subdir,
            *given["hydra"],  # the settings of the command line have the last word
        ]
        if self.resumable and not any(word.startswith("hydra.sweep.dir=") for word in given["hydra"]):
            config.hydra.sweep.dir = folder = str(self._sweep_folder(Path(config.hydra.sweep.dir)))
            config.hydra.overrides.hydra.append(f'hydra.sweep.dir="{folder}"')

    def _sweep_folder(self, new: Path) -> Path:
        """Return the folder in which the same command was stopped, or a new one."""
        command = shlex.join(self.typed)
        for file in sorted(new.parents[1].glob(f"*/*/{SWEEP}"), reverse=True):
            with suppress(ConfigError, OSError):  # of a sweep that is going on
                if file.read_text() == command:
                    self.lock.enter_context(held(file.parent))
                    print(f"Continuing {file.parent}. For a new sweep, add hydra.sweep.dir=FOLDER.", flush=True)
                    return file.parent
        new.mkdir(parents=True, exist_ok=True)
        self.lock.enter_context(held(new))
        (new / SWEEP).write_text(command)
        return new

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the finished runs in a table, and take the status of the jobs, also of those in other processes."""
        from hmtl.reporting.console import Console
        from hmtl.reporting.plan_report import PLAN, sweep_of_plans, sweep_table
        from hmtl.reporting.run_comparison import as_lines, comparison_table, find_runs

        sweep = Path(config.hydra.sweep.dir)
        if failed := sorted(file.parent.name for file, _ in _errors(config) - Jobs.older):
            names = (f"number {name}" if name.isdigit() else name for name in failed)
            print(f"Jobs that failed: {'; '.join(names)}. See their {ERROR}.")
            Jobs.status = 2
        else:
            (sweep / SWEEP).unlink(missing_ok=True)
        if any(sweep.rglob("summary.json")):
            Console().table(comparison_table(as_lines(find_runs([sweep]), over_seeds=False)))
            print(f"For a picture: python -m hmtl.report {shlex.quote(str(sweep))}")
        if any(sweep.glob(f"*/{PLAN}")):
            plans = sweep_of_plans(sweep)
            plans.to_csv(sweep / "plans.csv", index=False)
            Console().table(sweep_table(plans))
            print(f"Table: {sweep / 'plans.csv'}")


def _errors(config: DictConfig) -> set[tuple[Path, int]]:
    """Return the errors of jobs in the folder of a sweep, each with the time when it was written [ns]."""
    return {(file, file.stat().st_mtime_ns) for file in Path(config.hydra.sweep.dir).glob(f"*/{ERROR}")}
