"""Predict with the models of a run: `python -m hmtl.predict run=FOLDER data=FILE user=NAME`."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from hmtl.config.command_line import main
from hmtl.errors import ConfigError
from hmtl.io.files import write_whole


def predict(cfg: DictConfig) -> None:
    """Write the rows of `cfg.data` with a column `predicted` to `cfg.output`, or print them."""
    from hmtl.config.build import load_run  # late, as --help does without torch
    from hmtl.inference.tables import predict_table

    if cfg.output is not None and not Path(cfg.output).name:
        raise ConfigError(f"output={cfg.output} is not a file name. Give one such as predicted.csv, or leave it out.")
    text = predict_table(load_run(cfg.run), Path(cfg.data), cfg.user, cfg.task).to_csv(index=False)
    if cfg.output is None:
        sys.stdout.write(text)
    else:
        write_whole(Path(cfg.output), text)
        print(f"Predictions: {cfg.output}")


if __name__ == "__main__":
    main(predict, "predict")
