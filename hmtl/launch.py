"""Start all nodes of a run here: `python -m hmtl.launch processes=8 r=3`.

One of N processes is the server, each relay has one, and the rest are hosts
that share the users. `hmtl.train --help` lists all other settings.
"""

import sys
from collections.abc import Sequence

from hmtl.errors import ConfigError, run_command


def launch(arguments: Sequence[str]) -> None:
    """Run `hmtl.train` with nodes in processes of their own; it exits with the status of the run."""
    counts = [argument.removeprefix("processes=") for argument in arguments if argument.startswith("processes=")]
    if len(counts) != 1 or not counts[0].isdecimal() or int(counts[0]) < 1:
        raise ConfigError("processes must be given once, as a positive integer. Set it to 1 + H + the number of hosts.")
    if any(argument.startswith("engine=") for argument in arguments):
        raise ConfigError("engine is chosen by hmtl.launch. Leave it out, or start the run with hmtl.train.")
    from hmtl.config.command_line import main  # late, as --help does not need Hydra
    from hmtl.train import train

    settings = [argument for argument in arguments if not argument.startswith("processes=")]
    sys.argv = ["hmtl.train", *settings, "engine=site", f"engine.processes={counts[0]}"]
    main(train, "config")


if __name__ == "__main__":
    run_command(__doc__, launch)
