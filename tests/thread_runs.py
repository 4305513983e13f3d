"""Runs whose nodes play in threads, and the same runs in one process."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import threads
import torch
from omegaconf import DictConfig, OmegaConf
from threads import Killed

from hmtl.config.build import build
from hmtl.distributed.frames import CONTROL
from hmtl.distributed.peers import PER_NUMBER, Peers
from hmtl.distributed.placement import Placement
from hmtl.mtl import Learner

SMALL = ("K=10", "H=3", "r=2", "rounds=3", "dataset.rows_per_user=10", "logger=none")
PROCESSES = 6  # a server, three relays, two hosts
Fault = Callable[[Peers, int], None]


class Momentum(Learner):
    """A learner as a user of hmtl writes it: momentum at the server, and users who start near their last models."""

    def memory(self) -> dict[str, torch.Tensor]:
        return {"v": torch.zeros_like(self.start)}

    def personal(self) -> dict[str, torch.Tensor]:
        return {"last": self.start}

    def local(self, shared: Any, own: Any, train: Any) -> dict[str, torch.Tensor]:
        own.last = train((shared.w + own.last) / 2)
        return {"w": own.last}

    def server(self, state: Any, mean: Any) -> dict[str, torch.Tensor]:
        state.v = 0.5 * state.v + mean.w
        return {"w": state.v}


def without_clocks(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Measurements that do not depend on time, or on the headers of frames."""
    return [
        {key: value for key, value in row.items() if not key.endswith("_s") and not key.startswith("bits")}
        for row in history
    ]


def train(cfg: DictConfig) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Models, and measurements of all rounds."""
    Path(cfg.output_dir).mkdir(exist_ok=True)
    run = build(copy.deepcopy(cfg))
    history = run.trainer.fit(run.checkpoint)
    return run.exchange.models(run.algorithm, run.trainer.state), without_clocks(history)


def train_in_threads(
    cfg: DictConfig, size: int = PROCESSES, prepare: Fault | None = None, **options: Any
) -> dict[str, Any]:
    """What `train` returns in each node's thread; None in all but the server's."""
    cfg = copy.deepcopy(cfg)
    OmegaConf.update(cfg, "engine", {"_target_": "threads.current_engine"})

    def node(placement: Placement, peers: Peers) -> Any:
        if prepare:
            prepare(peers, placement.rank)
        threads.set_engine(placement, peers)
        run = build(copy.deepcopy(cfg))
        history = run.trainer.fit(run.checkpoint)
        models = run.exchange.models(run.algorithm, run.trainer.state) if run.exchange.leads else None
        return models, without_clocks(history)

    return threads.play([Placement(rank, size, cfg.K, cfg.H) for rank in range(size)], node, **options)


def kill(name: str, round: int) -> Fault:
    """A node ends when it would send its measurements of a round."""

    def prepare(peers: Peers, rank: int) -> None:
        send = peers.send

        def send_or_end(to: str, frame: Any, *cast: Any) -> None:
            if peers.name == name and peers.round // PER_NUMBER == round and frame.kind == CONTROL:
                raise Killed
            send(to, frame, *cast)

        peers.send = send_or_end  # type: ignore[method-assign]

    return prepare
