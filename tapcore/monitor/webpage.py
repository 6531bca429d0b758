"""A page for a browser: disks, rates, durations as pictures; nothing is loaded from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from tapcore.metrics.reading import Snapshot
from tapcore.metrics.summary import Rates, between
from tapcore.monitor.charts import duration, histogram, lines
from tapcore.monitor.frame import framed, link_to, safe, shown
from tapcore.monitor.history import SAMPLES, Sample
from tapcore.sizes import format_size

REFRESH_SECONDS: Final = 2

_HEADERS: Final = ("", "answered", "/s", "MB/s", "errors", "depth", "p50", "p99", "p99.9")


def webpage(
    pairs: Sequence[tuple[Snapshot, Snapshot]],
    history: Callable[[Snapshot], Sequence[Sample]] = lambda seen: (),
) -> tuple[str, bytes]:
    """The page of all disks.

    Args:
        pairs: each disk as it was when somebody looked last, and as it is.
        history: what it did in the last seconds, the oldest first.

    Returns:
        Its type, and the text.
    """
    disks = "".join(_disk(before, now, history(now)) for before, now in pairs)
    body = (
        f"<h1>tapdisk</h1>{disks or '<section><p>No disk is served.</p></section>'}"
        "<footer>Rates and durations are of the time since the page was last loaded, answered and "
        'errors of all the time. For Prometheus: <a href="/metrics">/metrics</a></footer>'
    )
    return framed(f"tapdisk: {_several(len(pairs), 'disk')}", body, REFRESH_SECONDS)


def _disk(before: Snapshot, now: Snapshot, samples: Sequence[Sample]) -> str:
    new, seconds = between(before, now)
    rows = "".join(_row(operation, new, now, seconds) for operation in now.operations())
    heads = "".join(f"<th>{each}</th>" for each in (*_HEADERS, "durations"))
    table = f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>' if rows else ""
    more = f'<a href="{link_to(now.name)}">map</a>'
    return (
        f"<section><h2>{shown(now.name)}</h2><p>{facts_of(now)} · {more}</p>"
        f"{last_minute(samples)}{table}</section>"
    )


def facts_of(now: Snapshot) -> str:
    """A line about a disk."""
    facts = [
        safe(os.path.basename(now.image)),
        safe(now.driver),
        format_size(now.size),
        _several(now.clients, "client"),
        f"{now.in_flight} in flight",
        f"process {now.process}",
    ]
    return " · ".join(facts)


def last_minute(samples: Sequence[Sample]) -> str:
    """Rates second by second; nothing where there are none yet."""
    if not samples:
        return ""
    shows = (
        ("reads a second", "{:,.0f}", [each.reads for each in samples]),
        ("writes a second", "{:,.0f}", [each.writes for each in samples]),
        ("MB a second", "{:,.1f}", [each.bytes / 1e6 for each in samples]),
    )
    figures = "".join(_figure(what, form, values) for what, form, values in shows)
    return f'<div class="lines">{figures}</div>'


def _figure(what: str, form: str, values: Sequence[float]) -> str:
    now, most = form.format(values[-1]), form.format(max(values))
    caption = f"<figcaption>{what}: {now}, at most {most}</figcaption>"
    return f"<figure>{lines(values, SAMPLES, what)}{caption}</figure>"


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


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
        *(duration(each) for each in (rates.p50, rates.p99, rates.p999)),
        histogram(fresh.total),
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
