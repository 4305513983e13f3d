"""What README and documentation show runs, page by page as a reader would do it."""

import re
from itertools import groupby
from pathlib import Path

import pytest
from pages import NOT_RUN, PAGES, ROOT, Piece, pieces
from reader import follow, lay

SHOWN = {str(page.relative_to(ROOT)): list(pieces(page)) for page in PAGES}
SECTIONS = {
    f"{page}, section {number}": list(section)
    for page, told in SHOWN.items()
    for number, section in groupby(told, key=lambda piece: piece.section)
}
WITH_PYTHON = {name: section for name, section in SECTIONS.items() if any(piece.is_python for piece in section)}


@pytest.mark.slow
@pytest.mark.parametrize("section", WITH_PYTHON.values(), ids=WITH_PYTHON.keys())
def test_sections_with_python(section: list[Piece], tmp_path: Path) -> None:
    """With the commands beside it, where it reads what they leave, or is a file that they read."""
    with_commands = any(piece.is_python and re.search(r"load_run|^# \S+\.py$", piece.text, re.M) for piece in section)
    told = [piece for piece in section if piece.is_python or with_commands]
    lay(tmp_path, told)
    follow(told, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, told in SHOWN.items() if told])
def test_pages(page: str, tmp_path: Path) -> None:
    lay(tmp_path, SHOWN[page])
    follow(SHOWN[page], tmp_path)


def test_what_is_not_run_is_still_shown() -> None:
    for words in NOT_RUN:
        assert any(words in piece.text for told in SHOWN.values() for piece in told), words
