"""The documentation site builds, and commands that it and the README show are such as hmtl takes."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from hmtl.__main__ import COMMANDS
from hmtl.config import compose

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "experiments").rglob("*.md"))]
CONFIGS = {"plan": "plan", "predict": "predict"}  # of the others: config


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = ["-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ROOT, tmp_path / "site"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "site" / "docs" / "reference" / "coding.html").read_text()
    assert 'id="hmtl.coding.make_plan"' in page


def shown() -> Iterator[tuple[str, list[str]]]:
    """Each command of hmtl, and its words; those of `torchrun` and in running text, too."""
    seen = set()
    for page in PAGES:
        for name, rest in re.findall(r"-m hmtl\.(\w+)([^`\n]*)", page.read_text().replace("\\\n", " ")):
            if (name, rest) not in seen and "..." not in rest:  # which stands for whatever else
                seen.add((name, rest))
                yield name, shlex.split(rest.replace("$", ""), comments=True)


def runs(words: list[str]) -> list[list[str]]:
    """The settings of each run of a sweep; of a command that is none, its own."""
    found: list[list[str]] = [[]]
    for override in OverridesParser.create().parse_overrides(words):
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [None]
        texts = [f"{override.key_or_group}={value}" if value is not None else override.input_line for value in values]
        found = [[*run, str(text)] for run in found for text in texts]
    return found


def test_commands_shown_are_ones_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    own = tmp_path / "own"  # in the place of the reader's folders of configurations
    for file, text in {"regularizer/ring": "_target_: mine.Ring\nlam: ${lam}", "experiment/tuned": "lam: 1"}.items():
        (own / file).parent.mkdir(parents=True)
        (own / f"{file}.yaml").write_text(f"# @package {'_global_' if 'tuned' in file else 'regularizer'}\n{text}\n")
    commands = list(shown())
    assert len(commands) > 50
    for name, words in commands:
        assert name in COMMANDS
        if "--help" in words or name == "report":
            continue
        if "--config-dir" in words:
            place = words.index("--config-dir")
            words[place : place + 2] = [f"hydra.searchpath=[file://{own}]"]
        settings = [word for word in words if word != "-m" and not (name == "launch" and word.startswith("processes="))]
        jobs = runs(settings)
        assert len(jobs) == 1 or "-m" in words
        for job in jobs[-1:]:
            place = [] if name == "predict" else [f"output_dir={tmp_path}"]
            cfg = compose(*place, *job, name=CONFIGS.get(name, "config"))
            OmegaConf.to_container(cfg, resolve=True)


def test_scripts_shown_are_there() -> None:
    for page in PAGES:
        for script in re.findall(r"(?:python|pytest) ((?:experiments|tests)/[a-z_\d/]+\.py)", page.read_text()):
            assert (ROOT / script).is_file(), (page.name, script)
