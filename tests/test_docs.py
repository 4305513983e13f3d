"""The documentation site builds, and README and documentation name files, extras and speeds that exist."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import PAGES, ROOT


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = ["-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ROOT, tmp_path / "site"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "site" / "docs" / "reference" / "coding.html").read_text()
    assert 'id="hmtl.coding.make_plan"' in page
    for theory in (tmp_path / "site" / "docs" / "theory").glob("*.html"):  # MathJax reports no error
        assert not re.search(r"\\begin\{split\}(?:(?!\\end\{split\}).)*\\tag", theory.read_text(), re.DOTALL), theory


def test_scripts_and_extras_shown_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page in PAGES:
        for script in re.findall(r"(?:python|pytest) ((?:experiments|tests)/[a-z_\d/]+\.py)", page.read_text()):
            assert (ROOT / script).is_file(), (page.name, script)
        assert set(re.findall(r"hmtl\[(\w+)\]", page.read_text())) <= set(extras)


def test_speeds_in_the_readme_are_those_of_the_page() -> None:
    short = (ROOT / "README.md").read_text().partition("## How fast")[2].partition("\n## ")[0]
    rows = [line for line in short.splitlines() if line.startswith("|")]
    assert len(rows) > 5
    assert set(rows) <= set((ROOT / "docs" / "speed.md").read_text().splitlines())
