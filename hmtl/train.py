"""Train over a two-hop network and count every bit: `python -m hmtl.train topology=symmetric r=3`."""

from contextlib import ExitStack

from omegaconf import DictConfig, OmegaConf

from hmtl.config.build import Run, build
from hmtl.config.command_line import main
from hmtl.errors import Interrupted
from hmtl.io.files import replacing
from hmtl.training.folder import held


def train(cfg: DictConfig) -> None:
    """Train as `cfg` says, and leave the results in `cfg.output_dir`."""
    in_place = cfg.privacy.clip is not None  # see `check_privacy`
    play(build(cfg), cfg, "resume={0} hydra.run.dir={0}" if in_place else "resume={}")


def play(run: Run, cfg: DictConfig, remedy: str = "resume={}") -> None:
    """Play a run, and leave its results in its folder; `remedy` says how to continue one that was stopped."""
    with ExitStack() as stack:
        stack.callback(run.engine.close)
        stack.enter_context(held(run.output_dir))
        for logger in run.loggers:
            stack.callback(logger.close)
        _train_and_report(run, cfg, remedy)


def _train_and_report(run: Run, cfg: DictConfig, remedy: str) -> None:
    from hmtl.reporting.run_header import run_header
    from hmtl.reporting.run_pictures import omega_picture, topology_picture  # late, for --help
    from hmtl.training.baseline import local_baseline

    folder, algorithm, communicator = run.output_dir, run.algorithm, run.communicator
    dataset, network = (cfg[part]["_target_"].rsplit(".", 1)[-1] for part in ("dataset", "topology"))
    if OmegaConf.select(cfg, "logger.console.report", default="none") != "none":
        header = run_header(algorithm, communicator)
        header["users"] += f" ({dataset})"
        header["network"] += f" ({network})"
        header |= {"device": f"{cfg.device}; processes: {len(run.engine.nodes) or 1}", "folder": str(folder)}
        print("".join(f"{subject:9}{text}\n" for subject, text in header.items()), flush=True)
    with replacing(folder / "topology.png") as file:
        file.write(topology_picture(communicator))
    history = run.trainer.fit(run.checkpoint)
    if run.trainer.interrupted:
        for logger in run.loggers:
            logger.close()  # ends the progress bar
        print(f"Stopped after {len(history)} rounds. To continue: {remedy.format(folder)}")
        raise Interrupted(run.trainer.interrupted)

    baseline = local_baseline(algorithm) if cfg.baseline and cfg.metrics == "users" else None
    summary = run.trainer.summarize(dataset=dataset, seed=cfg.seed, baseline=baseline)
    pictures = {"topology": topology_picture(communicator)} | omega_picture(algorithm)
    for name, picture in pictures.items():
        with replacing(folder / f"{name}.png") as file:
            file.write(picture)
    is_here = run.trainer.write_results(summary)
    for logger in run.loggers:
        logger.finish(summary, lambda: pictures)
    run.engine.finish()
    if not is_here:
        print("Models: models-host-*.npz at the hosts, each with those of its own users.")


if __name__ == "__main__":
    main(train, "config", resumable=True)
