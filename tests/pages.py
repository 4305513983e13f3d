"""What README and documentation show: commands, in blocks and in running text, and blocks of Python, in their order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "experiments").rglob("*.md"))]
PROGRAMS = ("python", "hmtl", "torchrun", "tensorboard", "pytest", "make", "pip", "eval")  # of commands in running text

NOT_RUN = {
    "pip install": "changes the environment that the tests run in",
    "--nnodes=2": "takes two machines",
    "scontrol": "takes Slurm",
    "srun": "takes Slurm",
    "experiments/network/run.py": "takes root and a quarter of an hour; tests/experiments has a small run of it",
}
"""Commands with these words in them, and why none of them is run."""

PARTS = re.compile(r"^```(?P<language>.*)\n(?P<block>(?s:.*?))^```$|`(?P<code>[^`]+)`|^(?P<heading>#+ )", re.MULTILINE)


@dataclass(frozen=True)
class Piece:
    """A command, or a block of Python.

    Attributes:
        section: number of the heading that it stands below.
        text: as it stands on the page, of a command without the comment after it.
    """

    page: str
    section: int
    is_python: bool
    text: str


def pieces(page: Path) -> Iterator[Piece]:
    """From top to bottom; without commands in which `...` stands for whatever else."""
    name, section = str(page.relative_to(ROOT)), 0
    for part in PARTS.finditer(page.read_text()):
        language, code = part["language"], part["code"]
        if part["heading"]:
            section += 1
        elif language == "python":
            yield Piece(name, section, True, part["block"])
        else:
            commands = re.split(r"(?<!\\)\n", part["block"]) if language in ("", "sh", "bash") else []
            if code and re.match(rf"({'|'.join(PROGRAMS)}) ", code):
                commands = [code.replace("\n", " ")]
            for text in (re.sub(r"(^|\s+)#.*", "", command) for command in commands):
                if text and not re.search(r"(?<!=)\.\.\.", text):
                    yield Piece(name, section, False, text)
