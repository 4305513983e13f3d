"""communicator=partial from the configuration: the models of the other communicators, fewer bits, resume, refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from hmtl.config.build import build
from hmtl.errors import HmtlError
from hmtl.train import train
from hmtl.training.checkpoint import load_checkpoint

Configure = Callable[..., DictConfig]
SMALL = (
    "K=24",
    "H=6",
    "topology=geometric",
    "topology.radius=0.4",
    "algorithm=fedu",
    "solver.epochs=1",
    "rounds=4",
    "dataset.rows_per_user=20",
    "logger=none",
)


@pytest.fixture(params=["by covariance", pytest.param("from a file", marks=pytest.mark.slow)])
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "by covariance":
        return "regularizer.neighbors=1"
    chain = np.eye(24, k=1) + np.eye(24, k=-1)
    np.savetxt(tmp_path / "chain.csv", chain, delimiter=",")
    return f"regularizer.path={tmp_path}/chain.csv"


def models(folder: Path) -> torch.Tensor:
    W: torch.Tensor = load_checkpoint(folder)["algorithm"]["users"]["W"]
    return W


def test_the_same_models_for_fewer_bits(configure: Configure, tmp_path: Path, graph: str) -> None:
    summaries = {}
    for name in ("partial", "coded", "uncoded"):
        folder = tmp_path / name
        folder.mkdir()
        train(configure(*SMALL, graph, f"communicator={name}", f"output_dir={folder}"))
        summaries[name] = json.loads((folder / "summary.json").read_text())
    W = models(tmp_path / "uncoded")
    assert W.abs().max() > 0
    assert all(torch.equal(models(tmp_path / name), W) for name in ("partial", "coded"))
    partial, uncoded = summaries["partial"], summaries["uncoded"]
    assert partial["communicator"] == "partial"
    for tier in ("relays_to_server", "server_to_relays"):
        load = partial["loads"][tier]
        assert partial["bounds"][tier] - 1e-6 <= load < uncoded["loads"][tier]
        assert load == pytest.approx(partial["loads_theory"][tier], rel=1e-2)
    assert partial["bits_total"] < uncoded["bits_total"]


def test_the_report_says_that_coded_would_be_cheaper(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Relay 1 hears user 5 alone, who needs three users of relay 0: their IVs cost more than one model."""
    contacts, graph = np.zeros((2, 8)), np.zeros((8, 8))
    contacts[0, :5] = contacts[0, 6:] = contacts[1, 5] = 1
    graph[5, :3] = graph[:3, 5] = 1
    for name, table in (("contacts", contacts), ("graph", graph)):
        np.savetxt(tmp_path / f"{name}.csv", table, delimiter=",", fmt="%d")
    files = "topology=file", f"topology.path={tmp_path}/contacts.csv", f"regularizer.path={tmp_path}/graph.csv"
    settings = "K=8", "H=2", "r=null", "rounds=1", "algorithm=fedu", "communicator=partial", "dataset.rows_per_user=20"
    train(configure(*files, *settings))
    assert "Note: communicator=coded would be cheaper" in capsys.readouterr().out


@pytest.mark.slow
def test_resumed(configure: Configure, tmp_path: Path, graph: str) -> None:
    for name, rounds in (("whole", 4), ("cut", 2)):
        (tmp_path / name).mkdir()
        setting = ("communicator=partial", f"rounds={rounds}", f"output_dir={tmp_path / name}")
        train(configure(*SMALL, graph, *setting))
    for rounds in (4, 4):  # the second time there is nothing left to do
        cut = ("communicator=partial", f"rounds={rounds}", f"output_dir={tmp_path / 'cut'}")
        train(configure(*SMALL, graph, *cut, f"resume={tmp_path / 'cut'}"))
    assert torch.equal(models(tmp_path / "cut"), models(tmp_path / "whole"))
    ours, theirs = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("cut", "whole"))
    for summary in (ours, theirs):
        del summary["time"]
    assert ours == theirs


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (("algorithm=mocha", "loss=hinge", "solver=sdca"), "communicator=partial"),
        (("regularizer=mean",), "communicator=partial"),
        (("regularizer.neighbors=20",), "communicator=partial"),
        (("regularizer.neighbors=1", "communicator.max_pieces=0"), "max_pieces=0"),
        (("regularizer.neighbors=1", "participation.dropout=0.1"), "participation=full"),
        (("regularizer.neighbors=1", "participation.relays=0.1"), "participation=full"),
    ],
)
def test_refused_before_the_first_round(configure: Configure, setting: tuple[str, ...], message: str) -> None:
    base = [word for word in SMALL if not (setting[0].startswith("algorithm") and word.startswith(("algo", "solver")))]
    with pytest.raises(HmtlError, match=message):
        build(configure(*base, "communicator=partial", *setting))
