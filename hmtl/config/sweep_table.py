"""The table at the end of a sweep."""

import shlex
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepTable(Callback):
    """Compares the finished runs of a sweep in a table."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table, and the command that draws the picture."""
        from hmtl.reporting.console import Console
        from hmtl.reporting.run_comparison import comparison_table, find_runs

        sweep = Path(config.hydra.sweep.dir)
        if any(sweep.rglob("summary.json")):
            Console().table(comparison_table(find_runs([sweep])))
            print(f"For a picture: python -m hmtl.report {shlex.quote(str(sweep))}")
