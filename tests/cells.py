"""Runs whose cells are objects of this process, some of which fail in turns that a test names."""

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from hmtl.communication import Communicator
from hmtl.communication.messages import Message
from hmtl.config.build import Run, build
from hmtl.distributed.cell import Cell
from hmtl.distributed.controller import Controller
from hmtl.distributed.frames import Frame, Header
from hmtl.distributed.identity import Credentials, Key, issue, key_to_pem, make_authority, make_key, to_pem
from hmtl.distributed.launching import free_port
from hmtl.distributed.multicast import Group
from hmtl.distributed.signed_keys import SignedKeys
from hmtl.distributed.values import from_bytes, to_bytes
from hmtl.errors import ProcessLost
from hmtl.mtl import Learner
from hmtl.training.engine import Build, Load, Values

SMALL = ("K=10", "H=3", "r=2", "rounds=3", "dataset.rows_per_user=10", "logger=none")
FIGURES = 1000  # see `Fault`
LATE, SLOW, DEAF, GONE = "plays late", "answers late", "ends before", "ends after"


class Halves(Learner):
    """A learner of one's own: users go half of the way that training goes."""

    def local(self, shared: Any, own: Any, train: Callable[..., Tensor]) -> dict[str, Tensor]:
        return {"w": (train(shared.w) + shared.w) / 2}


