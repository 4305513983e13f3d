"""A disk that is full. A limit to the size of files stands for it, so that the error is the system's own."""

from functools import partial
from pathlib import Path

import pytest
from commands import limit_files, run

from hmtl.config.build import compose
from hmtl.train import train
from hmtl.training.checkpoint import load_checkpoint

SMALL = ("dataset.rows_per_user=20", "checkpoint_every=1", "algorithm.rounds=4")


@pytest.mark.slow
def test_it_is_told_in_one_line_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    train(compose(*SMALL, "rounds=2", "logger=none", f"output_dir={folder}"))
    whole, picture = ((folder / name).read_bytes() for name in ("checkpoint.pt", "topology.png"))
    assert len(picture) < len(whole) - 10_000

    words = *SMALL, "rounds=4", "~logger.console", f"hydra.run.dir={folder}", f"resume={folder}"
    for nbytes, which in (1000, ""), (len(picture) // 2, "topology.png"), (len(picture) + 10_000, "checkpoint.pt"):
        done = run("hmtl.train", *words, cwd=tmp_path, prepare=partial(limit_files, nbytes))
        said = done.stdout + done.stderr
        assert done.returncode == 2, said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert which in said
        assert "File too large" in said or "enforce fail" in said  # as PyTorch says it within a tensor
        assert (folder / "checkpoint.pt").read_bytes() == whole
        assert not list(folder.glob("*.tmp"))
    assert load_checkpoint(folder)["history"]["rounds"] == 2
