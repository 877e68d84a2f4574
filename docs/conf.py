"""Sphinx: `sphinx-build -W -b html docs docs/_build/html`."""

import batchnorm

project = "batchnorm"
author = "The batchnorm developers"
project_copyright = "2026, the batchnorm developers"
release = version = batchnorm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "figures"]

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what is accepted in words
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True  # attributes as a list, beside the properties that are documented themselves
napoleon_use_param = False  # "weight, bias" stay one entry
napoleon_use_rtype = False
add_module_names = False
default_role = "code"  # docstrings name arguments between single backticks

html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_title = f"batchnorm {release}"
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f6fb4", "color-brand-content": "#1f6fb4"},
    "dark_css_variables": {"color-brand-primary": "#6cb2eb", "color-brand-content": "#6cb2eb"},
}
