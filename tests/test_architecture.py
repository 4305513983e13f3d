"""Who may import whom, what a light command may load, and how long a module may get."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hmtl

ROOT = Path(hmtl.__file__).parent
EVERYONE = {"clock", "errors", "leaving", "npz", "picture", "rng"}
ALLOWED = {
    "topology": set(),
    "coding": {"topology"},
    "communication": {"topology", "coding"},
    "data": set(),
    "mtl": {"data"},
    "atomic": set(),
    "signals": set(),
    "folders": set(),
    "progress": set(),
    "settings": set(),
    "schema": {"settings"},
    "history": {"atomic"},
    "checkpoint": {"atomic", "history"},
    "saved": {"atomic", "data", "mtl", "settings"},
    "estimator": {"data", "mtl", "saved"},
    "predict": {"atomic", "cli", "data", "saved"},
    "rendezvous": set(),
    "words": {"communication", "rendezvous"},
    "engine": {"topology", "communication", "data", "mtl", "words"},
    "processes": {"topology", "communication", "data", "mtl", "engine", "rendezvous", "words"},
    "trainer": {"communication", "mtl", "checkpoint", "engine", "history", "signals"},
    "figures": {"communication"},
    "console": set(),
    "loggers": {"communication", "console", "history"},
    "board": {"folders", "history"},
    "cli": {"config", "console", "folders", "report", "schema", "settings"},
    "report": {"atomic", "cli", "console", "folders"},
}
HEAVY = {"clarabel", "cvxpy", "matplotlib", "networkx", "numba", "pandas", "sklearn", "tensorboard", "torchvision"}


def imports(path: Path) -> set[str]:
    """Names of the modules that a file imports, `hmtl.x` as they stand."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows(part: str) -> None:
    files = list((ROOT / part).rglob("*.py")) or [ROOT / f"{part}.py"]
    for path in files:
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("hmtl.")}
        assert ours <= ALLOWED[part] | EVERYONE | {part}, f"{path} reaches too far"


def test_only_config_and_the_command_line_know_hydra() -> None:
    users = {path.name for path in ROOT.rglob("*.py") if any(name.startswith("hydra") for name in imports(path))}
    assert users == {"config.py", "cli.py"}


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("hmtl.config.build", {*HEAVY, "torch", "hmtl.mtl", "hmtl.data", "hmtl.coding"}),
        ("hmtl.train", {*HEAVY, "torch", "hmtl.mtl", "hmtl.data", "hmtl.coding"}),  # so that --help comes at once
        ("hmtl.plan", {*HEAVY, "hmtl.mtl", "hmtl.data", "hmtl.training.trainer"}),
        ("hmtl.data", HEAVY),
    ],
)
def test_what_is_imported_where_it_is_used(module: str, without: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not without & set(loaded)


def test_modules_fit_on_a_few_screens() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert not {path: lines for path, lines in lengths.items() if lines > 300}