class Tapped(Cell):
    """A cell with a tap, which counts the bits of what it hands over, by round, tier, link and kind of message."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.tap: Counter[tuple[int, str, int, str]] = Counter()

    def _handed(self, message: Message, communicator: Communicator) -> Values:
        sent = super()._handed(message, communicator)
        for link, n in tapped(message) if communicator.name != "figures" else ():
            self.tap[message.round, message.tier, link, message.kind] += n
        return sent


def tapped(message: Message) -> Iterator[tuple[int, int]]:
    """Yield the link and the bits of each row of a message."""
    payload, overhead = message.payload[message.rows()], message.overhead[message.rows()]
    for row, link in enumerate(np.broadcast_to(message.links, len(payload)).tolist()):
        yield link, 8 * (payload[row].numel() + overhead[row].numel())


@dataclass(frozen=True)
class Fault:
    """What happens to a node when it gets a turn, or another call, in a round.

    Attributes:
        node: its name.
        action: the turn or the call.
        round: of the turn; for other calls -1, the first one; in a round of figures, FIGURES more.
        how: LATE: it plays late, when nobody waits any more; SLOW: it plays in time, and answers late; DEAF: its
            process ends before the turn; GONE: after it, without an answer.
        away: how often the controller looks before it is there again.
    """

    node: str
    action: str
    round: int
    how: str = DEAF
    away: int = 1


def certified(authority: tuple[Key, Any], name: str, days: int = 1) -> Credentials:
    """Return credentials of a node by an authority."""
    own = issue(name.replace(" ", "-"), key := make_key(), days, authority)
    return Credentials(key_to_pem(key), to_pem(own), to_pem(authority[1]))


class Cells(Controller):
    """A controller and cells that share nothing but bytes; with `signs`, hosts sign keys.

    Attributes:
        faults: what is still to happen.
        told: all answers, by node, as pairs of a call and what a cell returned.
        frames: all messages: the name of the nodes that play, sender, receivers and frame.
        taps: the bits of all messages, by round (-1: the set-up), tier, link and kind, but of those of processes that
            ended before they could say so, and of rounds that were played again.
        lost: whether a message from a sender gets lost on its way to a receiver.
        again: the rounds of the checkpoints from which the run continued.
        change: what arrives at a receiver instead of a frame.
    """

    def __init__(
        self,
        hosts: int = 2,
        seconds: float = 0.01,
        patience: float = 600.0,
        broken: Sequence[str] = (),
        signs: bool = False,
    ) -> None:
        super().__init__(seconds, patience)
        self._count, self._numbers = hosts, count()
        self.cells: dict[str, Tapped] = {}
        self.faults: list[Fault] = []
        self.told: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        self.frames: list[tuple[str, str, Sequence[str], Frame]] = []
        self.taps: Counter[tuple[int, str, int, str]] = Counter()
        self.again: list[int] = []
        self.lost: Callable[[str, str, Frame], bool] = lambda sender, receiver, frame: False
        self.change: Callable[[str, Frame], Frame] = lambda receiver, frame: frame
        self.credentials: dict[str, Credentials] = {}
        self._signs = signs
        self._plays, self._looking = "", False
        self._away = dict.fromkeys(broken, 10**6)
        self._answers: dict[int, Callable[[], Values | None]] = {}

    def hosts_for(self, H: int) -> int:
        return self._count

    def start(self, load: Load, build: Build) -> None:
        self.parts = load, build
        authority = make_authority("tests", 1)
        self.credentials = {host: certified(authority, host) for host in self.hosts if self._signs}
        for name in self.nodes:
            self._begin(name)

    def _begin(self, name: str) -> None:
        hand, fetch = partial(self._hand, name), partial(self._fetch, name)
        own, identities = self.credentials.get(name), {each: each.replace(" ", "-") for each in self.nodes}
        sign = partial(SignedKeys, name, identities, own.present) if own else None
        self.cells[name] = Tapped(name, self.homes_of, *self.parts, hand, fetch, sign)

    def _hand(self, sender: str, receivers: Sequence[str], frame: Frame) -> int:
        self.frames.append((self._plays, sender, receivers, frame))
        return len(self.frames) - 1

    def _fetch(self, receiver: str, sender: str, handle: int) -> Frame | None:
        _, own, receivers, frame = self.frames[handle]
        assert own == sender
        assert receiver in receivers
        if self.lost(sender, receiver, frame):
            return None
        frame = Frame.from_bytes(Header.from_bytes(frame.header().to_bytes()), frame.body.clone())
        return self.change(receiver, frame)

    def send(self, name: str, call: str, values: Values) -> int:
        number, content = next(self._numbers), bytes(to_bytes(values))
        fault = next((each for each in self.faults if self._is_due(each, name, call, values)), None)
        play: Callable[[], Values | None] = partial(self._played, name, call, content, len(self.again))
        if fault:
            self.faults.remove(fault)
        if fault and fault.how in (LATE, SLOW):
            waits = count(-fault.away)
            if fault.how == SLOW:
                play = partial(dict, play())
            play = lambda play=play: play() if self._looking and next(waits) >= 0 else None  # noqa: E731
        elif fault:
            if fault.how == GONE:
                play()
                self.taps.subtract(self.cells[name].tap)
            self._away[name] = fault.away
            play = partial(self._ended, name)
        self._answers[number] = play
        return number

    def _is_due(self, fault: Fault, name: str, call: str, values: Values) -> bool:
        actions = [turn["action"] for turn in values.get("turns", ())] or [call]
        round = values.get("round", -1) + FIGURES * (values.get("name") == "figures")
        return fault.node == name and fault.action in actions and fault.round in (-1, round)

    def _played(self, name: str, call: str, content: bytes, before: int) -> Values:
        if name in self._away:
            self._ended(name)
        values = from_bytes(content)
        self._plays = values.get("name", "")
        cell = self.cells[name]
        cell.tap.clear()
        answer = from_bytes(to_bytes(cell.answer(call, values)))
        if all(values.get("round", -1) < round for round in self.again[before:]):
            self.taps.update(cell.tap)
        self.told[name].append((call, answer.get("answer")))
        return answer

    def _ended(self, name: str) -> Values:
        raise ProcessLost("its process has ended", "")

    def _look(self) -> None:
        self._looking = True
        super()._look()
        self._looking = False

    def receive(self, name: str, asked: int, seconds: float) -> Values | None:
        return self._answers[asked]()

    def returned(self, lost: Collection[str]) -> Collection[str]:
        for name in [name for name in self._away if name in lost]:
            self._away[name] -= 1
            if self._away[name] < 0:
                del self._away[name]
                self._begin(name)
        return [name for name in lost if name not in self._away]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.again.append(state["history"]["rounds"])
        for key in [key for key in self.taps if key[0] >= self.again[-1]]:
            del self.taps[key]
        super().load_state_dict(state)


@dataclass(frozen=True)
class Trained:
    """What a run left: models, None if hosts have them, and the measurements of all rounds that are no times."""

    run: Run
    models: torch.Tensor | None
    rows: list[dict[str, float]]

    @property
    def cells(self) -> Cells:
        assert isinstance(self.run.engine, Cells)
        return self.run.engine


def train(cfg: DictConfig) -> Trained:
    """Train in this process, in a folder `alone` beside those of other runs."""
    cfg = copy.deepcopy(cfg)
    cfg.output_dir += "/alone"
    return trained(cfg, lambda run: None)


def train_in_cells(cfg: DictConfig, *faults: Fault, prepare: Callable[[Run], object] = bool, **options: Any) -> Trained:
    """Train with cells, of which some fail; `prepare` is called before the first round."""
    cfg = copy.deepcopy(cfg)
    cfg.engine = {"_target_": "cells.Cells", **options}

    def begin(run: Run) -> None:
        run.engine.faults += faults  # type: ignore[attr-defined]
        prepare(run)

    return trained(cfg, begin)


def trained(cfg: DictConfig, begin: Callable[[Run], object]) -> Trained:
    """Train as configured; `begin` is called before the first round."""
    Path(cfg.output_dir).mkdir(exist_ok=True)
    run = build(cfg)
    begin(run)
    history = run.trainer.fit(run.checkpoint)
    rows = [{key: value for key, value in row.items() if not key.endswith("_s")} for row in history]
    return Trained(run, run.engine.models(run.algorithm, run.trainer.state), rows)


def check_equal(ours: Trained, alone: Trained, rtol: float = 0) -> None:
    """Compare models and measurements, bits among them."""
    assert ours.models is not None
    assert alone.models is not None
    torch.testing.assert_close(ours.models, alone.models, rtol=rtol, atol=rtol)
    for row, expected in zip(ours.rows, alone.rows, strict=True):
        assert row == pytest.approx(expected, rel=rtol, abs=0, nan_ok=True)


def has_multicast() -> bool:
    """Whether a datagram to a group comes back on this machine."""
    group = Group(f"239.255.71.83:{free_port()}", "127.0.0.1")
    with suppress(Exception), group.socket(receive=True) as ear, group.socket(receive=False) as mouth:
        ear.settimeout(1.0)
        mouth.sendto(b"anybody?", group.place)
        return bool(ear.recv(100))
    return False
