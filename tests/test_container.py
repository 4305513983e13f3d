"""The image of `Dockerfile` is made of what there is: files of this tree, targets of the Makefile."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def steps() -> list[tuple[str, str]]:
    """Each instruction and what it is told, lines that go on joined."""
    told = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in told.splitlines()]


def test_targets_and_files_are_there() -> None:
    targets = re.findall(r"^([^\s:=]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [json.loads(told)[0] for step, told in steps() if step == "CMD"]
    made += [target for step, told in steps() if step == "RUN" for target in re.findall(r"(?<= )make (\S+)", told)]
    made += re.findall(r"docker run --rm hmtl (\w+)", (ROOT / "Dockerfile").read_text())
    assert made == ["train", ".venv/installed", "train", "test"]
    assert set(made) <= set(targets)
    for step, told in steps():
        if step == "COPY":
            assert all((ROOT / place).exists() for place in told.split()[1:-1])


def test_its_python_is_one_that_the_project_takes() -> None:
    (image,) = [told for step, told in steps() if step == "FROM"]
    assert (
        f'requires-python = ">={image.removeprefix("python:").removesuffix("-slim")}"'
        in (ROOT / "pyproject.toml").read_text()
    )


def test_it_runs_as_a_user_of_its_own() -> None:
    (user,) = [told for step, told in steps() if step == "USER"]
    assert any(re.search(rf"useradd .*\b{user}$", told) for step, told in steps() if step == "RUN")
    assert [step for step, _ in steps()].index("USER") < [step for step, _ in steps()].index("COPY")


def test_what_git_ignores_stays_out() -> None:
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()}
    assert set((ROOT / ".dockerignore").read_text().split()) == {".git"} | {f"**/{name}" for name in ignored}
