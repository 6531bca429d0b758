"""Numbers as small pictures: durations as bars, what changes with time as lines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from tapcore.metrics.buckets import STARTS
from tapcore.metrics.reading import Durations

_POWERS: Final = range(1, 25)
_WIDTH, _HEIGHT, _FOOT = 208, 44, 11


def lines(values: Sequence[float], most: int, what: str) -> str:
    """What was, second by second: the latest at the right, none where it is not known.

    Args:
        values: the oldest first.
        most: how many there is room for.
        what: they are, in plain words.
    """
    top, foot = max(values, default=0.0) or 1.0, _HEIGHT - 3
    step, first = _WIDTH / (most - 1), most - len(values)
    points = " ".join(
        f"{(first + number) * step:.1f},{foot - value / top * (foot - 3):.1f}"
        for number, value in enumerate(values)
    )
    path = f'<path d="M{points}"/>' if len(values) > 1 else ""
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{what}">'
        f'<line x1="0" x2="{_WIDTH}" y1="{foot}" y2="{foot}"/>{path}</svg>'
    )


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}" if seconds else "–"
    return f"{seconds:.3g} s"


def histogram(durations: Durations) -> str:
    """Bars of durations, twice as long each as the one before: from 2 µs to 16 s."""
    counts = _doublings(durations)
    most = max(counts)
    step, foot = _WIDTH / len(counts), _HEIGHT - _FOOT
    bars = "".join(
        f'<rect x="{number * step + 0.5:.1f}" width="{step - 1:.1f}" y="{foot - height:.1f}" '
        f'height="{height:.1f}"><title>{count:,} below {duration(2**power / 1e6)}</title></rect>'
        for number, (count, power) in enumerate(zip(counts, _POWERS, strict=True))
        if count
        for height in (max(count / most * (foot - 1), 1),)
    )
    marks = "".join(
        f'<text x="{at * step:.1f}" y="{_HEIGHT - 1}">{text}</text>'
        for at, text in ((0, "1 µs"), (9, "1 ms"), (19, "1 s"))
    )
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="durations">'
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
