"""What is printed, wherever it goes: in any encoding and width, to a terminal or into a file."""

import io
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from commands import encode, here, run

from hmtl.config.build import conf_dir
from hmtl.reporting import console
from hmtl.reporting.console import Console, as_table, progress, share_saved
from hmtl.reporting.console_logger import ConsoleLogger

SMALL = ("K=4", "H=3", "r=2", "dataset.rows_per_user=20", "hydra.run.dir=out")
TRAIN = ("hmtl.train", (*SMALL, "rounds=3", "logger=default", "~logger.tensorboard"))
TUNE = ("hmtl.tune", (*SMALL, "rounds=2", "tune.folds=2", "tune.grid={lam:[0.1],regularizer.floor:[1e-4,1e-3]}"))
PLAN = ("hmtl.plan", ("topology=heterogeneous", "d=0.2", "hydra.run.dir=out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words", "encoding"),
    [(*TRAIN, "ascii"), (*TUNE, "cp1252"), (*PLAN, "ascii")],
    ids=["train", "tune", "plan"],
)
def test_an_encoding_without_lambda(tmp_path: Path, command: str, words: tuple[str, ...], encoding: str) -> None:
    done = run(command, *words, cwd=tmp_path, prepare=partial(encode, encoding))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\d", done.stdout)


@pytest.mark.parametrize(
    ("command", "words"), [TRAIN, pytest.param(*PLAN, marks=pytest.mark.slow)], ids=["train", "plan"]
)
@pytest.mark.slow
def test_numbers_stay_whole_in_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: tuple[str, ...]
) -> None:
    """All that stand in a wide one."""
    monkeypatch.chdir(tmp_path)
    numbers = []  # of tables, without measured seconds; and all
    for columns in ("200", "25"):
        monkeypatch.setenv("COLUMNS", columns)
        told = here(command, *words)
        assert (told.returncode, "…" in told.stdout) == (0, False)
        is_whole = columns == "25" or command.endswith("plan")
        lines = [line for line in told.stdout.splitlines() if line[:1] in ("│", " ") or is_whole]
        numbers.append(set(re.findall(r"\b\d+\.\d\d\b", "\n".join(lines))))
    assert numbers[0]
    assert numbers[0] <= numbers[1]


def test_words_are_wrapped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for columns in (80, 20):
        monkeypatch.setenv("COLUMNS", str(columns))
        Console().table(as_table("Table", ("what", "number"), [["some words in a row", "123456.789"]]))
        printed = capsys.readouterr().out
        assert "123456.789" in printed
        assert ("some words in a row" in printed) == (columns == 80)


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """None in a short run, and none where the log of a node has them."""

    def printed(seconds: float, lines: bool = True) -> list[str]:
        monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", seconds)
        logger = ConsoleLogger(30, lines)
        for round in range(3):
            logger.log({"round": round, "test_error": 0.25})
        logger.close()
        return capsys.readouterr().out.splitlines()

    assert printed(60) == []
    assert printed(0, lines=False) == []
    assert printed(0) == [f"round {done} of 30, test error 0.25" for done in (1, 2, 3)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("screen", [Terminal(), io.StringIO()])
def test_progress_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, screen: io.StringIO) -> None:
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with suppress(ValueError), progress("Planning"):
        raise ValueError("wrong")
    assert ("Planning ..." in screen.getvalue()) == isinstance(screen, Terminal)


@pytest.mark.slow
def test_a_report_fits_a_small_terminal_unless_all_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    command, words = TRAIN
    for further, longest in (((), 25), (("algorithm=fedavg", "wire=int4"), 25), (("-v",), 90)):
        lines = here(command, *words, *further).stdout.splitlines()
        assert lines[0].startswith("users    4: ")
        assert longest - 65 < len(lines) <= longest
        assert max(len(line) for line in lines if not line.startswith("folder")) <= 80
    assert any("joint_gap" in line for line in lines)


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_help_has_a_line_for_each_setting(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = here("hmtl.train", "--help", "algorithm=fedavg").stdout.splitlines()
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    root = (conf_dir() / "config.yaml").read_text().partition("\nK:")[2].partition("\nhydra:")[0]
    comments = re.findall(r"^ *(?:\w+: +[^#\s][^#]*)?# +(.*)", root, re.MULTILINE)
    assert len(comments) > 30
    assert [comment for comment in comments if " ".join(comment.split()) not in text] == []
    assert {"lam=0.01                     strength of the regularizer"} <= set(lines)
    assert [line for line in lines if line.startswith("algorithm.weights=rows")]
    assert [line for line in lines if line.startswith("algorithm=fedavg (apfl, cocoa, ")]
    assert not [line for line in lines if line.startswith(("algorithm.omega_every", "hydra", "output_dir"))]


def test_shares_saved_are_readable_if_nothing_is_saved() -> None:
    cells = [share_saved(seconds, 10.0) for seconds in (9.0, 10.0001, 11.0, 201.8)]
    assert cells == ["10.0%", "0.0%", "-10.0%", "-1918.0%"]
    assert share_saved(1.0, 0.0) == ""
