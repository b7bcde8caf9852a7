"""Configuration of the documentation: `sphinx-build -W docs docs/_build/html`."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

# Defaults that nnU-Net derives from the machine would otherwise show up in the command reference.
os.environ.setdefault("nnUNet_def_n_proc", "8")
# The tutorials run the installed commands.
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))

project = "nnunetv2-deferral"
author = "The nnunetv2-deferral contributors"
copyright = author  # Sphinx's name for it
release = version = installed_version("nnunetv2-deferral")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",  # equations are readable without a network
    "command_reference",
    "result_tables",
]
exclude_patterns = ["_build", "_ext", "tutorials/workspace"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Tutorials are executed when they have changed since the last build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 900

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"
# Curly quotes, but no dashes: options begin with two hyphens.
smartquotes_action = "q"
add_module_names = False

html_theme = "furo"
html_theme_options = {"light_css_variables": {"code-font-size": "0.78rem"}}
html_title = f"{project} {release}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]


def escape_shapes(_app, _what, _name, _object, _options, lines):
    """Shapes such as (B, J, *S) would begin an emphasis in reStructuredText; what stands in backticks is left alone."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"(?<!\\)\*(?=S\b)", r"\\*", part) for part in parts[::2]]
        lines[number] = "`".join(parts)


def setup(app):
    """Hooks of this configuration."""
    app.connect("autodoc-process-docstring", escape_shapes)
