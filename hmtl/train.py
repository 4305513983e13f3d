"""Train over a two-hop network, counting every bit: `python -m hmtl.train topology=symmetric r=3`."""

from hmtl.leaving import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # before what takes long to import

import math
from contextlib import ExitStack
from typing import Any

from omegaconf import DictConfig

from hmtl.atomic import replacing, write_json
from hmtl.cli import main
from hmtl.config import Run, build
from hmtl.errors import Interrupted
from hmtl.folders import held
from hmtl.saved import save_models

SECONDS = ("local_s", "compute_s", "communication_s", "uncoded_s", "uncoded_communication_s")


def train(cfg: DictConfig) -> None:
    """One run as `cfg` says; leaves its results in `cfg.output_dir`."""
    from hmtl.figures import link_figure, omega_figure  # with matplotlib, which --help and a sweep's parent do without
    from hmtl.topology import draw

    run = build(cfg)
    if not run.engine.leads:  # results are kept elsewhere
        try:
            run.trainer.fit(run.checkpoint)
        finally:
            run.engine.close()
        return
    with ExitStack() as stack:
        stack.callback(run.engine.close)
        stack.enter_context(held(run.output_dir))
        for logger in run.loggers:
            stack.callback(logger.close)
        figures = {"topology": draw(run.communicator.contacts, run.communicator.planner.home)}
        with replacing(run.output_dir / "topology.png") as file:
            figures["topology"].savefig(file, format="png", dpi=150)
        history = run.trainer.fit(run.checkpoint)
        if run.trainer.interrupted:
            for logger in run.loggers:
                logger.close()  # the progress bar, before there is more to be read
            print(f"stopped after {len(history)} rounds; go on with resume={run.output_dir}")
            raise Interrupted(run.trainer.interrupted)
        summary = summarize(run, cfg)
        write_json(run.output_dir / "summary.json", summary)
        save_models(run.output_dir / "models.npz", run.algorithm, run.engine.models(run.algorithm, run.trainer.state))
        if run.loggers:  # who else would look at them
            figures["links"] = link_figure(run.communicator.ledger)
            if run.algorithm.Omega is not None:
                figures["omega"] = omega_figure(run.algorithm.Omega)
        for logger in run.loggers:
            logger.finish(summary, figures)
        print(f"Results: {run.output_dir}")


def summarize(run: Run, cfg: DictConfig) -> dict[str, Any]:
    """What `summary.json` holds: what communicator and algorithm tell of themselves, the time of set-up and rounds, and
    the last round's measurements.
    """
    history, topology, planning = list(run.trainer.history), run.communicator.topology, run.communicator.planning
    sending, without = run.communicator.setup_seconds
    local, compute, communication, uncoded, forwarding = (
        math.fsum([before, *(row[part] for row in history)])
        for part, before in zip(SECONDS, (0.0, 0.0, sending, without, without), strict=True)
    )
    empty = sum(int(row["empty"]) for row in history)
    of_one_round = ("round", "users", "empty", *SECONDS)
    return {
        "K": topology.K,
        "H": topology.H,
        "r": topology.r,
        **run.communicator.describe(),
        **run.algorithm.describe(),
        "dataset": cfg.dataset["_target_"].rsplit(".", 1)[-1],
        "seed": cfg.seed,
        "rounds": len(history),
        **({"empty_rounds": empty} if empty else {}),
        "time": {
            "local_s": local,
            "compute_s": compute,
            "communication_s": communication,
            "total_s": compute + communication,
            "uncoded_total_s": uncoded,
            "uncoded_communication_s": forwarding,
            "planning_s": planning.seconds,
            "plans": planning.plans,
        },
        **{key: value for key, value in history[-1].items() if "/" not in key and key not in of_one_round},
    }


if __name__ == "__main__":
    main(train, "config")
