"""Compare finished runs and sweeps in a table, as CSV and in a picture: `python -m hmtl.report FOLDER ...`.

FOLDER is the folder of a run, of a sweep, or one that contains such folders. The table and FOLDER/report.csv have a row
per finished run. FOLDER/report.png has a curve per run: error against bits between relays and server, and against
seconds, with the same run uncoded beside it. `output=NAME` writes NAME.csv and NAME.png instead.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hmtl.config.command_line import exit_status
from hmtl.errors import ConfigError, DataError
from hmtl.io.files import as_csv, replacing, write_whole


def report(arguments: Sequence[str]) -> None:
    """Print the table of the runs in the given folders, and write CSV and picture.

    Args:
        arguments: folders, and optionally `output=NAME`.

    Raises:
        ConfigError: NAME is not the name of a file.
        DataError: no folder is given, a folder has no finished run, or a file of a run is damaged.
    """
    # Imported here so that --help does not wait for torch and matplotlib.
    from hmtl.reporting.console import Console
    from hmtl.reporting.run_comparison import comparison_rows, comparison_table, find_runs
    from hmtl.reporting.run_comparison_picture import comparison_picture

    folders = [Path(argument) for argument in arguments if not argument.startswith("output=")]
    outputs = [argument.removeprefix("output=") for argument in arguments if argument.startswith("output=")]
    if not folders:
        raise DataError("No folder was given. Give the folders of runs or sweeps, such as multirun/2026-01-31.")
    output = Path(outputs[-1]) if outputs else folders[0] / "report"
    if not output.name:
        raise ConfigError(
            f"output={outputs[-1]} is not the name of a file. Give a name without an ending, such as output=all."
        )
    runs = find_runs(folders)
    write_whole(output.with_name(f"{output.name}.csv"), as_csv(list(comparison_rows(runs))))
    picture = output.with_name(f"{output.name}.png")
    with replacing(picture) as file:
        comparison_picture(runs).savefig(file, format="png", dpi=130)
    console = Console()
    console.table(comparison_table(runs))
    console.print(f"Picture: {picture}; numbers: {output.name}.csv beside it", markup=False, soft_wrap=True)


def main() -> int:
    """Run the command, and return its exit status."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(__doc__, end="")
        return 0
    return exit_status(partial(report, arguments), "report")


if __name__ == "__main__":
    sys.exit(main())
