"""Compare runs and sweeps: `python -m hmtl.report FOLDER ... [KEY=VALUE ...]`.

A FOLDER is that of a run or a sweep, or contains such folders. Runs that differ
only by seed are one line: their mean, and the standard deviation over n seeds.
FOLDER gets report.csv (all numbers of a line), report_runs.csv (of each run),
the table as report.md and .tex, and the picture as report.png, .pdf and .svg.

measure=NAME     what to compare, a column of metrics.csv: test_error (default),
                 test_error_worst, test_balanced_error, test_auc, gap, ...
panels=A,B,...   panels of the picture: rounds, bits, seconds, users (default)
                 or communication (seconds without measured compute)
spread=se        after ± and in bands: standard errors; sd (default): deviations
columns=A,B,...  columns of the tables: run, n, rounds, average, worst, Mbit, ...
labels='{coded: ours}'   new labels, by those of lines and settings in the table
links=N          also print the bits of the N busiest links of each line, and the
                 bits by kind of message; links.csv in a run's folder has all
output=NAME      write NAME.csv and so on in the current folder; A/NAME: in A
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import yaml

from hmtl.config.command_line import exit_status
from hmtl.config.targets import no_setting
from hmtl.errors import ConfigError, DataError, run_command

REPORT_SETTINGS = ("measure", "panels", "labels", "output", "spread", "columns", "links")


def report(arguments: Sequence[str]) -> None:
    """Print the table of the runs in the given folders, and write tables and picture.

    Args:
        arguments: folders and settings, see the module.

    Raises:
        ConfigError: a setting is unknown or has a wrong value.
        DataError: no folder is given, a folder has no finished run, or a file of a run is damaged.
    """
    from hmtl.reporting.comparison_report import write_report  # late: --help waits for neither torch nor matplotlib

    folders, settings = _parse(arguments)
    if not folders:
        raise DataError("No folder was given. Give the folders of runs or sweeps, such as multirun/2026-01-31.")
    panels = settings["panels"].split(",") if "panels" in settings else ()
    spread, columns = settings.get("spread", "sd"), settings["columns"].split(",") if "columns" in settings else ()
    labels = _labels(settings.get("labels", "{}"))
    links = settings.get("links", "0")
    if not links.isdecimal():
        raise ConfigError(f"links={links} is not a whole number. Give the number of links to print, such as links=10.")
    output = settings.get("output")
    write_report(folders, settings.get("measure"), panels, labels, output, spread, columns, links=int(links))


def _parse(arguments: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Return the folders and the settings on the command line."""
    folders, settings = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in REPORT_SETTINGS and equals:
            settings[key] = value
        elif not equals or "/" in key or Path(argument).exists():
            folders.append(Path(argument))
        else:
            raise ConfigError(no_setting(key, REPORT_SETTINGS))
    return folders, settings


def _labels(text: str) -> dict[str, str]:
    """Return new labels by the usual ones, from a mapping in YAML."""
    with suppress(yaml.YAMLError, AttributeError):
        return {str(usual): str(new) for usual, new in yaml.safe_load(text).items()}
    raise ConfigError(f"labels={text} is not a mapping. Write labels='{{coded: ours}}' to call what is coded ours.")


if __name__ == "__main__":
    run_command(__doc__, lambda words: sys.exit(exit_status(partial(report, words), "report")))
