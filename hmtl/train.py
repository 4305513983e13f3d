"""Train over a two-hop network and count every bit: `python -m hmtl.train topology=symmetric r=3`."""

from contextlib import ExitStack

from omegaconf import DictConfig

from hmtl.config.build import Run, build
from hmtl.config.command_line import main
from hmtl.errors import Interrupted
from hmtl.io.files import as_csv, replacing, write_json, write_whole
from hmtl.training.folder import held


def train(cfg: DictConfig) -> None:
    """Train as `cfg` says, and leave the results in `cfg.output_dir`."""
    play(build(cfg), cfg)


def play(run: Run, cfg: DictConfig, remedy: str = "resume={}") -> None:
    """Play a run, and leave its results in its folder; `remedy` says how to continue one that was stopped."""
    with ExitStack() as stack:
        stack.callback(run.engine.close)
        stack.enter_context(held(run.output_dir))
        for logger in run.loggers:
            stack.callback(logger.close)
        _train_and_report(run, cfg, remedy)


def _train_and_report(run: Run, cfg: DictConfig, remedy: str) -> None:
    from hmtl.inference.models import models_of  # late, as --help needs neither torch nor matplotlib
    from hmtl.reporting.network_picture import draw
    from hmtl.reporting.run_pictures import run_pictures
    from hmtl.training.summary import summarize, user_rows

    folder, algorithm, communicator = run.output_dir, run.algorithm, run.communicator
    role = "learns the sums" if communicator.recipe.messages == "sums" else "computes models"
    planner = communicator.planner
    topology = draw(communicator.contacts, planner.preferred, role, planner.server).to_png(dpi=150)
    with replacing(folder / "topology.png") as file:
        file.write(topology)
    history = run.trainer.fit(run.checkpoint)
    if run.trainer.interrupted:
        for logger in run.loggers:
            logger.close()  # ends the progress bar
        print(f"Stopped after {len(history)} rounds. To continue: {remedy.format(folder)}")
        raise Interrupted(run.trainer.interrupted)

    only_sums = cfg.metrics == "sums"
    users = user_rows(algorithm, {} if only_sums else run.trainer.user_figures or algorithm.users.measure())
    dataset = cfg.dataset["_target_"].rsplit(".", 1)[-1]
    best = run.trainer.best
    settings = {"dataset": dataset, "seed": cfg.seed, "stopped_early": run.trainer.stopped_early or None}
    if accountant := run.trainer.accountant:
        settings |= accountant.describe()
    settings |= {"metrics": cfg.metrics} if only_sums else {}
    summary = summarize(algorithm, communicator, history, users, best, **settings)
    write_whole(folder / "users.csv", as_csv(users))
    models = run.engine.models(algorithm, run.trainer.state)
    if models is not None:
        models_of(algorithm, models).save(folder / "models.npz")
    write_json(folder / "summary.json", summary.to_dict())  # the last file: it marks a finished run
    for logger in run.loggers:
        logger.finish(summary, lambda: {"topology": topology, **run_pictures(communicator.ledger, algorithm.Omega)})
    run.engine.finish()
    if models is None:
        print("Models: models-host-*.npz at the hosts, each with those of its own users.")
    print(f"Results: {folder}")


if __name__ == "__main__":
    main(train, "config")
