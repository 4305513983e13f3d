"""Run one node: `python -m hmtl.node name=relay-2 deployment=site.yaml`.

The file names all nodes, and has the settings of hmtl.train that they share.
Settings of one node follow: device, dataset.path, dataset.test_path,
dataset.root, logger, engine.interface, hydra.* and metrics=PORT, the port of
http://.../metrics for Prometheus (needs hmtl[site]).

The server keeps the results in runs/NAME, or in hydra.run.dir. Started again,
it continues from its checkpoint there. Other nodes keep no files, except hosts
with metrics=sums. A node may be started again at any time, and takes part once
its data are loaded. At SIGTERM, the server ends the run after the current
round, with a checkpoint; any other node leaves the run.
"""

import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hmtl.errors import ConfigError, ProcessLost, complain, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)
COMMAND = ("name", "deployment", "metrics")
"""Settings that only this command has."""
LOGGING_OVERRIDES = (
    "hydra.job_logging.formatters.simple.format='%(asctime)s {}: %(message)s'",
    "+hydra.job_logging.loggers.hmtl.level=INFO",
)


def main(arguments: Sequence[str]) -> None:
    """Run a node, and exit."""
    from hmtl.config import command_line  # late, as --help does not need Hydra
    from hmtl.distributed.deployment import Deployment

    given = {key: value for key, _, value in (word.partition("=") for word in arguments) if key in COMMAND}
    metrics = _port("metrics", given["metrics"]) if "metrics" in given else None
    words = _words(given, [word for word in arguments if word.partition("=")[0] not in COMMAND])
    sys.argv = ["hmtl.node", *words]
    named = Deployment.read(given["deployment"]).named
    play = partial(run, name=given["name"], metrics=metrics)
    command_line.main(play, "config", lambda error: complain(named(error)))


def run(cfg: "DictConfig", name: str, metrics: int | None) -> None:
    """Play a node: the server from its checkpoint if there is one, any other again if the server is lost."""
    from hmtl.config.build import agreed, build, build_training, check, load_tasks
    from hmtl.distributed.deployment import Deployment
    from hmtl.distributed.site import serve
    from hmtl.reporting.operation import Operation
    from hmtl.train import play

    folder, deployment = Path(cfg.output_dir), Deployment.read(cfg.engine.deployment)
    leads = name == deployment.server.name
    if leads and (folder / "summary.json").exists():
        print(f"The run in {folder} has finished. For another one, set hydra.run.dir.")
        return
    # otherwise the first process of a container would ignore it until the run begins
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def with_names(record: logging.LogRecord) -> bool:
        record.msg, record.args = deployment.named(record.getMessage()), None
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(with_names)
    operation = Operation(cfg.rounds, deployment.named, metrics)
    try:
        if leads:
            if (folder / "checkpoint.pt").exists():
                cfg.resume = str(folder)
            objects = build(cfg)
            objects.trainer.loggers = (*objects.trainer.loggers, operation)
            operation.begin(objects.trainer.history, objects.engine.nodes, objects.engine.missing)
            play(objects, cfg, "start the server again")
            return
        check(cfg)
        engine = cfg.engine
        party = deployment.party(deployment.role(name), agreed(cfg))
        parts = deployment.homes, partial(load_tasks, cfg), partial(build_training, cfg)
        while True:
            operation.wait()
            try:
                serve(party, *parts, engine.seconds, engine.patience, engine.interface, operation.plays)
                return
            except ProcessLost as error:
                log.warning("%s This node begins again.", error.what)
    finally:
        operation.close()


def _words(given: Mapping[str, str], typed: Sequence[str]) -> list[str]:
    """Return the words of hmtl.train for the node that is given, with further words that were typed."""
    from hmtl.config.build import OF_ONE_NODE
    from hmtl.distributed.deployment import Deployment

    if missing := [key for key in ("name", "deployment") if not given.get(key)]:
        raise ConfigError(f"{missing[0]} is not set. Write python -m hmtl.node name=relay-0 deployment=site.yaml.")
    name, file = given["name"], given["deployment"]
    deployment = Deployment.read(file)
    deployment.role(name)  # so that an unknown name is refused here
    for word in typed:
        key = word.lstrip("+~").partition("=")[0]
        if not word.startswith("-") and not any(f"{key}.".startswith(f"{own}.") for own in (*OF_ONE_NODE, "hydra")):
            raise ConfigError(f"{word} is not a setting of one node. Put it under training in {file}, for all nodes.")
    place = (
        [f"hydra.run.dir=runs/{name}"]
        if name == deployment.server.name
        else ["hydra.run.dir=.", "hydra.output_subdir=null"]
    )
    site = ["engine=site", "engine.patience=3600", f"engine.deployment={file}", "logger=node"]
    return [*site, *deployment.training, *place, LOGGING_OVERRIDES[0].format(name), *LOGGING_OVERRIDES[1:], *typed]


def _port(name: str, value: str) -> int:
    if not value.isdecimal() or not 0 < int(value) < 2**16:
        raise ConfigError(f"{name}={value} is not a port. Set it to a number from 1 to 65535.")
    return int(value)


if __name__ == "__main__":
    run_command(__doc__, main)
