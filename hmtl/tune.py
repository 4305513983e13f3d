"""Choose settings by cross-validation: `python -m hmtl.tune`."""

import shlex
from pathlib import Path

from omegaconf import DictConfig

from hmtl.config.command_line import main
from hmtl.config.schema import flat
from hmtl.errors import ConfigError
from hmtl.io.files import write_json
from hmtl.training.folder import held


def tune(cfg: DictConfig) -> None:
    """Cross-validate the grid of `cfg`, write `tune.json`, and print the best values as `hmtl.train` takes them."""
    from hmtl.config.build import build_communicator, build_tasks, check, make_part  # late: --help is fast
    from hmtl.reporting.console import Console
    from hmtl.tuning.cross_validation import cross_validate
    from hmtl.tuning.grid import as_words, combinations, grid_of, with_values
    from hmtl.tuning.report import tuning_table

    if cfg.privacy.clip is not None:
        raise ConfigError(
            "privacy: hmtl.tune looks at all rows without noise, and choices made by it tell about them. Leave privacy "
            "out, and tune on data that need no protection."
        )
    for values in combinations(grid_of(cfg)):
        check(with_values(cfg, values))
    console, folder = Console(), Path(cfg.output_dir)
    tasks, topology = build_tasks(cfg)
    build_communicator(cfg, topology)  # unused here, but the training that follows needs it
    make_part(cfg, "participation").check_relays(topology.H)

    with held(folder):
        result = cross_validate(cfg, tasks, folder / "checkpoint.pt")
        write_json(folder / "tune.json", result)

    console.table(tuning_table(result))
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", soft_wrap=True)
    console.print(
        f"Best: {as_words(result['best'])}. To train with it, give hmtl.train the settings of this command, and:"
    )
    new = {name: "" if name in flat(cfg) else "+" for name in result["best"]}  # Hydra adds what has a +
    words = [f"{new[name]}{name}={'null' if value is None else value}" for name, value in result["best"].items()]
    console.print(f"  {shlex.join(words)}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main(tune, "config")
