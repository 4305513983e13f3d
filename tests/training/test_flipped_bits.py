"""A flipped bit in any file of a run that is read again is an error in one line, and never another run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cells import train_in_cells
from omegaconf import OmegaConf

import hmtl
from hmtl.config.build import build, compose
from hmtl.errors import HmtlError
from hmtl.io.files import CHECKSUM_FILE
from hmtl.reporting.run_comparison import as_lines, find_runs
from hmtl.train import train
from hmtl.training.checkpoint import load_checkpoint

BITS = 60
PRIVATE = ("algorithm=fedavg", "algorithm.model._target_=hmtl.mtl.mlp", "communicator=sums", "K=10", "H=3", "r=2")
PRIVATE += (
    "+algorithm.model.hidden=3",
    "dataset.rows_per_user=6",
    "logger=none",
    "rounds=2",
    "privacy.clip=1",
    "privacy.noise=2",
    "baseline=null",
)
OF_A_RUN = ("models.npz", ".hydra/config.yaml")
OF_A_REPORT = (
    "metrics.csv",
    "users.csv",
    "links.csv",
    "summary.json",
    CHECKSUM_FILE,
    ".hydra/config.yaml",
    ".hydra/overrides.yaml",
)


def flips(folder: Path, name: str, read: Callable[[], object]) -> None:
    """Read a file with one flipped bit after another."""
    read()
    whole, rng = (folder / name).read_bytes(), np.random.default_rng(0)
    try:
        for bit in rng.choice(8 * len(whole), BITS, replace=False).tolist():
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(damaged)
            with pytest.raises(HmtlError) as error:
                read()
            assert "\n" not in str(error.value)
            assert str(folder) in str(error.value)
    finally:
        (folder / name).write_bytes(whole)
    read()


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with privacy and networks, as the command leaves it."""
    folder = tmp_path_factory.mktemp("private")
    cfg = compose(*PRIVATE, "output_dir=.")
    cfg.output_dir = str(folder)
    (folder / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create([*PRIVATE]), folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    train(cfg)
    return folder


def report(folder: Path) -> None:
    (run,) = find_runs([folder])
    (line,) = as_lines([run])
    assert len(line.links)
    assert len(run.rounds) == 2
    assert len(run.users) == 10


@pytest.mark.parametrize("name", OF_A_RUN)
@pytest.mark.slow
def test_models_are_not_loaded(private: Path, name: str) -> None:
    flips(private, name, partial(hmtl.load_run, private))


@pytest.mark.parametrize("name", OF_A_REPORT)
@pytest.mark.slow
def test_a_run_is_not_reported(private: Path, name: str) -> None:
    flips(private, name, partial(report, private))


@pytest.mark.parametrize("name", ["checkpoint.pt", "privacy.pt"])
@pytest.mark.slow
def test_a_run_does_not_go_on(private: Path, name: str) -> None:
    cfg = compose(*PRIVATE, "output_dir=.")
    cfg.output_dir = cfg.resume = str(private)
    trainer, whole = build(cfg).trainer, (private / "checkpoint.pt").read_bytes()

    def resume() -> None:
        state = load_checkpoint(private)
        trainer._resume(state)

    flips(private, name, resume)
    assert (private / "checkpoint.pt").read_bytes() == whole


def test_files_of_an_earlier_version_are_refused(private: Path) -> None:
    """They have no digests: a report says which file is missing, and a run that its models need `model`."""
    sums = (private / CHECKSUM_FILE).read_bytes()
    (private / CHECKSUM_FILE).unlink()
    with pytest.raises(HmtlError, match=r"SHA256SUMS is missing; runs of earlier versions") as error:
        report(private)
    assert "Errno" not in str(error.value)
    with pytest.raises(HmtlError, match=r"SHA256SUMS is missing.* model=module"):
        hmtl.load_run(private)
    (private / CHECKSUM_FILE).write_text("nothing of ours")
    with pytest.raises(HmtlError, match="was changed after the run"):
        report(private)
    (private / CHECKSUM_FILE).write_bytes(sums)


def test_users_of_a_host_do_not_go_on(tmp_path: Path) -> None:
    """With metrics=sums, nobody but the host has their state: it is for its owner alone, as is each checkpoint."""
    words = ("K=10", "H=3", "r=2", "rounds=2", "dataset.rows_per_user=6", "logger=none", "algorithm=cocoa")
    cfg = compose(*words, "communicator=sums", "aggregators=server", "metrics=sums", "output_dir=.")
    cfg.output_dir = str(tmp_path)
    cell = train_in_cells(cfg).cells.cells["host 1"]
    file = tmp_path / "state-host-1.pt"
    before = file.with_suffix(".before")
    flips(tmp_path, file.name, partial(cell.restore_users, 2))
    rounds = load_checkpoint(before, "host")["rounds"]
    file.unlink()

    def read() -> None:
        cell.restore_users(rounds)
        file.replace(before)  # as it was named

    flips(tmp_path, before.name, read)
    for each in (before, tmp_path / "checkpoint.pt"):
        assert each.stat().st_mode & 0o777 == 0o600, each
