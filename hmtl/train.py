"""Train over a two-hop network, counting every bit: `python -m hmtl.train topology=symmetric r=3`."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from hmtl.coding import bounds
from hmtl.communication import CodedHierarchical, tier_loads
from hmtl.communication.communicator import WIRES
from hmtl.communication.ledger import RELAYS_TO_SERVER, SERVER_TO_RELAYS
from hmtl.config import Run, build, main
from hmtl.errors import Interrupted
from hmtl.figures import link_figure, omega_figure
from hmtl.topology import draw
from hmtl.trainer import Row


def train(cfg: DictConfig) -> None:
    """One run as `cfg` says; leaves its results in `cfg.output_dir`."""
    run = build(cfg)
    try:
        network_figure = draw(run.topology)
        network_figure.savefig(run.output_dir / "topology.png", dpi=150)
        history = run.trainer.fit(run.checkpoint)
        if run.trainer.interrupted and len(history) < cfg.rounds:
            for logger in run.loggers:
                logger.close()
            print(f"stopped after {len(history)} rounds; go on with resume={run.output_dir}")
            raise Interrupted(run.trainer.interrupted)
        summary = summarize(run, cfg, history)
        write_json(run.output_dir / "summary.json", summary)
        figures = {"network": network_figure, "links": link_figure(run.communicator.ledger)}
        if run.algorithm.Omega is not None:
            figures["omega"] = omega_figure(run.algorithm.Omega)
        for logger in run.loggers:
            logger.finish(summary, figures)
        print(f"Results: {run.output_dir}")
    finally:
        for logger in run.loggers:
            logger.close()


def summarize(run: Run, cfg: DictConfig, history: list[Row]) -> dict[str, Any]:
    """What `summary.json` holds: the run's settings, loads in IVs, bits, seconds, and the last round's measurements."""
    coded = isinstance(run.communicator, CodedHierarchical)
    scheme, problem = cfg.scheme if coded else "uncoded", run.algorithm.problem
    planned = run.communicator.plan.loads if isinstance(run.communicator, CodedHierarchical) else None
    theory, bound = tier_loads(run.topology, scheme, run.network.medium, planned), bounds(run.topology)
    spent = {
        part: float(np.sum([row[part] for row in history])) for part in ("compute_s", "communication_s", "uncoded_s")
    }
    learned = {
        key: value for key, value in history[-1].items() if "/" not in key and key not in spent and key != "round"
    }
    return {
        "K": run.topology.K,
        "H": run.topology.H,
        "r": run.topology.r,
        "communicator": "coded" if coded else "uncoded",
        "scheme": scheme,
        "medium": run.network.medium,
        "algorithm": type(run.algorithm).__name__.lower(),
        "dataset": cfg.dataset["_target_"].rsplit(".", 1)[-1],
        "loss": _snake_case(problem.loss),
        "regularizer": _snake_case(problem.regularizer),
        "error_measure": problem.loss.measure,
        "lam": cfg.lam,
        "rounds": len(history),
        "seed": cfg.seed,
        "V_bits": run.communicator.V_bits,
        "loads": run.communicator.ledger.loads(run.communicator.V_bits),
        "loads_theory": {tier: float(theory[tier].sum()) for tier in (RELAYS_TO_SERVER, SERVER_TO_RELAYS)},
        "bounds": {RELAYS_TO_SERVER: bound.uplink, SERVER_TO_RELAYS: bound.downlink},
        "time": {
            "compute_s": spent["compute_s"],
            "communication_s": spent["communication_s"],
            "total_s": spent["compute_s"] + spent["communication_s"],
            "uncoded_total_s": spent["uncoded_s"],
        },
        **learned,
        **({"note": narrow} if (narrow := _narrow_wire(run)) else {}),
    }


def _snake_case(part: object) -> str:
    """The name of a class as the configuration has it: TaskRelationship is task_relationship."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(part).__name__).lower()


def _narrow_wire(run: Run) -> str | None:
    wire, W = run.communicator.wire, run.algorithm.W
    if wire is None or WIRES[wire].itemsize >= W.element_size():
        return None
    return (
        f"numbers travel as {wire}, narrower than the model's {str(W.dtype).split('.')[-1]}, and are rounded on the way"
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text)
    beside.replace(path)


if __name__ == "__main__":
    main(train, "config")
