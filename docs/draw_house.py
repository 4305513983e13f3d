"""Draw the packages of hmtl and their imports, as the code has them: `python docs/draw_house.py`.

Each box is a package or a module at the root; longer ones have wider boxes. Boxes stand in the layers of the import
contract in pyproject.toml. An arrow points from the importing package to the imported one; implied ones are omitted.
"""

import tomllib
from pathlib import Path

import grimp
import matplotlib
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from hmtl.reporting.style import PAGE, PRINT, Picture

ROOT = Path(__file__).parent.parent
COMMANDS = "commands"
SPREAD = {"tuning": 5.2, "distributed": 7.2, "inference": 5.2}  # of rows, so that no arrow crosses a box
COMMAND_NAMES = ("train", "plan", "tune", "report", "predict", "launch", "node", "certificates", "new")


def layers() -> list[list[str]]:
    """The layers of the import contract, top first; the commands are one box."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    contract = next(each for each in contracts if each["type"] == "layers")
    rows = [[name.strip(" ()") for name in layer.split("|")] for layer in contract["layers"]]
    first = next(n for n, row in enumerate(rows) if "train" in row)
    return [[COMMANDS], *rows[first + 1 :]]


def lines(name: str) -> int:
    """The lines of a package, or of a module at the root."""
    package = ROOT / "hmtl" / name
    files = package.rglob("*.py") if package.is_dir() else [package.with_suffix(".py")]
    return sum(len(file.read_text().splitlines()) for file in files)


def arrows(members: dict[str, list[str]]) -> set[tuple[str, str]]:
    """The imports between boxes, without those that follow from a chain of others."""
    graph = grimp.build_graph("hmtl")

    def imports(source: str, target: str) -> bool:
        return any(
            graph.direct_import_exists(importer=f"hmtl.{a}", imported=f"hmtl.{b}", as_packages=True)
            for a in members[source]
            for b in members[target]
        )

    direct = {(a, b) for a in members for b in members if a != b and imports(a, b)}
    reached = set(direct)
    for middle in members:
        reached |= {(a, b) for a, m in reached if m == middle for n, b in reached if n == middle}
    return {(a, b) for a, b in direct if not any((a, m) in reached and (m, b) in reached for m in members)}


@matplotlib.rc_context(PRINT)
def draw(target: Path) -> None:
    """Write the picture to `target`, without its ending."""
    rows = layers()[:-2]  # everything may import io, rng and errors
    commands = [path.stem for path in (ROOT / "hmtl").glob("*.py") if path.stem in COMMAND_NAMES]
    members = {name: commands if name == COMMANDS else [name] for row in rows for name in row}
    figure = Picture(figsize=(PAGE, 8), layout="constrained")
    axes = figure.subplots()
    place = {}
    for level, row in enumerate(reversed(rows)):
        for n, name in enumerate(row):
            size = sum(lines(member) for member in members[name])
            width, height = 1.0 + size / 2800, 0.5
            x, y = (n - (len(row) - 1) / 2) * SPREAD.get(row[0], 4.0), level * 1.2
            place[name] = x, y
            corner = x - width / 2, y - height / 2
            axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.05", fc="#eef3f8", ec="#33556b"))
            axes.text(x, y, f"{name}\n{size:,} lines", ha="center", va="center")
    for source, imported in arrows(members):
        (x, y), (u, v) = place[source], place[imported]
        style = {"arrowstyle": "-|>", "mutation_scale": 9, "lw": 0.9, "color": "#55697a"}
        ends = (x, y - 0.31), (u, v + 0.31)
        axes.add_patch(FancyArrowPatch(*ends, zorder=0, **style))
    axes.set_aspect("equal")
    axes.set_xlim(-4.8, 4.8)
    axes.set_ylim(-0.5, (len(rows) - 1) * 1.2 + 0.5)
    axes.set_axis_off()
    figure.write(target, "png", dpi=130)


if __name__ == "__main__":
    draw(ROOT / "docs" / "static" / "house")
