"""A disk as rows of characters: one for each cell, with a legend that has the exact sums.

Every kind has a character of its own, so that colour only helps. A character for less than half of
a cell is "thinner" than the one for more.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs

from tapcore.disk import Disk
from tapcore.sizes import format_size
from tapcore.tools.colours import BLUE, GREEN, GREY, PURPLE, RED, RUST, TEAL, VIOLET
from tapcore.tools.picture import (
    COMPRESSED,
    DATA,
    HOLE,
    KINDS,
    ZERO,
    Face,
    Row,
    cell_size,
    depth_of,
    disk_row,
    kind_of,
    short_name,
)
from tapcore.tools.progress import Progress

Line: TypeAlias = list[tuple[str, str]]
"""Pieces of text, each with a style in rich's words ("" for none)."""

_GROUP: Final = 32  # the cells of a line are a multiple of it: lines begin at round numbers
_LEAST_COLUMNS: Final = 16
_MAX_COLUMNS: Final = 128
_LABEL: Final = 10

_PARENTS: Final = "123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PARENTS_THIN: Final = "₁₂₃₄₅₆₇₈₉"
_DEEPER: Final = "+"
_COLOURS: Final = (PURPLE, BLUE, RUST, RED, VIOLET)


@attrs.frozen
class Characters:
    """The characters of what is no parent's, full and thin.

    Attributes:
        data: content of the image itself.
        compressed: the same, stored compressed.
        zero: reads as zeroes.
        hole: no image holds it.
        thin_parents: for depth 1 and on; deeper ones have no thin character.
    """

    data: tuple[str, str]
    compressed: tuple[str, str]
    zero: str
    hole: str
    thin_parents: str

    def of(self, face: Face) -> str:
        """The character of a cell."""
        kind, depth = kind_of(face.slot), depth_of(face.slot)
        if kind == HOLE:
            return self.hole
        if kind == ZERO:
            return self.zero
        if depth:
            return self._parent(depth, face.thin)
        return (self.data if kind == DATA else self.compressed)[face.thin]

    def _parent(self, depth: int, thin: bool) -> str:
        if thin and depth <= len(self.thin_parents):
            return self.thin_parents[depth - 1]
        return _PARENTS[depth - 1] if depth <= len(_PARENTS) else _DEEPER


UNICODE: Final = Characters(("█", "▄"), ("▓", "░"), "-", "·", _PARENTS_THIN)
ASCII: Final = Characters(("#", "="), ("%", ":"), "-", ".", "")


def characters_for(encoding: str | None) -> Characters:
    """The nicest characters that an output can show.

    Args:
        encoding: of the output; None is taken for ASCII.
    """
    wanted = "".join((*UNICODE.data, *UNICODE.compressed, UNICODE.hole, _PARENTS_THIN))
    try:
        wanted.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def text_picture(
    disk: Disk,
    columns: int,
    lines: int,
    *,
    characters: Characters = UNICODE,
    progress: Progress | None = None,
) -> list[Line]:
    """Draw what a disk shows.

    Args:
        disk: open, with its parents.
        columns: of the terminal.
        lines: of the picture, at most; title and legend come on top of it.
        characters: what to draw with.
        progress: told how far it is.

    Returns:
        Lines without their ends; no longer than the terminal, where that has 30 columns.
    """
    across = (columns - _LABEL - 1) // _GROUP * _GROUP
    across = min(max(across, _LEAST_COLUMNS), _MAX_COLUMNS)
    row = disk_row(disk, cell_size(disk.size, across * max(lines, 1)), progress=progress)
    cells = f", a character is {format_size(row.cell)}" if row.size else ""
    title = f"{short_name(row.name)} ({row.handle}): {format_size(row.size)}{cells}"
    names = [dd.name for dd in disk.state.disks.chain()]
    return [[(title, "bold")], *_cells(row, across, characters), *_legend(row, names, characters)]


def _cells(row: Row, across: int, characters: Characters) -> list[Line]:
    lines: list[Line] = []
    for first in range(0, len(row), across):
        line: Line = [(f"{format_size(first * row.cell):>{_LABEL}} ", "dim")]
        for index in range(first, min(first + across, len(row))):
            face = row.face(index)
            character, style = characters.of(face), _style(face)
            if line[-1][1] == style:
                character = line.pop()[0] + character
            line.append((character, style))
        lines.append(line)
    return lines


def _style(face: Face) -> str:
    kind, depth = kind_of(face.slot), depth_of(face.slot)
    if kind in (HOLE, ZERO):
        return GREY
    if depth:
        return _COLOURS[(depth - 1) % len(_COLOURS)]
    return GREEN if kind == DATA else TEAL


# ---- the legend ------------------------------------------------------------------------------


@attrs.frozen
class _Entry:
    face: Face
    text: str
    length: int


def _legend(row: Row, names: list[str], characters: Characters) -> list[Line]:
    entries = [entry for entry in _entries(row, names) if entry.length]
    width = max((len(entry.text) for entry in entries), default=0)
    lines: list[Line] = []
    for entry in entries:
        share = _percent(entry.length, row.size)
        line = f" {entry.text:<{width}}  {format_size(entry.length):>9}  {share:>6}"
        lines.append([("  ", ""), (characters.of(entry.face), _style(entry.face)), (line, "")])
    thin = _thin_ones(row, characters)
    if thin:
        lines.append([("  ", ""), (f"{thin} content, but of no more than half of the cell", "dim")])
    return lines


def _entries(row: Row, names: list[str]) -> list[_Entry]:
    """What there is in the picture, the image's own first."""
    totals = row.totals
    found = [
        _Entry(Face(DATA, 4), "data", totals.get(DATA, 0)),
        _Entry(Face(COMPRESSED, 4), "compressed", totals.get(COMPRESSED, 0)),
    ]
    for depth, name in enumerate(names[1:], 1):
        packed = totals.get(depth * KINDS + COMPRESSED, 0)
        length = totals.get(depth * KINDS + DATA, 0) + packed
        note = f", {format_size(packed)} of it compressed" if packed else ""
        text = f"from {short_name(name)} (depth {depth}{note})"
        found.append(_Entry(Face(depth * KINDS + DATA, 4), text, length))
    zero = sum(length for slot, length in totals.items() if kind_of(slot) == ZERO)
    found.append(_Entry(Face(ZERO, 0), "zeroes", zero))
    found.append(_Entry(Face(HOLE, 0), "not allocated, reads as zeroes", totals.get(HOLE, 0)))
    return found


def _thin_ones(row: Row, characters: Characters) -> str:
    slots = {face.slot for face in map(row.face, range(len(row))) if face.thin}
    found = [(characters.of(Face(slot, 1)), characters.of(Face(slot, 4))) for slot in sorted(slots)]
    return " ".join(dict.fromkeys(thin for thin, full in found if thin != full))


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    if share < 0.05:
        return "<0.1%"
    return ">99.9%" if part < whole and share >= 99.95 else f"{share:.1f}%"
