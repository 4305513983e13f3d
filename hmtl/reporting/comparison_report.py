"""The report on finished runs: a table that is printed, and the same in files, with a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from hmtl.errors import ConfigError
from hmtl.io.files import write_whole
from hmtl.reporting import run_comparison as tables
from hmtl.reporting.console import Console
from hmtl.reporting.console_logger import link_tables
from hmtl.reporting.run_comparison_picture import comparison_picture
from hmtl.reporting.style import Picture


def write_report(
    folders: Sequence[Path],
    measure: str | None = None,
    panels: Sequence[str] = (),
    labels: Mapping[str, str] = MappingProxyType({}),
    output: str | Path | None = None,
    spread: str = "sd",
    columns: Sequence[str] = (),
    links: int = 0,
) -> Picture:
    """Print the table of the runs in these folders, write it and the picture to files, and return the picture.

    Args:
        folders, measure: see `run_comparison.find_runs`.
        panels: see `comparison_picture`.
        labels: see `run_comparison.as_lines`.
        spread, columns: see `run_comparison.readable`; `spread` is that of the picture's bands, too.
        output: path of the files without their endings; None: `report` in the first folder.
        links: how many of the busiest links of each line to print, and Mbit by kind of message; 0: none.

    Raises:
        ConfigError: `output` is not the name of a file.
    """
    path = folders[0] / "report" if output is None else Path(output)
    if not path.name:
        raise ConfigError(
            f"output={output} is not the name of a file. Give a name without an ending, such as output=all."
        )
    runs = tables.find_runs(folders, measure)
    lines = tables.as_lines(runs, labels=labels)
    shown, picture = tables.comparison_table(lines, spread, columns), comparison_picture(lines, panels, spread)
    path.parent.mkdir(parents=True, exist_ok=True)
    for ending, text in {
        ".csv": tables.comparison(lines).to_csv(index=False),
        "_runs.csv": tables.comparison(tables.as_lines(runs, over_seeds=False)).to_csv(index=False),
        ".md": tables.as_markdown(lines, spread, columns),
        ".tex": f"% {tables.title(lines, spread)}\n"
        + tables.as_latex(tables.readable(lines, spread, columns, "latex")),
    }.items():
        write_whole(path.with_name(path.name + ending), text)
    picture.write(path, "png", "pdf", "svg")
    console = Console()
    console.table(shown)
    for line in lines:
        if why := line.runs[0].summary.why:
            console.print(f"{line.name}: {why}.", markup=False)
        for table_of_links in link_tables(line.links, links, f"{line.name}: ") if links else ():
            console.table(table_of_links)
    console.print(f"Picture: {path}.png, .pdf and .svg; tables: .csv, .md and .tex", markup=False, soft_wrap=True)
    return picture
