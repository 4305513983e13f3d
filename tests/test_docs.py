"""The documentation site builds, and commands that it and the README show are such as hmtl takes."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import forked
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pages import PAGES, ROOT, pieces

from hmtl.__main__ import COMMANDS
from hmtl.config.build import compose


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = ["-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ROOT, tmp_path / "site"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "site" / "docs" / "reference" / "coding.html").read_text()
    assert 'id="hmtl.coding.make_plan"' in page
    for theory in (tmp_path / "site" / "docs" / "theory").glob("*.html"):  # MathJax says no more than that it cannot
        assert not re.search(r"\\begin\{split\}(?:(?!\\end\{split\}).)*\\tag", theory.read_text(), re.DOTALL), theory


def one_run(words: list[str]) -> list[str]:
    """The settings of a command; of a sweep, those of its last run."""
    chosen = []
    for override in OverridesParser.create().parse_overrides([word for word in words if word != "-m"]):
        swept = [*override.sweep_string_iterator()] if "-m" in words and override.is_sweep_override() else []
        chosen.append(f"{override.key_or_group}={swept[-1]}" if swept else str(override.input_line))
    return chosen


@pytest.mark.slow
def test_commands_shown_are_ones_that_there_are(tmp_path: Path) -> None:
    own = tmp_path / "own"  # in the place of the reader's folders of configurations
    for file, text in {"regularizer/ring": "_target_: mine.Ring\nlam: ${lam}", "experiment/tuned": "lam: 1"}.items():
        (own / file).parent.mkdir(parents=True)
        (own / f"{file}.yaml").write_text(f"# @package {'_global_' if 'tuned' in file else 'regularizer'}\n{text}\n")
    told = {piece.text for page in PAGES for piece in pieces(page) if "-m hmtl." in piece.text and not piece.is_python}
    assert len(told) > 30
    for text in sorted(told):
        name, *words = shlex.split(text.partition("-m hmtl.")[2].replace("$", ""))
        assert name in COMMANDS
        if "--help" in words or name == "report":
            continue
        if "--config-dir" in words:
            place = words.index("--config-dir")
            words[place : place + 2] = [f"hydra.searchpath=[file://{own}]"]
        settings = one_run([word for word in words if name != "launch" or not word.startswith("processes=")])
        place = [] if name == "predict" else [f"output_dir={tmp_path}"]
        config = name if name in ("plan", "predict") else "config"
        OmegaConf.to_container(compose(*place, *settings, name=config), resolve=True)


@pytest.mark.slow
def test_output_shown_is_what_is_printed(tmp_path: Path) -> None:
    shown = re.findall(r"```\npython -m hmtl\.(\w+)(.*)\n```\n\n```text\n([^`]*)```", (ROOT / "README.md").read_text())
    assert [name for name, _, _ in shown] == ["plan", "train"]
    for name, words, output in shown:
        few = ["rounds=1"] * (name == "train")  # what it learned is left out: more rounds tell it, for the last digits
        done = forked.run(name, [*words.split(), *few, f"hydra.run.dir={tmp_path / name}"], tmp_path)
        printed = {line.rstrip() for line in done.out.splitlines()}
        told = [line for line in output.splitlines() if line != "..." and "gap" not in line and "error" not in line]
        assert len(told) > 5
        for line in told:
            assert line in printed


def test_scripts_and_extras_shown_are_there() -> None:
    for page in PAGES:
        for script in re.findall(r"(?:python|pytest) ((?:experiments|tests)/[a-z_\d/]+\.py)", page.read_text()):
            assert (ROOT / script).is_file(), (page.name, script)
        assert set(re.findall(r"hmtl\[(\w+)\]", page.read_text())) <= set(
            metadata("hmtl").get_all("Provides-Extra", [])
        )


def test_speeds_told_twice_are_the_same() -> None:
    short = (ROOT / "README.md").read_text().partition("## How fast")[2].partition("\n## ")[0]
    rows = [line for line in short.splitlines() if line.startswith("|")]
    assert len(rows) > 5
    assert set(rows) <= set((ROOT / "docs" / "speed.md").read_text().splitlines())
