"""Loggers for MLflow and Weights & Biases, which are optional: settings, measurements, and the models as artifacts."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hmtl.errors import ConfigError
from hmtl.training.folder import overrides
from hmtl.training.history import Measurements
from hmtl.training.summary import Summary

ARTIFACTS = ("models.npz", "summary.json", "users.csv", "topology.png")
"""Files of a finished run's folder that are kept."""


class TrackingLogger(ABC):
    """A logger of a tracking service; a resumed run is a new one there, with its earlier rounds."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._open = False

    @property
    def _name(self) -> str:
        return " ".join(overrides(self._folder))[:200] or self._folder.name

    def log(self, row: Measurements) -> None:
        """Send the measurements of a round.

        Raises:
            ConfigError: the service refuses the run.
        """
        if not self._open:
            path = self._folder / ".hydra" / "config.yaml"
            settings: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
            try:
                self._start(settings)
            except Exception as error:  # whatever the service's package raises
                reason = " ".join(str(error).split())[:300]
                raise ConfigError(f"{type(self).__name__} cannot start a run: {reason}. Check its settings.") from error
            self._open = True
        self._send({key: value for key, value in row.items() if not math.isnan(value)}, int(row["round"]))

    def finish(self, summary: Summary, draw: Callable[[], Mapping[str, bytes]]) -> None:
        """Send the files of the finished run."""
        self._keep([path for name in ARTIFACTS if (path := self._folder / name).exists()])
        self._end(True)
        self._open = False

    def close(self) -> None:
        """End a run that has not finished."""
        if self._open:
            self._end(False)
            self._open = False

    @abstractmethod
    def _start(self, settings: dict[str, Any]) -> None:
        """Open a run with these settings, nested as in the configuration."""

    @abstractmethod
    def _send(self, row: Measurements, step: int) -> None: ...

    @abstractmethod
    def _keep(self, files: list[Path]) -> None: ...

    @abstractmethod
    def _end(self, finished: bool) -> None: ...


class MLflowLogger(TrackingLogger):
    """A logger for MLflow.

    Args:
        folder: the run's folder.
        tracking_uri: where MLflow keeps runs; None: MLflow's default.
        experiment: name of the experiment, which is created if it does not exist.

    Raises:
        ConfigError: MLflow is not installed.
    """

    def __init__(self, folder: str, tracking_uri: str | None = None, experiment: str = "hmtl") -> None:
        super().__init__(folder)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ConfigError("logger=mlflow needs MLflow. Run pip install 'hmtl[mlflow]'.") from error
        self._client = MlflowClient(tracking_uri)
        self._experiment = experiment
        self._id = ""

    def _start(self, settings: dict[str, Any]) -> None:
        import pandas as pd
        from mlflow.entities import Param

        known = self._client.get_experiment_by_name(self._experiment)
        number = known.experiment_id if known else self._client.create_experiment(self._experiment)
        self._id = self._client.create_run(number, run_name=self._name).info.run_id
        flat = pd.json_normalize(settings).to_dict("records")[0] if settings else {}
        self._client.log_batch(self._id, params=[Param(str(key), str(value)[:500]) for key, value in flat.items()])

    def _send(self, row: Measurements, step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[Metric(key, value, now, step) for key, value in row.items()])

    def _keep(self, files: list[Path]) -> None:
        for file in files:
            self._client.log_artifact(self._id, str(file))

    def _end(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class WandbLogger(TrackingLogger):
    """A logger for Weights & Biases.

    Args:
        folder: the run's folder, which also gets the local files.
        project: name of the project.
        mode: "online", "offline" or "disabled"; None: as WANDB_MODE says.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, folder: str, project: str = "hmtl", mode: str | None = None) -> None:
        super().__init__(folder)
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("logger=wandb needs wandb. Run pip install 'hmtl[wandb]'.") from error
        self._wandb = wandb
        self._project, self._mode = project, mode
        self._run: Any = None

    def _start(self, settings: dict[str, Any]) -> None:
        about = {"project": self._project, "name": self._name, "mode": self._mode, "dir": str(self._folder)}
        self._run = self._wandb.init(config=settings, **about)

    def _send(self, row: Measurements, step: int) -> None:
        self._run.log(row, step=step)

    def _keep(self, files: list[Path]) -> None:
        artifact = self._wandb.Artifact("models", type="model")
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def _end(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
