"""Sphinx configuration of the documentation site: `make docs`.

The source folder is the repository root, so that the links between Markdown files, which GitHub shows too, are links of
the site, and links to other files of the repository are downloads.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import idc_ray  # noqa: E402  after the path

project = "idc_ray"
author = "the idc_ray contributors"
version = release = idc_ray.__version__

root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "benchmarks/README.md",
    "campaigns/README.md",
    "jobs/README.md",
    "idc_ray/models/bundled/NOTICE.md",
]
# `.venv`, `build` and the like hold Markdown of other projects, and take long to search.
exclude_patterns = [".*", "build", "dist", "docs/results*/*", "**/*.egg-info"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 3  # a link to `#heading` works here as on GitHub
suppress_warnings = ["myst.header"]  # a page included from elsewhere may begin at a lower level

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of a dataclass once, not once more as members

html_theme = "furo"
html_title = f"idc_ray {release}"
html_show_sourcelink = False
html_copy_source = False
templates_path = ["templates"]
html_additional_pages = {"index": "redirect.html"}  # the first page lies in docs/, visitors ask for the top


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", _without_links_to_folders)


def _without_links_to_folders(app: Any, doctree: Any) -> None:
    """A link to a folder works on GitHub; a site has no page for it, so its text alone is left."""
    from sphinx.addnodes import download_reference, pending_xref

    here = (ROOT / app.env.docname).parent
    for kind in (download_reference, pending_xref):
        for link in list(doctree.findall(kind)):
            if (here / link.get("reftarget", "")).is_dir():
                link.replace_self(link.children)
