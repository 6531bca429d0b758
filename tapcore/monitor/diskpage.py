"""The page of one disk: what it did in the last minute, and what lies where in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tapcore.metrics.reading import Snapshot
from tapcore.monitor.frame import framed, safe, shown
from tapcore.monitor.history import Sample
from tapcore.monitor.maps import Drawn
from tapcore.monitor.webpage import facts_of, last_minute

_WAITING_SECONDS: Final = 2
_REFRESH_SECONDS: Final = 5


def diskpage(
    seen: Snapshot, samples: Sequence[Sample], drawn: Drawn | None, age: float
) -> tuple[str, bytes]:
    """The page.

    Args:
        seen: the disk as it is.
        samples: what it did in the last seconds, the oldest first.
        drawn: its map; None: it is not there yet.
        age: of the map, in seconds.

    Returns:
        Its type, and the text.
    """
    rates = last_minute(samples) or "<p>Rates come with the next seconds.</p>"
    body = (
        f'<h1><a href="/">tapdisk</a></h1><section><h2>{shown(seen.name)}</h2>'
        f"<p>{facts_of(seen)}</p>{rates}{_map(drawn)}</section>"
        f"<footer>{_footer(drawn, age)}</footer>"
    )
    title = f"tapdisk: {seen.name or '(default)'}"
    return framed(title, body, _WAITING_SECONDS if drawn is None else _REFRESH_SECONDS)


def _map(drawn: Drawn | None) -> str:
    if drawn is None:
        return '<p class="told">The map is being made.</p>'
    if not drawn.svg:
        return f'<p class="told">There is no map: {safe(drawn.why)}</p>'
    return f'<div class="wide map">{drawn.svg}</div>'


def _footer(drawn: Drawn | None, age: float) -> str:
    if drawn is None or not drawn.svg:
        return "Rates are of the last minute."
    return f"Rates are of the last minute, the map is {age:.0f} s old."
