"""The documentation site. Its sources are where they belong in the repository, so `make docs` builds from its root."""

import itertools
import re
import subprocess
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx

from hmtl.config.build import conf_dir
from hmtl.config.settings_help import settings_of

project = "hmtl"
author = copyright = "The hmtl authors"
release = version_of("hmtl")

root_doc = "docs/index"
include_patterns = ["docs/**.md", "docs/reference/api/*.rst", "notebooks/*.ipynb", "experiments/**.md", "*.md"]
exclude_patterns = ["docs/templates", ".*", "README.md", "outputs", "multirun", "build", "dist", "hmtl", "tests"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx_copybutton"]
extensions += ["sphinx-mathjax-offline"]  # formulas are set without a network, too
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # in git with the outputs of their last run

html_theme = "furo"
html_title = f"hmtl {release}"
origin = subprocess.getoutput("git config remote.origin.url")
if hosted := re.match(
    r"(?:https://|git@)(git(?:hub|lab)\.com)[:/](.+?)(?:\.git)?$", origin
):  # pages link to their source
    repository = f"https://{hosted[1]}/{hosted[2]}/"
    html_theme_options = {"source_repository": repository, "source_branch": "main", "source_directory": ""}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["start"]  # index.html, which leads to docs/

templates_path = [str(Path(__file__).parent / "templates")]  # of a page for each class and function
copybutton_prompt_text = r">>> |\.\.\. "  # which is not copied, nor are outputs
copybutton_prompt_is_regexp = True

default_role = "code"  # docstrings have `names` in single backticks
autodoc_member_order = "bysource"
requests = "set_fit_request, set_predict_request, set_score_request, set_decision_function_request"
requests += ", set_predict_proba_request"  # which scikit-learn adds to estimators
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": requests}
maximum_signature_line_length = 88

ELSEWHERE = {
    "torch.Tensor": "https://docs.pytorch.org/docs/stable/tensors.html",
    "torch.Size": "https://docs.pytorch.org/docs/stable/size.html",
    "torch.device": "https://docs.pytorch.org/docs/stable/tensor_attributes.html",
    "torch.dtype": "https://docs.pytorch.org/docs/stable/tensor_attributes.html",
    "torch.Generator": "https://docs.pytorch.org/docs/stable/generated/torch.Generator.html",
    "torch.nn.Module": "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html",
    "torch.optim.Optimizer": "https://docs.pytorch.org/docs/stable/optim.html",
    "torch.utils.data.Dataset": "https://docs.pytorch.org/docs/stable/data.html",
    "torch.utils.data.DataLoader": "https://docs.pytorch.org/docs/stable/data.html",
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    "numpy.random.Generator": "https://numpy.org/doc/stable/reference/random/generator.html",
    "numpy.typing.NDArray": "https://numpy.org/doc/stable/reference/typing.html",
    "numpy.typing.ArrayLike": "https://numpy.org/doc/stable/reference/typing.html",
}
"""Pages of classes in signatures, which are linked without an inventory, as a build may have no network."""
PRIVATE = {"torch.utils.data.dataset": "torch.utils.data", "torch.utils.data.dataloader": "torch.utils.data"}
PRIVATE |= {
    "torch.nn.modules.module": "torch.nn",
    "torch.optim.optimizer": "torch.optim",
    "numpy._typing": "numpy.typing",
}
PRIVATE |= {"np": "numpy", "nn": "torch.nn"}
"""Modules that signatures name, and those in which the other documentation has their classes."""
TEX = {
    "ᵀ": r"^{\top}",
    "²": "^2",
    "⁻¹": "^{-1}",
    "½": r"\tfrac12 ",
    "‖": r"\|",
    "Σ_": r"\sum_",
    "−": "-",
    "w̄": r"\bar w ",
    "√": r"\surd ",
    "₁": "_1",
    "₂": "_2",
    "*(": "^*(",
}
"""What MathJax needs in formulas; it sets Greek letters, arrows and relations as they are."""


def all_settings() -> str:
    """Return tables of all settings in `conf/`: those at the root, and group by group what each choice has."""
    root = [*settings_of("", "config")]
    page = ["## At the root", "", *rows({"": root})]
    for command in ("plan", "predict"):
        own = [setting for setting in settings_of("", command) if setting not in root]
        page += ["", f"## `python -m hmtl.{command}`", "", *rows({"": own})]
    defaults = yaml.safe_load((conf_dir() / "config.yaml").read_text())["defaults"]
    for group in (key for each in defaults if isinstance(each, dict) for key in each if " " not in key):
        choices = {file.stem: file.read_text() for file in sorted((conf_dir() / group).glob("*.yaml"))}
        page += ["", f"## `{group}`", ""]
        page += [f"- `{group}={choice}`: {header(text)}" for choice, text in choices.items()]
        page += ["", *rows({choice: [*settings_of(group, choice)] for choice in choices})] * (group != "experiment")
    return "\n".join(page)


def header(text: str) -> str:
    """Return the comment at the top of a file in `conf/`."""
    lines = itertools.takewhile(
        lambda line: line.startswith("# "), text.removeprefix("# @package _global_\n").splitlines()
    )
    return as_text(" ".join(line[2:] for line in lines))


def rows(choices: dict[str, list[tuple[str, str, str]]]) -> list[str]:
    """Return a table of the settings of some choices, in which those that are alike are one row."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for choice, settings in choices.items():
        for setting in settings:
            alike.setdefault(setting, []).append(choice)
    several = len(choices) > 1
    table = ["| setting | default | meaning |" + " of |" * several, "|---|---|---|" + "---|" * several]
    for (name, value, comment), names in sorted(alike.items(), key=lambda each: each[0][0].endswith("_target_")):
        shown = f"`{value}`".replace("|", "\\|") if value else ""
        of = [", ".join(names) if len(names) < len(choices) else "all"] * several
        if value or comment:
            table.append(f"| {' | '.join([f'`{name}`', shown, as_text(comment), *of])} |")
    return table


def as_text(comment: str) -> str:
    """Return a comment in which Markdown sees no markup."""
    return re.sub(r"([|_*<$\[\]])", r"\\\1", comment)


def add_settings(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the tables to their page, above its last line, which says what comes next."""
    if name == "docs/guide/settings":
        guides, last = source[0].rstrip().rsplit("\n", 1)
        source[0] = f"{guides}\n{all_settings()}\n\n{last}\n"


def link_elsewhere(app: Sphinx, env: Any, node: Any, text: Any) -> nodes.reference | None:
    """Return a link to the documentation of torch or NumPy."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    target = f"{PRIVATE.get(module, module)}.{name}"
    return nodes.reference("", "", text, refuri=f"{ELSEWHERE[target]}#{target}") if target in ELSEWHERE else None


def set_formulas(app: Sphinx, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn `$...$` in a docstring into a formula, with indices of several letters in braces."""

    def formula(match: re.Match[str]) -> str:
        tex = re.sub(r"\b(tr|diag|log|exp|sign)\b", r"\\operatorname{\1}", match[1])
        tex = re.sub(r"([wλ])(\d)", r"\1_\2", re.sub(r"_(\w{2,})", r"_{\1}", tex))
        for symbol, command in TEX.items():
            tex = tex.replace(symbol, command)
        return f":math:`{tex}`"

    lines[:] = re.sub(r"\$([^$]+)\$", formula, "\n".join(lines)).split("\n")


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", link_elsewhere)
    app.connect("autodoc-process-docstring", set_formulas)
    app.connect("source-read", add_settings)
