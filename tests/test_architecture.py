"""Who may import whom."""

import ast
from pathlib import Path

import pytest

import hmtl

ROOT = Path(hmtl.__file__).parent
EVERYONE = {"errors", "rng"}
ALLOWED = {
    "topology": set(),
    "coding": {"topology"},
    "communication": {"topology", "coding"},
    "data": set(),
    "mtl": {"data"},
    "trainer": {"communication", "mtl"},
}


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


def test_only_config_knows_hydra() -> None:
    users = {path.name for path in ROOT.rglob("*.py") if any(name.startswith("hydra") for name in imports(path))}
    assert users == {"config.py"}
