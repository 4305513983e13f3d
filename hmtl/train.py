"""Train over a two-hop network, counting every bit: `python -m hmtl.train topology=symmetric r=3`."""

import math
from contextlib import ExitStack
from typing import Any

from omegaconf import DictConfig

from hmtl.config.build import Run, build
from hmtl.config.command_line import main
from hmtl.errors import Interrupted
from hmtl.inference.models import models_of
from hmtl.io.files import as_csv, replacing, write_json, write_whole
from hmtl.training.folder import held

NAMED = 10  # users in summary and report, those who err most
ERRORS = ("test_error", "train_error")  # of a user; the first that it has tells how well it is served
SECONDS = ("local_s", "compute_s", "communication_s", "uncoded_s", "uncoded_communication_s")


def train(cfg: DictConfig) -> None:
    """One run as `cfg` says; leaves its results in `cfg.output_dir`."""
    from hmtl.reporting.figures import (
        link_figure,
        omega_figure,
    )  # with matplotlib, which --help and a sweep's parent do without
    from hmtl.topology import draw

    run = build(cfg)
    if not run.exchange.leads:  # results are kept elsewhere
        try:
            run.trainer.fit(run.checkpoint)
        finally:
            run.exchange.close()
        return
    with ExitStack() as stack:
        stack.callback(run.exchange.close)
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
        users = by_user(run)
        worst = sorted(users, key=lambda user: -float(next((user[e] for e in ERRORS if user[e] != ""), 0)))
        summary = {**summarize(run, cfg), "worst_users": worst[:NAMED]}
        write_whole(run.output_dir / "users.csv", as_csv(users))
        W = run.exchange.models(run.algorithm, run.trainer.state)
        models_of(run.algorithm, W).save(run.output_dir / "models.npz")
        write_json(run.output_dir / "summary.json", summary)  # the last, as it says that the run has ended
        if run.loggers:  # who else would look at them
            figures["links"] = link_figure(run.communicator.ledger)
            if run.algorithm.Omega is not None:
                figures["omega"] = omega_figure(run.algorithm.Omega)
        for logger in run.loggers:
            logger.finish(summary, figures)
        print(f"Results: {run.output_dir}")


def by_user(run: Run) -> list[dict[str, Any]]:
    """Of each user its name, its rows, and its errors; "" where it has no rows for them."""
    errors = run.trainer.errors
    if not errors["train"]:  # no round was left to be played
        measured = run.algorithm.users.measure()
        errors = {split: measured[f"{split}_error"].tolist() for split in errors}
    users = []
    for k, task in enumerate(run.algorithm.problem.everybody):
        rows = {"train": len(task.y_train), "test": len(task.y_test)}
        known = {f"{split}_error": errors[split][k] if rows[split] and k < len(errors[split]) else "" for split in rows}
        users.append({"user": task.name, **{f"{split}_rows": n for split, n in rows.items()}, **known})
    return users


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
    # the last round was evaluated, unless a run that was stopped is asked for no more
    last = next((row for row in reversed(history) if "train_error" in row), {}) | history[-1]
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
        **{key: value for key, value in last.items() if "/" not in key and key not in of_one_round},
    }


if __name__ == "__main__":
    main(train, "config")
