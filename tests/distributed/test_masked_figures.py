"""With secure=true, the sums of figures that hosts send are masked, and only the sum over all users is known."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from control_frames import listening
from omegaconf import DictConfig
from thread_runs import SMALL, train, train_in_threads
from threads import Killed
from torch import Tensor

from hmtl.distributed.control import as_frame, from_bytes
from hmtl.distributed.frames import CONTROL
from hmtl.distributed.peers import Peers

SECURE = (*SMALL, "K=20", "communicator=sums", "aggregators=server", "metrics=sums", "secure=true", "algorithm=cocoa")
STEPS = {"keys": 10, "sealed": 10, "measured": 10, "revealed": 20}
"""What a host sends in a round of measurements, and whose figures are known if it ends instead."""


def test_masked_sums_are_unmasked_exactly(configure: Callable[..., DictConfig]) -> None:
    frames: list[dict[str, list[Any]]] = []
    cfg = configure(*SECURE)
    for secure in (True, False):
        told: dict[str, list[Any]] = defaultdict(list)
        cfg.secure = secure
        _, history = train_in_threads(cfg, prepare=listening(told))["server"]
        frames.append(told)
        if secure:
            masked = history
    assert masked == history
    for name in ("host 0", "host 1"):
        pairs = [[each["measured"]["sum"] for each in told[name] if each.get("measured")] for told in frames]
        for hidden, plain in zip(*pairs, strict=True):
            assert (hidden != plain).all()
    for told in frames[:1]:  # and those of both hosts do not add up to the sum before the masks are removed
        sums = [[each["measured"]["sum"] for each in told[name] if each.get("measured")] for name in sorted(told)]
        assert all((a + b).abs().double().log2().median() > 60 for a, b in zip(*sums, strict=True))


@pytest.mark.parametrize(
    "step", ["measured", *(pytest.param(step, marks=pytest.mark.slow) for step in STEPS if step != "measured")]
)
def test_a_host_that_ends_takes_its_users_along(configure: Callable[..., DictConfig], step: str) -> None:
    """Means of the round are over the users whose masked rows arrived; wrong masks would give random numbers."""

    def end(peers: Peers, rank: int) -> None:
        send = peers.send

        def send_or_end(to: str, frame: Any, *cast: Any) -> None:
            ends = peers.name == "host 1" and peers.round == 1 and frame.kind == CONTROL
            if ends and step in from_bytes(frame.payload.numpy()[0].data):
                raise Killed
            send(to, frame, *cast)

        peers.send = send_or_end  # type: ignore[method-assign]

    cfg = configure(*SECURE)
    _, history = train_in_threads(cfg, prepare=end)["server"]
    cfg.output_dir += "/alone"
    cfg.secure = False
    _, alone = train(cfg)
    assert history[0] == alone[0]
    assert ("gap" in history[1]) == (STEPS[step] == 20)
    assert "gap" not in history[2]
    for row in history[1:]:
        errors = [each for name, each in row.items() if name.endswith("_error")]
        assert len(errors) == 4
        assert all(0 <= error <= 1 for error in errors)
    if STEPS[step] == 20:
        assert history[1]["train_error"] == alone[1]["train_error"]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_late_host_takes_part_again(configure: Callable[..., DictConfig], step: str) -> None:
    """Its users are missing in some sums, but it does not mistake what the server sends next for a late answer."""

    def delay(peers: Peers, rank: int) -> None:
        peers.seconds, send = 1.0, peers.send

        def send_late(to: str, frame: Any, *cast: Any) -> None:
            late = peers.name == "host 1" and peers.round == 1 and frame.kind == CONTROL
            if late and step in from_bytes(frame.payload.numpy()[0].data):
                time.sleep(6.5)  # the server waits for 5 s
            send(to, frame, *cast)

        peers.send = send_late  # type: ignore[method-assign]

    _, history = train_in_threads(configure(*SECURE, "rounds=40"), prepare=delay)["server"]
    assert any(row["users"] < 20 or "gap" not in row for row in history)
    assert any("gap" in row for row in history[3:])


SPOILED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "zero keys": ("keys", torch.zeros_like),
    "short keys": ("keys", lambda rows: rows[:, :9]),
    "garbled shares": ("sealed", lambda rows: rows ^ 1),
    "shares of one user": ("sealed", lambda rows: rows[:1]),
    "no reading": ("read", lambda rows: rows[:0]),
    "short answers": ("revealed", lambda rows: rows[:, :1]),
}


@pytest.mark.parametrize(
    "name", ["zero keys", *(pytest.param(name, marks=pytest.mark.slow) for name in SPOILED if name != "zero keys")]
)
def test_a_host_that_sends_garbage_takes_no_more_than_its_users_along(
    configure: Callable[..., DictConfig], name: str
) -> None:
    """In round 1; the figures of the others are known, and in the next round all are."""
    step, spoil = SPOILED[name]

    def change(peers: Peers, rank: int) -> None:
        send = peers.send

        def send_changed(to: str, frame: Any, *cast: Any) -> None:
            if peers.name == "host 1" and peers.round == 1 and frame.kind == CONTROL:
                values = from_bytes(frame.payload.numpy()[0].data)
                if step in values:
                    frame = as_frame({**values, step: spoil(values[step])}, peers.round)
            send(to, frame, *cast)

        peers.send = send_changed  # type: ignore[method-assign]

    _, history = train_in_threads(configure(*SECURE, "rounds=3"), prepare=change)["server"]
    assert ("gap" in history[1]) == (step == "revealed")
    assert 0 <= history[1]["train_error"] <= 1
    assert "gap" in history[2]


def test_too_few_users_show_no_figures(configure: Callable[..., DictConfig]) -> None:
    """Half of the users are fewer than `least`: their host reveals nothing, and the round has no figures."""

    def end(peers: Peers, rank: int) -> None:
        send = peers.send

        def send_or_end(to: str, frame: Any, *cast: Any) -> None:
            if peers.name == "host 1" and peers.round == 1 and frame.kind == CONTROL:
                raise Killed
            send(to, frame, *cast)

        peers.send = send_or_end  # type: ignore[method-assign]

    cfg = configure(*SECURE)
    cfg.communicator.least = 15
    _, history = train_in_threads(cfg, prepare=end)["server"]
    assert "train_error" in history[0]
    assert all("train_error" not in row for row in history[1:])
