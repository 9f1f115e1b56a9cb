"""Sphinx: README, the pages beside this file and the docstrings, as a site. `make docs`."""

import dajax

project = "dajax"
author = "the authors of dajax"
release = version = dajax.__version__

# The source folder is the repository, so that README and the pages link to each other as they do on a forge.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "docs/**", "convert/*.md", "dajax/assets/tiny/README.md"]
myst_heading_anchors = 3

# In docstrings, what stands between single backticks is code.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"dajax {version}"


def setup(app):
    """Lead whoever opens the site to README."""
    front = '<!doctype html><meta http-equiv="refresh" content="0; url=README.html"><a href="README.html">dajax</a>\n'
    app.connect("build-finished", lambda app, error: error or (app.outdir / "index.html").write_text(front))
