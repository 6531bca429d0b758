"""What all pages for a browser have in common: one style, no script, nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Final
from urllib.parse import quote

from tapcore.errors import printable

STYLE: Final = """
:root { color-scheme: light dark; --text: #1a1f24; --faint: #5c6670; --line: #d5dade;
  --back: #f6f7f8; --card: #ffffff; --bar: #2a6fb0; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --faint: #98a2ac; --line: #39424b;
  --back: #14181c; --card: #1d2329; --bar: #6aa9e0; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; }
h1 { font-size: 1.3rem; margin: 0 0 1rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 1rem 1.25rem; margin-bottom: 1.25rem; }
h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .15rem 0 .75rem; color: var(--faint); overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--faint); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { text-align: left; padding: .3rem 0 .3rem 1rem; }
tr:last-child td { border-bottom: 0; }
.bad { color: var(--bad); font-weight: 600; }
svg.chart { display: block; width: 13rem; height: 2.75rem; }
svg.chart rect { fill: var(--bar); }
svg.chart line { stroke: var(--line); }
svg.chart path { fill: none; stroke: var(--bar); stroke-width: 1.5; }
svg.chart text { fill: var(--faint); font-size: 9px; }
.lines { display: flex; flex-wrap: wrap; gap: .5rem 1rem; margin: 0 0 .75rem; }
figure { margin: 0; min-width: 15.5rem; font-size: .85rem; }
figcaption { color: var(--faint); font-variant-numeric: tabular-nums; }
.map svg { display: block; width: 100%; min-width: 44rem; height: auto; }
.map svg text { fill: var(--text); }
.map svg text.s { fill: var(--faint); }
.map svg .paper, .map svg .hole, .map svg .b { fill: none; }
.map svg .b, .map svg .t { stroke: var(--line); }
.map svg .zero { fill: var(--line); }
.map svg .p:hover { stroke: var(--text); }
footer { color: var(--faint); font-size: .85rem; }
a { color: inherit; }
"""


DISK_PATH: Final = "/disk/"
"""Behind it stands the name of a disk, percent-encoded."""


def framed(title: str, body: str, refresh: int) -> tuple[str, bytes]:
    """A whole page.

    Args:
        title: text, not yet escaped.
        body: HTML.
        refresh: seconds after which the browser loads it again.

    Returns:
        Its type, and the text.
    """
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{refresh}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head><body><main>"
        f"{body}</main></body></html>\n"
    )
    return "text/html; charset=utf-8", text.encode()


def safe(text: str) -> str:
    """Text for HTML, of bounded length."""
    return escape(printable(text, 256))


def shown(name: str) -> str:
    """The name of a disk, for HTML."""
    return safe(name) or "(default)"


def link_to(name: str) -> str:
    """Where the page of a disk is, for an attribute."""
    return escape(DISK_PATH + quote(name, safe="@+", errors="replace"))
