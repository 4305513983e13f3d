"""A folder is one run's: by default no two have the same, and where one is, no other comes in."""

import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import forked, here, status_of

from hmtl.config.build import compose
from hmtl.errors import ConfigError
from hmtl.train import train
from hmtl.training.checkpoint import load_checkpoint
from hmtl.training.folder import held

SMALL = ("K=10", "dataset.rows_per_user=20", "rounds=2", "logger=none")


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_folders_of_a_sweep_and_of_a_plan_are_as_many() -> None:
    for name in ("config", "plan"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["hmtl"])
            from hydra import compose as hydra_compose
            from hydra import initialize_config_dir

            from hmtl.config.build import conf_dir

            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                composed = [hydra_compose(name, return_hydra_config=True).hydra for _ in range(2)]
        assert len({each[kind].dir for each in composed for kind in ("run", "sweep")}) == 4


@pytest.mark.slow
def test_a_folder_in_use_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    """Anew and by resume, from the command line and as a library; and it is free once its run has been killed."""
    folder = tmp_path / "run"
    assert here("hmtl.train", *SMALL, f"hydra.run.dir={folder}").returncode == 0

    def hold() -> None:
        with held(folder):
            (tmp_path / "ready").touch()
            time.sleep(60)

    child = forked(hold, tmp_path / "run.txt")
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    before = contents(folder)
    assert folder / ".hydra" / "overrides.yaml" in before
    for words in ("lam=0.5",), ("rounds=3", f"resume={folder}"):
        refused = here("hmtl.train", *SMALL, *words, f"hydra.run.dir={folder}")
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {folder} is in use by another run")
        assert refused.stderr.count("\n") == 1
        with pytest.raises(ConfigError, match="is in use by another run"):
            train(compose(*SMALL[:-1], *words, f"output_dir={folder}"))
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    } == before
    (tmp_path / "fork").mkdir()
    train(compose(*SMALL, "rounds=3", f"resume={folder}", f"output_dir={tmp_path / 'fork'}"))  # reading does no harm
    os.kill(child, signal.SIGKILL)
    status_of(child)
    train(compose(*SMALL, "rounds=3", f"resume={folder}", f"output_dir={folder}"))
    assert load_checkpoint(folder)["history"]["rounds"] == 3


def test_threads_of_one_process_are_kept_apart_too(tmp_path: Path) -> None:
    refused = []

    def other() -> None:
        try:
            with held(tmp_path):
                pass
        except ConfigError:
            refused.append(True)

    for _ in range(2):
        with held(tmp_path):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
    assert refused == [True, True]
    other()
    assert refused == [True, True]


def test_where_there_are_no_locks_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with held(tmp_path):
        pass
