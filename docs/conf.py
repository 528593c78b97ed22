"""Pages: sphinx-build -W -b html docs docs/_build/html; their examples: also with -b doctest."""

import importlib
from pathlib import Path
from typing import Any

import typer
from sphinx.application import Sphinx

import fastlr

project = "fastlr"
copyright = "the fastlr authors"
version = release = fastlr.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "numpydoc",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
nitpicky = True
# `x` in a docstring is code.
default_role = "code"

html_theme = "furo"
html_title = f"fastlr {release}"

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

doctest_global_setup = "import torch, fastlr, fastlr.linalg as la"
# The docstrings' own examples are run by pytest.
doctest_test_doctest_blocks = ""


def write_command_reference(app: Sphinx) -> None:
    """Write the reference of the command from what the command itself would print as help."""
    cli = importlib.import_module("typer.cli")
    command = typer.main.get_command(importlib.import_module("fastlr.cli.app").app)
    context = typer.Context(command, info_name="fastlr")
    text = cli.get_docs_for_click(obj=command, ctx=context, name="fastlr")
    path = Path(app.srcdir) / "reference" / "generated" / "command.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = text.replace("# `fastlr`", "# The command `fastlr`", 1)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect what this file adds to the build."""
    app.connect("builder-inited", write_command_reference)
    return {"parallel_read_safe": True}
