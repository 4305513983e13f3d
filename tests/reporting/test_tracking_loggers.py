"""What MLflow's file store and an offline run of Weights & Biases hold of a run; skipped without the packages."""

import csv
import json
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


def test_wandb_offline_has_settings_every_round_and_the_files(tmp_path: Path) -> None:
    datastore = pytest.importorskip("wandb.sdk.internal.datastore")
    from wandb.proto import wandb_internal_pb2

    rows = run(tmp_path / "run", "logger=wandb", "logger.wandb.mode=offline")
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    store, records = datastore.DataStore(), []
    store.open_for_scan(str(file))
    while content := store.scan_data():
        records.append(wandb_internal_pb2.Record.FromString(content))
    logged = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [each["test_error"] for each in logged] == [float(row["test_error"]) for row in rows]
    settings = [item for record in records if record.HasField("run") for item in record.run.config.update]
    assert {"solver": '{"passes": 1}'}.items() <= {item.key: item.value_json for item in settings}.items()
    (artifact,) = (record.artifact for record in records if record.HasField("artifact"))
    assert {"models.npz", "summary.json"} <= {each.path for each in artifact.manifest.contents}
