"""Sphinx's settings of the docs site: `python -m sphinx -W --keep-going -b html docs build/docs`."""

import sys
from pathlib import Path

import kdschemes

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "kdschemes"
author = "kdschemes contributors"
copyright = author
release = version = kdschemes.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_copybutton",
    "formulas",
    "generated",
    "links",
    "docstrings",
]
exclude_patterns = ["losses.md"]  # the list for GitHub; the site has a page for each method and loss
smartquotes = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_fence_as_directive = ["math"]  # as GitHub writes formulas

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"kdschemes {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "paths"
html_copy_source = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .c1"
