"""The TensorBoard logger: charts of learning first, then of what it cost, pictures, and settings of a run."""

import io
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hmtl.training.folder import event_files, job_name, overrides
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# TensorBoard sorts groups of charts by name, hence the numbers.
LEARNING = "1 learning"
TIER_BITS = "2 bits"
SECONDS = "3 seconds"
ERROR_BY_BITS = "4 against kbit between relays and server"
ERROR_BY_TIME = "5 against milliseconds"
ATTENDANCE = "6 attendance"
GROUPS = {"bits_total": TIER_BITS, "users": ATTENDANCE, "empty": ATTENDANCE}
"""The group of a measurement; seconds have their own, and all others belong to LEARNING."""
ERRORS = ("test_error", "train_error")
MIDDLE_TIERS = ("bits/relays_to_server", "bits/server_to_relays")
SETTINGS = (
    *("algorithm", "regularizer", "lam", "loss", "passes", "dataset", "K", "H", "r"),
    *("communicator", "scheme", "aggregators", "medium", "rounds", "seed"),
)
"""The tab "HParams": settings of the summary, and as results the last measurements of RESULTS."""
RESULTS = ("test_error", "test_balanced_error", "test_auc", "test_r2", "train_error", "gap", "primal", "bits_total")


class TensorBoardLogger:
    """A logger that writes TensorBoard events.

    TensorBoard shows the name of the folder that the events are in. It is a subfolder of the run's folder, named after
    the settings on the command line, or the run's folder if that is named so already, as those of a sweep's jobs.
    A resumed run writes its earlier rounds again, and they supersede the old events.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._kbit = 0.0
        self._milliseconds = 0.0

    def log(self, row: Measurements) -> None:
        """Write the measurements of a round; errors also against bits and time so far."""
        round_number = int(row["round"])
        self._kbit += sum(row.get(tier, 0) for tier in MIDDLE_TIERS) / 1e3
        self._milliseconds += 1e3 * (row.get("compute_s", 0) + row.get("communication_s", 0))
        for key, value in row.items():
            if key == "round" or math.isnan(value):
                continue
            self._writer.add_scalar(_tag(key), value, round_number)
            if key in ERRORS:
                self._writer.add_scalar(f"{ERROR_BY_BITS}/{key}", value, round(self._kbit))
                self._writer.add_scalar(f"{ERROR_BY_TIME}/{key}", value, round(self._milliseconds))

    def finish(self, summary: Summary, draw: Callable[[], Mapping[str, bytes]]) -> None:
        """Write pictures, hyperparameters, command and configuration of the finished run."""
        from matplotlib.image import imread  # late, as are those of torch
        from torch.utils.tensorboard.summary import hparams

        writer = self._writer
        for name, png in draw().items():
            writer.add_image(name, imread(io.BytesIO(png)), summary.rounds, dataformats="HWC")
        content = summary.to_dict()
        settings = {name: content[name] for name in SETTINGS if name in content}
        settings = {name: each if isinstance(each, str | int | float) else str(each) for name, each in settings.items()}
        results = {_tag(name): content[name] for name in RESULTS if name in content}
        # SummaryWriter.add_hparams would open a second run; the results are the last points of existing charts.
        for part in hparams(settings, results):  # type: ignore[no-untyped-call]  # torch has no types here
            writer.file_writer.add_summary(part)  # type: ignore[attr-defined]  # None until the first record
        writer.add_text("command", " ".join(["python -m hmtl.train", *overrides(self._folder)]))
        with suppress(OSError):  # a run from Python has no such file
            configuration = (self._folder / ".hydra" / "config.yaml").read_text()
            writer.add_text("configuration", "".join(f"    {line}\n" for line in configuration.splitlines()))
        writer.flush()

    def close(self) -> None:
        """Close the file of events."""
        if "_writer" in vars(self):
            with suppress(OSError):  # a full disk has already been reported
                self._writer.close()

    @cached_property
    def _writer(self) -> "SummaryWriter":
        """The writer of events, opened at the first round because it creates a file."""
        from torch.utils.tensorboard import SummaryWriter

        name = re.sub(r"[^\w=.,+-]+", "_", job_name(self._folder))[:100] or "events"
        place = self._folder if self._folder.name == name else self._folder / name
        earlier = event_files(self._folder)  # before a resume
        return SummaryWriter(str(earlier[0].parent if earlier else place), purge_step=0)


def _tag(measurement: str) -> str:
    """Return the name of a measurement's chart."""
    if "/" in measurement:  # bits/TIER
        return f"2 {measurement}"
    group = SECONDS if measurement.endswith("_s") else GROUPS.get(measurement, LEARNING)
    return f"{group}/{measurement}"
