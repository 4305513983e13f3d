"""The TensorBoard logger: five charts first, then learning, what it cost, pictures, and settings of a run."""

import io
import math
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from hmtl.training.folder import event_files, overrides, run_name
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FIRST = {
    "test_error": "1 overview/1 test_error",
    "gap": "1 overview/2 log10 of gap",
    "Mbit": "1 overview/3 Mbit between relays and server, so far",
    "seconds": "1 overview/4 seconds of compute and communication, so far",
    "by Mbit": "1 overview/5 test_error against kbit between relays and server, so far",
}
"""The charts that TensorBoard, which sorts by name, shows first, by measurement."""
MIDDLE_TIERS = ("bits/relays_to_server", "bits/server_to_relays")
HPARAMS = (
    *("algorithm", "regularizer", "lam", "loss", "passes", "dataset", "K", "H", "r"),
    *("communicator", "scheme", "medium", "rounds", "seed"),
)
RESULTS = ("test_error", "test_balanced_error", "test_auc", "test_r2", "train_error", "gap", "primal", "bits_total")
"""The tab "HParams": settings of the summary, and as results the last measurements of RESULTS."""


class TensorBoardLogger:
    """A logger that writes TensorBoard events.

    TensorBoard shows the name of the folder that the events are in. It is a subfolder of the run's folder, see
    `run_name`. A resumed run writes its earlier rounds again, and they supersede the old events.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._mbit = 0.0
        self._seconds = 0.0
        self._round = 0
        self._last: dict[str, float] = {}  # the last point of each chart

    def log(self, row: Measurements) -> None:
        """Write the measurements of a round, and the test error against the bits so far."""
        self._round = int(row["round"])
        self._mbit += sum(row.get(tier, 0) for tier in MIDDLE_TIERS) / 1e6
        self._seconds += row.get("compute_s", 0) + row.get("communication_s", 0)
        for key, value in (row | {"Mbit": self._mbit, "seconds": self._seconds}).items():
            if key == "gap":
                value = math.log10(value) if value > 0 else math.nan
            elif key.startswith("bits"):
                value /= 1e6
            if key != "round" and not math.isnan(value):
                self._last[_tag(key)] = value
                self._writer.add_scalar(_tag(key), value, self._round)
        if "test_error" in row:
            self._writer.add_scalar(FIRST["by Mbit"], row["test_error"], round(1e3 * self._mbit))

    def finish(self, summary: Summary, draw: Callable[[], Mapping[str, bytes]]) -> None:
        """Write pictures, hyperparameters and the command of the finished run."""
        from matplotlib.image import imread  # late, as is torch's writer

        for name, png in draw().items():
            pixels = (255 * imread(io.BytesIO(png))).round().astype("uint8")
            self._writer.add_image(name, pixels, summary.rounds, dataformats="HWC")
        self._writer.add_text("command", " ".join(["python -m hmtl.train", *overrides(self._folder)]))
        self._writer.flush()
        settings = {key: each for key, each in summary if key in HPARAMS and each is not None}
        results = {tag: self._last[tag] for tag in map(_tag, RESULTS) if tag in self._last}
        # They come in a file of their own, which TensorBoard reads after this one, and repeat the last points.
        self._writer.add_hparams(settings, results, run_name=".", global_step=self._round)

    def close(self) -> None:
        """Close the file of events."""
        if "_writer" in vars(self):
            with suppress(OSError):  # a full disk has already been reported
                self._writer.close()

    @cached_property
    def _writer(self) -> "SummaryWriter":
        """The writer of events, opened at the first round because it creates a file."""
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = partial(_once, threading.excepthook)
        name = re.sub(r"[^\w=.,+-]+", "_", run_name(self._folder))[:100]
        earlier = event_files(self._folder)  # before a resume
        return SummaryWriter(str(earlier[0].parent if earlier else self._folder / name), purge_step=0)


def _once(usual: Callable[[threading.ExceptHookArgs], object], args: threading.ExceptHookArgs) -> None:
    """Report a thread's error as usual, unless it is TensorBoard's, which raises it again at the next record."""
    if not type(args.thread).__module__.startswith("tensorboard."):
        usual(args)


def _tag(measurement: str) -> str:
    """Return the name of a measurement's chart."""
    if measurement.startswith("bits"):  # bits/TIER, and bits_total with the set-up
        return "3 Mbit/total, so far" if measurement == "bits_total" else f"3 Mbit/{measurement[5:]}"
    group = "5 attendance" if measurement in ("users", "empty") else "2 learning"
    return FIRST.get(measurement, f"{'4 seconds' if measurement.endswith('_s') else group}/{measurement}")
