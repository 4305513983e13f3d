"""What MLflow's file store and an offline run of Weights & Biases hold of a run; skipped without the packages."""

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hmtl.config.build import compose
from hmtl.train import train

SMALL = ("K=4", "H=2", "r=1", "rounds=3", "dataset.rows_per_user=20", "regularizer=mean", "~logger.tensorboard")


def run(folder: Path, *words: str) -> list[dict[str, str]]:
    """Train, with the configuration where the command line puts it, and return the rows of metrics.csv."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("K: 4\nsolver: {passes: 1}\n")
    train(compose(*SMALL, *words, f"output_dir={folder}"))
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_mlflow_has_settings_every_round_and_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    rows = run(tmp_path / "run", "logger=mlflow", f"logger.mlflow.tracking_uri=file:{tmp_path}/store")
    client = mlflow.MlflowClient(f"file:{tmp_path}/store")
    (found,) = client.search_runs([client.get_experiment_by_name("hmtl").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"K": "4", "solver.passes": "1"}
    for name in ("test_error", "gap", "bits/users_to_relays"):
        points = {each.step: each.value for each in client.get_metric_history(found.info.run_id, name)}
        assert points == {int(row["round"]): float(row[name]) for row in rows}
    kept = client.download_artifacts(found.info.run_id, "models.npz", str(tmp_path))
    assert np.array_equal(np.load(kept)["W"], np.load(tmp_path / "run" / "models.npz")["W"])


def records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after wandb's header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


def test_wandb_offline_has_settings_every_round_and_the_files(tmp_path: Path) -> None:
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    rows = run(tmp_path / "run", "logger=wandb", "logger.wandb.mode=offline")
    pytest.importorskip("wandb").teardown()  # which writes everything
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    kept = [protocol.Record.FromString(each) for each in records(file.read_bytes())]
    logged = [
        {item.key or item.nested_key[0]: item.value_json for item in each.history.item}
        for each in kept
        if each.HasField("history")
    ]
    assert [float(each["test_error"]) for each in logged] == [float(row["test_error"]) for row in rows]
    settings = [item for each in kept if each.HasField("run") for item in each.run.config.update]
    assert json.loads({item.key: item.value_json for item in settings}["solver"]) == {"passes": 1}
    (artifact,) = (each.artifact for each in kept if each.HasField("artifact"))
    assert {"models.npz", "summary.json"} <= {each.path for each in artifact.manifest.contents}
