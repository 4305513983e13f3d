"""Choose settings by cross-validation: `python -m hmtl.tune`; `hmtl.train` can read the result."""

import shlex
from pathlib import Path

from omegaconf import DictConfig

from hmtl.config.command_line import as_experiment, main, search_path
from hmtl.errors import ConfigError
from hmtl.io.files import replacing, write_json, write_whole
from hmtl.training.folder import held


def tune(cfg: DictConfig) -> None:
    """Cross-validate the grid of `cfg`, and leave `tune.json`, `tune.png` and an experiment for `hmtl.train`."""
    from hmtl.config.build import build_communicator, build_tasks, check, make_part  # late: --help is fast
    from hmtl.reporting.console import Console
    from hmtl.tuning.cross_validation import cross_validate
    from hmtl.tuning.grid import as_words, combinations, grid_of, with_values
    from hmtl.tuning.report import tuning_figure, tuning_table

    if cfg.privacy.clip is not None:
        raise ConfigError(
            "privacy: hmtl.tune looks at all rows without noise, and choices made by it tell about them. Leave privacy "
            "out, and tune on data that need no protection."
        )
    for values in combinations(grid_of(cfg)):
        check(with_values(cfg, values))
    original, console, folder = cfg.copy(), Console(), Path(cfg.output_dir)
    tasks, topology = build_tasks(cfg)
    build_communicator(cfg, topology)  # unused here, but the training that follows needs it
    make_part(cfg, "participation").check_relays(topology.H)

    with held(folder):
        result = cross_validate(cfg, tasks, folder / "checkpoint.pt")
        write_json(folder / "tune.json", result)
        with replacing(folder / "tune.png") as file:
            tuning_figure(result).savefig(file, format="png", dpi=150)
        (folder / "experiment").mkdir(exist_ok=True)
        write_whole(folder / "experiment" / "tuned.yaml", as_experiment(original, result["best"]))

    console.table(tuning_table(result))
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", soft_wrap=True)
    console.print(f"Best: {as_words(result['best'])}. To train with it:")
    command = f"  python -m hmtl.train --config-dir {shlex.quote(str(folder))} experiment=tuned {search_path()}"
    console.print(command.rstrip(), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(tune, "config")
