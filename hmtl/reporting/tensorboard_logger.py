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

import numpy as np

from hmtl.mtl.measures import shares
from hmtl.reporting.console_logger import busiest
from hmtl.training.folder import event_files, overrides, run_name
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FIRST = {
    "test_error": "1 overview/1 test_error",
    "gap": "1 overview/2 log10 of gap",
    "kbit": "1 overview/3 kbit between relays and server, so far",
    "seconds": "1 overview/4 seconds of compute and communication, so far",
}
"""The charts that TensorBoard, which sorts by name, shows first, by measurement."""
BY_KBIT = "1 overview/5 {} against kbit between relays and server, so far"
MIDDLE_TIERS = ("bits/relays_to_server", "bits/server_to_relays")
HPARAMS = (
    *("algorithm", "regularizer", "lam", "loss", "passes", "dataset", "K", "H", "r"),
    *("communicator", "scheme", "wire", "medium", "rates", "rounds", "seed"),
)
RESULTS = ("test_error", "test_balanced_error", "test_auc", "test_r2", "train_error", "gap", "primal", "bits_total")
"""The tab "HParams": settings of the summary, and as results the last measurements of RESULTS."""
BUSIEST = 20
"""Links whose bits are shown."""


class TensorBoardLogger:
    """A logger that writes TensorBoard events.

    TensorBoard shows the name of the folder that the events are in: the run's, or a subfolder that says what this one
    does not, see `run_name`. A resumed run writes its earlier rounds again, and they supersede the old events.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._kbit = 0.0
        self._seconds = 0.0
        self._round = 0
        self._last: dict[str, tuple[str, float]] = {}  # the chart of each measurement, and its last point

    def log(self, row: Measurements) -> None:
        """Write the measurements of a round, and the test error against the bits so far; shares of rows are in %."""
        self._round = int(row["round"])
        self._kbit += sum(row.get(tier, 0) for tier in MIDDLE_TIERS) / 1e3
        self._seconds += row.get("compute_s", 0) + row.get("communication_s", 0)
        percent = shares(row)
        for key, value in (row | {"kbit": self._kbit, "seconds": self._seconds}).items():
            tag = _tag(key) + " [%]" * (key in percent)
            if key == "gap":
                value = math.log10(value) if value > 0 else math.nan
            elif key.startswith("bits"):
                value /= 1e3
            elif key in percent:
                value *= 100
            if key != "round" and not math.isnan(value):
                self._last[key] = tag, value
                self._writer.add_scalar(tag, value, self._round)
            if key == "test_error":
                self._writer.add_scalar(BY_KBIT.format(tag.rpartition("/1 ")[2]), value, round(self._kbit))

    def finish(self, summary: Summary, draw: Callable[[], Mapping[str, bytes]]) -> None:
        """Write pictures, hyperparameters and the command of the finished run."""
        from matplotlib.image import imread  # late, as is torch's writer

        for name, png in draw().items():
            pixels = (255 * imread(io.BytesIO(png))).round().astype("uint8")
            self._writer.add_image(name, pixels, summary.rounds, dataformats="HWC")
        self._writer.add_text("command", " ".join(["python -m hmtl.train", *overrides(self._folder)]))
        self._write_users_and_links(summary)
        self._writer.flush()
        settings = {key: each for key, each in summary if key in HPARAMS and each is not None}
        settings |= {"aggregators": str(summary.aggregators), "secure": summary.secure is not None}
        results = dict(self._last[key] for key in RESULTS if key in self._last)
        # They come in a file of their own, which TensorBoard reads after this one, and repeat the last points.
        self._writer.add_hparams(settings, results, run_name=".", global_step=self._round)

    def _write_users_and_links(self, summary: Summary) -> None:
        """Write a histogram of the users' errors, and the busiest links: a curve for each tier by rank, and a list."""
        name = "test_error" if "test_error" in self._last else "train_error"
        if errors := [user[name] for user in summary.users if user.get(name) is not None]:
            percent = self._last[name][0].endswith("[%]")
            values = np.array(errors, np.float64) * (100 if percent else 1)
            self._writer.add_histogram(f"{name} of users" + " [%]" * percent, values, self._round)
        for tier, top in busiest(summary.links, len(summary.links)).groupby("tier"):
            for rank, mbit in enumerate(top.Mbit[:BUSIEST], 1):
                self._writer.add_scalar(f"6 busiest links/{tier} [kbit], by rank", 1e3 * mbit, rank)
        lines = busiest(summary.links, BUSIEST).to_string(index=False).splitlines()
        self._writer.add_text("busiest links", "".join(f"    {line}\n" for line in lines))

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
        return "3 kbit/total, so far" if measurement == "bits_total" else f"3 kbit/{measurement[5:]}"
    group = "5 attendance" if measurement in ("users", "empty") else "2 learning"
    return FIRST.get(measurement, f"{'4 seconds' if measurement.endswith('_s') else group}/{measurement}")
