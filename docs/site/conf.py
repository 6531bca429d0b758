"""The documentation as a site: `make docs`.

The pages are those of the folder above, and read as well without a site. Their order, and the
headings above them, are those of the tables in README.md, which is the front page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
import tapcore  # of this checkout

project = "tapcore"
author = "the authors of tapcore"
version = release = tapcore.__version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "README"
exclude_patterns = ["site", "examples"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # a session is no program
highlight_language = "text"

html_theme = "furo"
html_title = f"tapcore {release}"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://|#)([^)#]+)(#[^)]*)?\)")
_ROW = re.compile(r"^\| \[[^\]]+\]\(([\w-]+)\.md\)", re.MULTILINE)
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


def _with_contents(text: str) -> str:
    """The front page: the pages of each of its tables are a chapter of the navigation."""
    parts = _SECTION.split(text)
    for title, section in zip(parts[1::2], parts[2::2], strict=True):
        if pages := _ROW.findall(section):
            listed = "\n".join(pages)
            text += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n"
    return text


def _within(text: str) -> str:
    """Links as a site has them.

    A page that is called by its file is called by its title. What lies outside the pages cannot be
    linked to: its name stays.
    """

    def link_to(link: re.Match[str]) -> str:
        if link[2].endswith(".png"):
            return link[0]
        if not link[2].endswith(".md") or "/" in link[2]:
            return link[1]
        return f"[]({link[2]}{link[3] or ''})" if link[1] == link[2] else link[0]

    return _LINK.sub(link_to, text)


def _prepare(app: Any, docname: str, source: list[str]) -> None:
    text = _with_contents(source[0]) if docname == root_doc else source[0]
    source[0] = _within(text)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _prepare)
