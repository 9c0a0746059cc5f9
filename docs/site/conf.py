"""Sphinx' settings."""

from kuproxy import __version__

project = "kuproxy"
author = "the kuproxy authors"
project_copyright = author
version = release = __version__
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["README.md"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # ku scripts have no lexer
html_theme = "furo"
html_title = "kuproxy"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
