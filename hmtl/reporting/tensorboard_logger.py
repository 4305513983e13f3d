"""Measurements for TensorBoard, as people think of a run: learning first, then what it cost."""

import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmtl.training.folder import overrides
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTINGS = (
    *("algorithm", "regularizer", "lam", "loss", "passes", "dataset", "K", "H", "r"),
    *("communicator", "scheme", "aggregators", "medium", "rounds", "seed"),
)
"""Of a summary, what was chosen; the rest is what came of it."""
MERITS = ("test_error", "test_r2", "train_error", "gap", "primal", "bits_total")
GROUPS = {"bits_total": "2 bits", "users": "6 attendance", "empty": "6 attendance"}
SECONDS = "3 seconds"
NO_NAME = ("resume", "rounds", "logger")  # words of a command line that make no other run
MIDDLE = ("bits/relays_to_server", "bits/server_to_relays")
BITS, TIME = "4 against kbit between relays and server", "5 against milliseconds"
ERRORS = ("test_error", "train_error")
LAYOUT = {
    "Learning": {
        "errors, round by round": ["Multiline", [rf"1 learning/({'|'.join(ERRORS)})$"]],
        "worst user's errors": ["Multiline", [r"1 learning/.*_worst$"]],
        "objective, its bound, and their gap": ["Multiline", ["1 learning/(primal|dual|gap)$"]],
    },
    "Errors for what they cost": {
        "against kbit between relays and server": ["Multiline", [rf"{BITS}/.*"]],
        "against milliseconds, compute and communication": ["Multiline", [rf"{TIME}/.*"]],
    },
    "Costs of a round": {
        "bits on each tier": ["Multiline", [r"2 bits/.*_to_.*"]],
        "seconds, with those of the same round uncoded": ["Multiline", [rf"{SECONDS}/.*"]],
    },
}


class TensorBoardLogger:
    """Scalars of each round; errors also against bits and time; at the end figures and hyperparameters.

    The events of a run are in a folder within its own that is named after what its command line set, so that this is
    what TensorBoard calls it. What is there already is superseded, so that a run that goes on has no point twice.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: str) -> None:
        from torch.utils.tensorboard import SummaryWriter  # only this logger has to wait for its import

        self._run = Path(folder)
        words = " ".join(word for word in overrides(self._run) if not word.lstrip("~").startswith(NO_NAME))
        before = sorted(path.parent for path in self._run.glob("*/events.out.tfevents.*"))  # of a run that goes on
        place = (before or [self._run / (re.sub(r"[^\w=.,+-]+", "_", words)[:100] or "events")])[0]
        self._open = cache(lambda: SummaryWriter(str(place), purge_step=0))  # at the first round: it leaves a file
        self._kbit = self._milliseconds = 0.0
        _quiet_writers()

    @property
    def _writer(self) -> Any:
        if not self._open.cache_info().currsize:
            self._open().add_custom_scalars(LAYOUT)
        return self._open()

    def log(self, row: Measurements) -> None:
        step = int(row["round"])
        self._kbit += sum(row.get(tier, 0) for tier in MIDDLE) / 1e3
        self._milliseconds += 1e3 * (row.get("compute_s", 0) + row.get("communication_s", 0))
        for key, value in row.items():
            if key == "round":
                continue
            group = SECONDS if key.endswith("_s") else GROUPS.get(key, "1 learning")
            self._writer.add_scalar(f"2 {key}" if "/" in key else f"{group}/{key}", value, step)
            if key in ERRORS:
                self._writer.add_scalar(f"{BITS}/{key}", value, round(self._kbit))
                self._writer.add_scalar(f"{TIME}/{key}", value, round(self._milliseconds))

    def finish(self, run: Summary, figures: Mapping[str, "Figure"]) -> None:
        summary = run.to_dict()
        from torch.utils.tensorboard.summary import hparams

        writer = self._writer
        for name, figure in figures.items():
            writer.add_figure(name, figure, int(summary["rounds"]))
        settings = {name: summary[name] for name in SETTINGS if name in summary}
        settings = {name: each if isinstance(each, str | int | float) else str(each) for name, each in settings.items()}
        merits = {f"{GROUPS.get(name, '1 learning')}/{name}": summary[name] for name in MERITS if name in summary}
        parts = hparams(settings, merits)  # type: ignore[no-untyped-call]  # torch has no types here
        for part in parts:  # merits are the last points of charts that there are
            writer.file_writer.add_summary(part)
        writer.add_text("command", " ".join(["python -m hmtl.train", *overrides(self._run)]))
        with suppress(OSError):  # of a run that no command started
            said = (self._run / ".hydra" / "config.yaml").read_text()
            writer.add_text("configuration", "".join(f"    {line}\n" for line in said.splitlines()))
        writer.flush()

    def close(self) -> None:
        if self._open.cache_info().currsize:
            with suppress(OSError):  # of a disk that is full others have told
                self._writer.close()


@cache
def _quiet_writers() -> None:
    """Let TensorBoard's threads fail without a traceback: they hand their error on to who logs."""
    usual = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard.")):
            usual(failed)

    threading.excepthook = hook
