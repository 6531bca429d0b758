"""A page for a browser: disks, rates, durations as pictures; nothing is loaded from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Final

from tapcore.errors import printable
from tapcore.metrics.buckets import STARTS
from tapcore.metrics.reading import Durations, Snapshot
from tapcore.metrics.summary import Rates, between
from tapcore.sizes import format_size

REFRESH_SECONDS: Final = 2

_STYLE: Final = """
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
svg { display: block; width: 13rem; height: 2.75rem; }
svg rect { fill: var(--bar); }
svg line { stroke: var(--line); }
svg text { fill: var(--faint); font-size: 9px; }
footer { color: var(--faint); font-size: .85rem; }
a { color: inherit; }
"""

_HEADERS: Final = ("", "answered", "/s", "MB/s", "errors", "depth", "p50", "p99", "p99.9")
_POWERS: Final = range(1, 25)
_WIDTH, _HEIGHT, _FOOT = 208, 44, 11


def webpage(pairs: Sequence[tuple[Snapshot, Snapshot]]) -> tuple[str, bytes]:
    """The page.

    Args:
        pairs: each disk as it was when somebody looked last, and as it is.

    Returns:
        Its type, and the text.
    """
    disks = "".join(_disk(before, now) for before, now in pairs)
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>tapdisk: {len(pairs)} disks</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>tapdisk</h1>{disks or '<section><p>No disk is served.</p></section>'}"
        "<footer>Rates and durations are of the time since the page was last loaded, answered and "
        'errors of all the time. For Prometheus: <a href="/metrics">/metrics</a></footer>'
        "</main></body></html>\n"
    )
    return "text/html; charset=utf-8", text.encode()


def _disk(before: Snapshot, now: Snapshot) -> str:
    new, seconds = between(before, now)
    rows = "".join(_row(operation, new, now, seconds) for operation in now.operations())
    heads = "".join(f"<th>{each}</th>" for each in (*_HEADERS, "durations"))
    table = f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>' if rows else ""
    facts = [
        _safe(os.path.basename(now.image)),
        _safe(now.driver),
        format_size(now.size),
        _several(now.clients, "client"),
        f"{now.in_flight} in flight",
        f"process {now.process}",
    ]
    name = _safe(now.name) or "(default)"
    return f"<section><h2>{name}</h2><p>{' · '.join(facts)}</p>{table}</section>"


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _safe(text: str) -> str:
    return escape(printable(text, 256))


def _row(operation: str, new: Snapshot, now: Snapshot, seconds: float) -> str:
    fresh, all_time = new.of(operation), now.of(operation)
    rates = Rates.of(fresh, seconds)
    errors = f"{all_time.errors:,}"
    cells = [
        operation,
        f"{all_time.answered:,}",
        f"{rates.requests:,.0f}",
        f"{rates.bytes / 1e6:,.1f}",
        f'<span class="bad">{errors}</span>' if all_time.errors else errors,
        f"{rates.depth:.1f}",
        *(_duration(each) for each in (rates.p50, rates.p99, rates.p999)),
        _histogram(fresh.total),
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _duration(seconds: float) -> str:
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}" if seconds else "–"
    return f"{seconds:.3g} s"


def _histogram(durations: Durations) -> str:
    """Bars of durations, twice as long each as the one before: from 2 µs to 16 s."""
    counts = _doublings(durations)
    most = max(counts)
    step, foot = _WIDTH / len(counts), _HEIGHT - _FOOT
    bars = "".join(
        f'<rect x="{number * step + 0.5:.1f}" width="{step - 1:.1f}" y="{foot - height:.1f}" '
        f'height="{height:.1f}"><title>{count:,} below {_duration(2**power / 1e6)}</title></rect>'
        for number, (count, power) in enumerate(zip(counts, _POWERS, strict=True))
        if count
        for height in (max(count / most * (foot - 1), 1),)
    )
    marks = "".join(
        f'<text x="{at * step:.1f}" y="{_HEIGHT - 1}">{text}</text>'
        for at, text in ((0, "1 µs"), (9, "1 ms"), (19, "1 s"))
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="durations">'
        f'<line x1="0" x2="{_WIDTH}" y1="{foot}" y2="{foot}"/>{bars}{marks}</svg>'
    )


def _doublings(durations: Durations) -> list[int]:
    """How many lie below each power of two, and not below the one before."""
    ends = [0, *(1 << power for power in _POWERS)]
    found = []
    for low, high in pairwise(ends):
        last = high == ends[-1]
        pairs = zip(STARTS, durations.counts, strict=False)
        found.append(sum(n for start, n in pairs if low <= start and (start < high or last)))
    return found
