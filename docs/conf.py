"""The documentation site. Its sources are where they belong in the repository, so `make docs` builds from its root."""

from importlib.metadata import version as version_of

project = "hmtl"
author = copyright = "The hmtl authors"
release = version_of("hmtl")

root_doc = "docs/index"
include_patterns = ["docs/**.md", "notebooks/*.ipynb", "experiments/**.md", "*.md"]
exclude_patterns = [".*", "README.md", "outputs", "multirun", "build", "dist", "hmtl", "tests"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx_copybutton"]
extensions += ["sphinx-mathjax-offline"]  # formulas are set without a network, too
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # in git without outputs; executed anew if they changed, or after `make clean`
nb_execution_timeout = 120
nb_execution_raise_on_error = True

html_theme = "furo"
html_title = "hmtl"
html_static_path = ["static"]
html_css_files = ["formulas.css"]
html_extra_path = ["start"]  # index.html, which leads to docs/

autosummary_generate = False
copybutton_prompt_text = r">>> |\.\.\. "  # which is not copied, nor are outputs
copybutton_prompt_is_regexp = True

default_role = "code"  # docstrings have `names` in single backticks
autodoc_member_order = "bysource"
requests = "set_fit_request, set_predict_request, set_score_request, set_decision_function_request"
requests += ", set_predict_proba_request"  # which scikit-learn adds to estimators
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": requests}
maximum_signature_line_length = 88
