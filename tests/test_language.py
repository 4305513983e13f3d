"""The language of the repository: one meaning for one name, and the usual words of docs/glossary.md."""

import ast
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AVOIDED = {
    r"hangs? on": "depends on",
    r"hang together": "are related, are coupled",
    r"(?<!there )(is|are) no (?!(longer|more|less|fewer|smaller|larger|better)\b)": "is not a",
    r"(is|are) told": "reports, says which",
    r"so many at most": "at most",
    r"at hand": "available",
    r"as (it|they) stands?": "as written",
    r"do(es)? not look at": "ignore",
    r"do it again": "restart, repeat",
    r"learns? of": "report, measure",
    r"whoever": "a named subject",
}
"""Phrases that a native reader stumbles over, and what to write instead."""
BRITISH = (
    r"neighbour\w*|programmes?|behaviours?|colours?|favour\w*|dial(?:ling|led)|licences?|defences?|centre|towards"
    r"|(?:travel|label|model|signal)l(?:ed|ing)|(?:quant|min|max|optim|vector|random|initial|personal|general)is[ei]\w*"
)
"""Words that American English, in which the project is written, spells in another way."""
IDIOMS = {"log", "T"}
"""Names that every module may define."""


def modules() -> list[Path]:
    return sorted((ROOT / "hmtl").rglob("*.py"))


def texts() -> list[Path]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]
    experiments = [path for path in (ROOT / "experiments").rglob("*") if path.suffix in (".py", ".md")]
    return [*modules(), *experiments, *(ROOT / "conf").rglob("*.yaml"), *pages]


def defined(module: ast.Module) -> set[str]:
    """Return the names of a module's classes, aliases and constants, without the underscore of private ones."""
    names: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return {name.removeprefix("_") for name in names if not name.startswith("__")}


def test_a_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for path in modules():
        for name in defined(ast.parse(path.read_text())) - IDIOMS:
            places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


@pytest.mark.parametrize("phrase", AVOIDED)
def test_usual_words(phrase: str) -> None:
    places = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(rf"\b{phrase}\b" if phrase[-1].isalpha() else rf"\b{phrase}", line, re.IGNORECASE)
    ]
    assert not places, f"write {AVOIDED[phrase]!r}"


def test_american_spelling() -> None:
    """Modules are read for their comments and strings here, as their names may be those of other packages."""
    for path in texts():
        prose = path.read_text()
        if path.suffix == ".py":
            with path.open("rb") as file:
                kinds = tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)
                prose = "\n".join(token.string for token in tokenize.tokenize(file.readline) if token.type in kinds)
        prose = re.sub(r"`[^`\n]*`|{[^}\n]*}|^ +\w+:", "", prose, flags=re.MULTILINE)  # without names
        assert not re.findall(rf"(?<![\w.])(?:{BRITISH})\b", prose), path


@pytest.mark.slow
def test_names_in_code_have_american_spelling() -> None:
    for path in [*modules(), *(ROOT / "tests").rglob("*.py")]:
        with path.open("rb") as file:
            names = {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}
        names.add(path.stem)
        words = {word.lower() for name in names for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
        assert not [word for word in words if re.fullmatch(BRITISH, word)], path


def test_the_architecture_page_names_files_and_functions_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    files = [name for name in re.findall(r"`([\w/]+\.py)`", page) if "/" in name]
    assert len(files) > 20
    for name in files:
        assert (ROOT / "hmtl" / name).is_file() or (ROOT / name).is_file(), name
    for line in page.splitlines():
        cells = re.fullmatch(r"\| [^|]+ \| ([^|]+) \| (`[^|]+`) \|", line)
        if cells:
            code = "".join((ROOT / "hmtl" / name).read_text() for name in re.findall(r"`([\w/]+\.py)`", cells[1]))
            for name in re.findall(r"(\w+)`", cells[2]):
                assert re.search(rf"\b(def|class) {name}\b", code), line
