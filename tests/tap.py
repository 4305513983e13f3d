"""A tap in the process of each node: a file says what the node hands over, and the node fails where a test says so."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hmtl.distributed.cell import Cell

BEFORE, AFTER, STOPPED, KILLED = "waits before it plays", "waits before it answers", "is suspended", "is killed"


class Failure(NamedTuple):
    """What happens once to a node when it has played a turn of a round, or before that; it lasts some seconds."""

    node: str
    action: str
    round: int
    how: str
    seconds: float = 3.0


@dataclass(frozen=True)
class Tap:
    """Taps all cells of a process that are made after `install`.

    Args:
        folder: gets a file for each process.
        failures: of all nodes.
    """

    folder: Path
    failures: Sequence[Failure] = ()

    def install(self) -> None:
        handed, play, tap, asked = Cell._handed, Cell.play, self, [time.time()]

        def tapped_handed(cell: Cell, message: Any, communicator: Any) -> Any:
            sent = handed(cell, message, communicator)
            rows, links = len(message.rows()), message.links
            bits = 8 * sum(part[:1].numel() for part in (message.payload, message.overhead)) if rows else 0
            each = [int(links)] * rows if not getattr(links, "shape", ()) else links.tolist()
            tap.write(cell, [message.round, message.tier, each, bits, communicator.name, asked[0], message.kind])
            return sent

        def tapped_play(cell: Cell, name: str, round: int, evaluates: bool, turns: Any) -> Any:
            due = [
                each
                for each in tap.failures
                if (each.node, each.round) == (cell.name, round) and each.action in [turn["action"] for turn in turns]
            ]
            asked[0] = time.time()
            for each in due:
                if each.how == BEFORE and tap.once(each):
                    time.sleep(each.seconds)
            answer = play(cell, name, round, evaluates, turns)
            for each in due:
                if each.how != BEFORE and tap.once(each):
                    fail(each)
            tap.write(cell, "said")
            return answer

        Cell._handed, Cell.play = tapped_handed, tapped_play  # type: ignore[method-assign]

    def watch(self, engine: Any) -> None:
        """Note from which rounds on the engine plays again."""
        load = engine.load_state_dict

        def loaded(state: Any) -> None:
            with (self.folder / "again").open("a") as file:
                file.write(json.dumps([time.time(), state["history"]["rounds"]]) + "\n")
            load(state)

        engine.load_state_dict = loaded

    def once(self, failure: Failure) -> bool:
        marker = self.folder / "-".join(map(str, failure)).replace(" ", "_")
        if marker.exists():
            return False
        marker.touch()
        return True

    def write(self, cell: Cell, line: object) -> None:
        with (self.folder / f"{cell.name}-{os.getpid()}.tap").open("a") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def replays(self) -> list[tuple[float, int]]:
        """When the engine went back, and from which round on it played again."""
        again = self.folder / "again"
        return [tuple(json.loads(line)) for line in again.read_text().splitlines()] if again.exists() else []

    def read(self) -> tuple[Counter[tuple[int, str, int, str]], int]:
        """The bits by round, tier, link and kind of message, and how many a kill kept from being said.

        The former lack these, and those of turns that were asked for before their round was played again.
        """
        bits, unsaid, replays = Counter[tuple[int, str, int, str]](), 0, self.replays
        for path in self.folder.glob("*.tap"):
            pending: list[Any] = []
            for line in map(json.loads, path.read_text().splitlines()):
                if line != "said":
                    pending += [line] if line[4] != "figures" else []
                    continue
                for round, tier, links, n, _, asked, kind in pending:
                    if not any(asked < when and round >= first for when, first in replays):
                        bits.update({(round, tier, link, kind): n * links.count(link) for link in set(links)})
                pending.clear()
            unsaid += sum(len(links) * n for _, _, links, n, *_ in pending)
        return bits, unsaid


def fail(failure: Failure) -> None:
    if failure.how == STOPPED:
        subprocess.Popen(["sh", "-c", f"sleep {failure.seconds}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    elif failure.how == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        time.sleep(failure.seconds)


@dataclass(frozen=True)
class Tapped:
    """Calls something in another process, once its tap is there."""

    tap: Tap
    work: Callable[..., Any]

    def __call__(self, *args: Any, **values: Any) -> Any:
        self.tap.install()
        return self.work(*args, **values)
