"""A picture of the ratios: in each row a bar of CPU time and one of speed, to the best peer's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from results import Ratio, Results
from workloads import Row

_LINE = 30
"""Height of a row, in pixels; a bar has a third of it."""

_NAMES = 250  # width
_BARS = 560
_TOP, _BOTTOM = 70, 30
_LEAST, _MOST = 0.125, 8.0
"""Ratios at the ends of the axis, which is logarithmic: twice as good and half as good are as far
from even."""

_TICKS = {0.125: "1/8", 0.25: "1/4", 0.5: "1/2", 1.0: "1", 2.0: "2", 4.0: "4", 8.0: "8"}
_CPU, _SPEED = "#2f6fab", "#5a9e4b"


@dataclass(frozen=True, slots=True)
class _Line:
    row: Row
    cpu: Ratio
    speed: Ratio


def svg(results: Results) -> str:
    """The whole picture, as text; rows without a peer are left out."""
    lines = []
    for row in results.rows:
        for server in results.ours:
            cpu, speed = results.cpu(row, server), results.wall(row, server)
            if cpu is not None and speed is not None:
                lines.append(_Line(row, cpu, speed))
    width, height = _NAMES + _BARS + 70, _TOP + _LINE * len(lines) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_legend(),
        *_axis(height),
    ]
    for number, line in enumerate(lines):
        parts += _bars(line, _TOP + number * _LINE)
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> list[str]:
    return [
        '<text x="10" y="20" font-size="14" font-weight="bold">'
        "tapdisk beside the best C server of each row</text>",
        f'<rect x="10" y="32" width="12" height="9" fill="{_CPU}"/>'
        '<text x="27" y="41">CPU time of a request: shorter than 1 is less</text>',
        f'<rect x="330" y="32" width="12" height="9" fill="{_SPEED}"/>'
        '<text x="347" y="41">requests a second: to the right of 1 is more</text>',
    ]


def _axis(height: int) -> list[str]:
    parts = []
    for ratio, name in _TICKS.items():
        x, heavy = _at(ratio), ratio == 1.0
        parts.append(
            f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - _BOTTOM}" '
            f'stroke="{"#333333" if heavy else "#dddddd"}"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{_TOP - 10}" text-anchor="middle">{name}</text>')
    return parts


def _bars(line: _Line, y: int) -> list[str]:
    parts = [
        f'<text x="{_NAMES - 8}" y="{y + 17}" text-anchor="end">{escape(line.row.name)}</text>'
    ]
    for ratio, top, colour in ((line.cpu, y + 3, _CPU), (line.speed, y + 14, _SPEED)):
        value = ratio.median
        one, here = _at(1.0), _at(value)
        left, right = min(one, here), max(one, here)
        low, high = _at(min(ratio.rounds)), _at(max(ratio.rounds))
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{max(right - left, 0.5):.1f}" height="9" '
            f'fill="{colour}"><title>{escape(str(ratio))}</title></rect>'
        )
        parts.append(
            f'<line x1="{low:.1f}" y1="{top + 4.5}" x2="{high:.1f}" y2="{top + 4.5}" '
            'stroke="#000000" stroke-opacity="0.45"/>'
        )
        parts.append(
            f'<text x="{_NAMES + _BARS + 8}" y="{top + 8}" font-size="10" fill="{colour}">'
            f"{value:.2f}x</text>"
        )
    return parts


def _at(ratio: float) -> float:
    """The place of a ratio on the axis, in pixels."""
    clipped = min(max(ratio, _LEAST), _MOST)
    share = math.log(clipped / _LEAST) / math.log(_MOST / _LEAST)
    return _NAMES + share * _BARS
