"""A run on sparse files: what the same rows give dense, and predictions for further files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig
from scipy import sparse
from sklearn.datasets import dump_svmlight_file

import hmtl
from hmtl.errors import ConfigError, DataError
from hmtl.inference.tables import predict_table
from hmtl.train import train

Configure = Callable[..., DictConfig]
RUN = ("dataset=files", "dataset.standardize=none", "topology=any_r", "H=3", "r=2", "logger=none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of four users in svm/, npz/ (the same, sparse) and dense/, with labels 2 and 5."""
    rng = np.random.default_rng(0)
    for k in range(4):
        x = np.rint(8 * rng.normal(size=(40, 12))) / 8 * (rng.random((40, 12)) < 0.3)
        x[0] = 1
        y = np.where(x[:, :3].sum(1) + rng.normal(size=40) / 4 > 0, 5, 2)
        rows, name = sparse.csr_array(x), f"user {k}"
        for kind in ("svm", "npz", "dense"):
            (tmp_path / kind).mkdir(exist_ok=True)
        dump_svmlight_file(rows, y, str(tmp_path / "svm" / f"{name}.svm"), zero_based=False)
        arrays = {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr, "shape": rows.shape}
        np.savez(tmp_path / "npz" / f"{name}.npz", y=y, format="csr", **arrays)
        np.savez(tmp_path / "dense" / f"{name}.npz", y=y, x=x)
    return tmp_path


def test_runs_and_predictions(configure: Configure, folder: Path) -> None:
    summaries, models = {}, {}
    for kind in ("svm", "npz", "dense"):
        out = folder / f"run_{kind}"
        out.mkdir()
        train(configure(*RUN, "rounds=6", f"dataset.path={folder}/{kind}", f"output_dir={out}"))
        summaries[kind], models[kind] = json.loads((out / "summary.json").read_text()), hmtl.load_run(out)
    for name in ("primal", "dual", "train_error", "test_error", "test_auc"):
        values = [summaries[kind][name] for kind in summaries]
        assert values[0] == values[1] == pytest.approx(values[2], rel=1e-12), name
    np.testing.assert_allclose(models["svm"].W, models["dense"].W, rtol=0, atol=1e-12)
    x = np.load(folder / "dense" / "user 1.npz")["x"]
    wanted = models["dense"].predict("user 1", x).tolist()
    assert set(wanted) == {2, 5}
    for kind in ("svm", "npz", "dense"):
        table = predict_table(models["svm"], folder / kind / f"user 1.{'svm' if kind == 'svm' else 'npz'}")
        assert table["predicted"].tolist() == wanted
    narrow = folder / "user 1.svm"
    narrow.write_text("2 3:1.5\n5\n")
    dense = np.zeros((2, 12))
    dense[0, 2] = 1.5
    table = predict_table(models["svm"], narrow)
    assert table["predicted"].tolist() == models["dense"].predict("user 1", dense).tolist()
    assert list(table) == ["y", "predicted"]
    narrow.write_text("2 13:1.5\n")
    with pytest.raises(DataError, match=r"x has shape \[1, 13\]"):
        predict_table(models["svm"], narrow)


def test_networks_need_dense_rows(configure: Configure, folder: Path) -> None:
    with pytest.raises(ConfigError, match="FedU needs dense rows"):
        train(configure(*RUN, "rounds=1", "algorithm=fedu", f"dataset.path={folder}/svm"))
