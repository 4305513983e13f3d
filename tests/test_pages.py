"""What README and documentation show runs, page by page, as for a reader who follows it."""

import re
from pathlib import Path

import pytest
from pages import NOT_RUN, PAGES, SUBSTITUTIONS, Piece, pieces
from reader import follow, lay

SHOWN = [piece for page in PAGES for piece in pieces(page)]
COMMANDS = {piece.text: piece for piece in reversed(SHOWN) if not piece.is_python}
"""Each command where it is shown first, and where it runs."""


def run_on(page: str) -> list[Piece]:
    return [piece for piece in SHOWN if piece.page == page and piece is COMMANDS.get(piece.text, piece)]


@pytest.mark.slow
@pytest.mark.parametrize("page", list(dict.fromkeys(piece.page for piece in SHOWN)))
def test_pages(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("transformers", "peft"):  # an extra
        if any(f"from {package} import" in piece.text for piece in run_on(page) if piece.is_python):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    lay(tmp_path, run_on(page))
    names: dict[str, object] = {}
    for piece in run_on(page):
        follow(piece, tmp_path, names)


@pytest.mark.parametrize("pattern", [*NOT_RUN, *SUBSTITUTIONS])
def test_each_exception_is_needed(pattern: str) -> None:
    assert any(re.search(pattern, command) for command in COMMANDS)
