"""The documentation site builds, and README and documentation name files, extras and speeds that exist."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from doctest import DocTestParser, DocTestRunner
from importlib import import_module
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import yaml
from pages import PAGES, ROOT

REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = ["-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-D", "nb_execution_mode=off"]
    done = subprocess.run([sys.executable, *words, ROOT, tmp_path / "site"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "site" / "docs" / "reference" / "api" / "hmtl.coding.make_plan.html").read_text()
    assert 'id="hmtl.coding.make_plan"' in page
    page = (tmp_path / "site" / "docs" / "reference" / "api" / "hmtl.mtl.Mean.html").read_text()
    assert "https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor" in page
    assert r"\operatorname{tr}" in page or r"\sum_k" in page
    assert "add_module" not in page  # which torch documents
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


@pytest.mark.slow  # its script needs the packages of `make docs`
def test_the_page_of_settings_has_each_setting_with_its_comment_and_default() -> None:
    page = re.sub(r"\\(.)", r"\1", run_path(str(ROOT / "docs" / "conf.py"))["all_settings"]())
    files = [file for file in (ROOT / "conf").rglob("*.yaml") if file.parent.name != "experiment"]
    assert len(files) > 50
    for file in files:
        text = re.sub(r"^defaults:\n(  - .*\n)+", "", file.read_text().partition("\nhydra:")[0], flags=re.MULTILINE)
        comments = re.findall(r" # +(.*)" if file.parent.name == "conf" else r"# (?!@package)(.*)", text)
        assert [comment for comment in comments if comment.strip() not in page] == [], file
        group = "" if file.parent.name == "conf" or "@package" in text else f"{file.parent.name}."
        for name, value in leaves({**yaml.safe_load(text), "defaults": {}}, group):
            if not name.endswith(("defaults", "_partial_", "_convert_")):
                defaults = re.findall(rf"\| `{re.escape(name)}` \| `([^`]*)` \|", page)
                assert value in [yaml.safe_load(each.replace("\\|", "|")) for each in defaults], (file, name)


def leaves(settings: dict[str, Any], parent: str) -> Iterator[tuple[str, Any]]:
    """Yield the names of settings and their values."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{parent}{name}.")
        else:
            yield f"{parent}{name}", value


@pytest.mark.slow
def test_tab_completes_settings_in_bash() -> None:
    (script,) = re.findall(r"```shell\n(.*?)```", (ROOT / "docs/guide/settings.md").read_text(), re.DOTALL)
    line = 'COMP_LINE="hmtl train algorithm=fedp" COMP_WORDS=(hmtl train algorithm=fedp)'
    words = f'hmtl() {{ "{sys.executable}" -m hmtl "$@"; }}\n{script}\n{line}\ncomplete_hmtl hmtl algorithm=fedp train'
    done = subprocess.run(
        ["bash", "-c", f'{words}\necho "${{COMPREPLY[@]}}"'], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "algorithm=fedper algorithm=fedprox\n"


def test_each_guide_ends_with_what_comes_next() -> None:
    for guide in (ROOT / "docs" / "guide").glob("*.md"):
        assert guide.read_text().splitlines()[-1].startswith("Next: ["), guide.name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1200


@pytest.mark.slow
def test_examples_of_the_reference_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the sessions on each page, which start from the data on the first page."""
    monkeypatch.chdir(tmp_path)
    shared: dict[str, object] = {}
    for page in sorted(REFERENCE.glob("*.md"), key=lambda page: page.stem != "index"):
        sessions = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        test = DocTestParser().get_doctest("".join(sessions), shared, page.stem, str(page), 0)
        assert DocTestRunner().run(test, clear_globs=False).failed == 0, page.name
        shared = shared or test.globs


@pytest.mark.parametrize("package", ["topology", "coding", "communication", "data", "mtl", "testing"])
def test_each_public_class_and_function_has_its_reference(package: str) -> None:
    module = import_module(f"hmtl.{package}")
    parts = {name: getattr(module, name) for name in module.__all__}
    public = {name for name, part in parts.items() if getattr(part, "__module__", "").startswith("hmtl.")}
    lists = re.findall(
        r"^   :nosignatures:\n\n((?:   .+\n)+)", "".join(map(Path.read_text, REFERENCE.glob("*.md"))), re.M
    )
    assert public <= set("".join(lists).split())
