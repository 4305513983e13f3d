"""Start all processes of a run on this machine: `python -m hmtl.launch processes=8 topology=symmetric r=3`.

There are N processes for processes=N: one for the server, one for each relay, and the rest are hosts that share the
users. All other arguments are those of `hmtl.train`, whose --help lists them; `engine=torch_distributed` is added
unless an engine is chosen.
"""

import sys
from collections.abc import Sequence
from functools import partial

from hmtl.distributed.launching import Report, run_processes
from hmtl.errors import complain

PRELOAD = (
    "hmtl.train",
    "hmtl.training.trainer",
    "hmtl.distributed.engine",
    "hmtl.mtl",
    "hmtl.reporting.run_pictures",
    "cvxpy",
    "scipy.optimize",
)
"""What most runs import; together these take each process two seconds."""


def launch(arguments: Sequence[str]) -> int:
    """Run `hmtl.train` in all processes, and return the exit status of the first, which keeps the results."""
    if {"--help", "-h"} & set(arguments):
        print(__doc__, end="")
        return 0
    counts = [argument.removeprefix("processes=") for argument in arguments if argument.startswith("processes=")]
    if len(counts) != 1 or not counts[0].isdecimal() or int(counts[0]) < 1:
        complain("processes=N must be given once, N being a positive integer. Set it to 1 + H + the number of hosts.")
        return 2
    if "engine=in_process" in arguments:
        complain("engine=in_process runs in a single process. Start it with python -m hmtl.train.")
        return 2
    settings = [argument for argument in arguments if not argument.startswith("processes=")]
    if not any(setting.startswith("engine=") for setting in settings):
        settings.append("engine=torch_distributed")
    return run_processes(int(counts[0]), partial(_train, settings), complain, PRELOAD)


def _train(settings: Sequence[str], report: Report) -> None:
    """Run `hmtl.train` with these settings, as from the command line."""
    from hmtl.config.command_line import main
    from hmtl.train import train

    sys.argv = ["hmtl.train", *settings]
    main(train, "config", report)


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
