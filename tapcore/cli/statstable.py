"""The table of `tapdisk stats`: what disks do, a line each, or a line for each operation of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from tapcore.metrics.reading import Snapshot
from tapcore.metrics.summary import Rates, between

WIDE: Final = 90
"""Columns from which on reads and writes have figures of their own."""


@attrs.frozen
class Table:
    """Cells, and which lines tell of errors.

    Attributes:
        headers: of the columns; the first is of words, the others of numbers.
        rows: their cells.
        bad: numbers of rows with errors.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    bad: set[int]

    def lines(self, columns: int) -> list[str]:
        """Text of at most so many columns; the first is cut where that is too little."""
        cells = [self.headers, *self.rows]
        widths = [max(len(row[place]) for row in cells) for place in range(len(self.headers))]
        rest = sum(widths[1:]) + 2 * (len(widths) - 1)
        widths[0] = max(min(widths[0], columns - rest), 4)
        return [_line(row, widths)[:columns] for row in cells]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0]
    if len(first) > widths[0]:
        first = first[: widths[0] - 2] + ".."
    numbers = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join((f"{first:{widths[0]}}", *numbers)).rstrip()


def of_disks(pairs: Sequence[tuple[Snapshot, Snapshot]], columns: int, micro: str) -> Table:
    """A line for each disk.

    Args:
        pairs: what was, and what is.
        columns: of the output.
        micro: how microseconds are written.
    """
    wide = columns >= WIDE
    headers = ["DISK", "CLIENTS", "READ/s", "WRITE/s", "OTHER/s"] if wide else ["DISK", "REQ/s"]
    headers += ["MB/s", "ERR/s", "DEPTH", "P50", "P99", "P99.9"]
    rows, bad = [], set()
    for number, (before, now) in enumerate(pairs):
        new, seconds = between(before, now)
        every = Rates.of(new.of(), seconds)
        read, write = (new.of(each).answered / seconds for each in ("read", "write"))
        row = [now.name or "(default)"]
        if wide:
            row += [str(now.clients), *map(_number, (read, write, every.requests - read - write))]
        else:
            row.append(_number(every.requests))
        rows.append([*row, *_figures(every, micro)])
        if every.errors:
            bad.add(number)
    return Table(headers, rows, bad)


def of_operations(before: Snapshot, now: Snapshot, micro: str) -> Table:
    """A line for each operation of one disk; arguments as of `of_disks`."""
    new, seconds = between(before, now)
    headers = ["OPERATION", "REQ/s", "MB/s", "ERR/s", "DEPTH", "P50", "P99", "P99.9"]
    rows, bad = [], set()
    for number, operation in enumerate(now.operations()):
        rates = Rates.of(new.of(operation), seconds)
        rows.append([operation, _number(rates.requests), *_figures(rates, micro)])
        if rates.errors:
            bad.add(number)
    return Table(headers, rows, bad)


def _figures(rates: Rates, micro: str) -> list[str]:
    durations = [_duration(each, micro) for each in (rates.p50, rates.p99, rates.p999)]
    return [
        _number(rates.bytes / 1e6),
        _number(rates.errors),
        f"{rates.depth:.1f}",
        *durations,
    ]


def _number(value: float) -> str:
    """With three digits, and a letter where it is large."""
    for limit, divisor, letter in ((1e4, 1, ""), (1e7, 1e3, "k"), (1e10, 1e6, "M")):
        if value < limit:
            return f"{value / divisor:.{1 if 0 < value < 100 else 0}f}{letter}"
    return f"{value / 1e9:.0f}G"


def _duration(seconds: float, micro: str) -> str:
    if not seconds:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f}{micro}s"
    if seconds < 1:
        return f"{seconds * 1e3:.{1 if seconds < 0.1 else 0}f}ms"
    return f"{seconds:.1f}s"
