"""A chain of images as an SVG: a row for each image, child on top, and one for what the disk shows.

Hovering over a part tells its range, size, kind, file and depth. The number of elements is bounded:
a row with few runs is drawn exactly, one with more as cells, neighbours that look alike as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

import attrs

from tapcore.disk import Disk
from tapcore.errors import printable
from tapcore.sizes import format_size
from tapcore.tools.picture import (
    COMPRESSED,
    DATA,
    HOLE,
    KINDS,
    SEVERAL_FILES,
    ZERO,
    ImageFacts,
    Row,
    Slot,
    cell_size,
    depth_of,
    disk_row,
    image_row,
    kind_of,
    short_name,
)
from tapcore.tools.progress import Progress

_MAX_PARTS: Final = 16384
_PARTS_OF_A_ROW: Final = range(128, 1025)

_WIDTH: Final = 1200
_MARGIN: Final = 24
_ACROSS: Final = _WIDTH - 2 * _MARGIN
_TOP: Final = 76
_ROW: Final = 68
_BAR: Final = 34
_LEGEND_LINE: Final = 24
_LEAST_WIDTH: Final = 0.8
_TICKS: Final = 8
_NAME: Final = 80
_PATH: Final = 500

_COLOURS: Final = ("#1b9e77", "#e6ab02", "#7570b3", "#d95f02", "#1f78b4", "#e7298a", "#8c6d31")
"""Of the images, by their depth; compressed content is hatched."""

_STYLE: Final = """\
text { font: 13px sans-serif; fill: #222 }
text.h { font-size: 19px; font-weight: bold }
text.n { font-weight: bold }
text.s { fill: #666 }
.b { fill: none; stroke: #999 }
.t { stroke: #bbb }
.hole { fill: #fff }
.zero { fill: #d4d4d4 }
.p:hover { stroke: #000; stroke-width: 1.5 }
"""


@attrs.frozen
class _Part:
    """What becomes one rectangle.

    Attributes:
        start: bytes from the start of the disk.
        length: bytes.
        slot: whose colour it gets.
        quarters: of the bar's height.
        amounts: bytes of each slot in it.
        where: of plain data that lies in one piece or file: which.
    """

    start: int
    length: int
    slot: Slot
    quarters: int
    amounts: dict[Slot, int]
    where: str

    @property
    def end(self) -> int:
        """First byte past it."""
        return self.start + self.length


def svg_picture(disk: Disk, *, progress: Progress | None = None) -> str:
    """Draw a whole chain.

    Args:
        disk: open, with its parents.
        progress: told how far it is, over all rows.

    Returns:
        A complete SVG document, in ASCII; less than 20 MB.
    """
    images = list(disk.state.disks.chain())
    drawing = _Drawing([ImageFacts.of(dd) for dd in images])
    cell, most = drawing.cell, drawing.parts
    if len(images) == 1:  # it is what the disk shows
        drawing.add(disk_row(disk, cell, max_runs=most, progress=progress))
    else:
        rows = len(images) + 1
        for depth, dd in enumerate(images):
            tell = _part_of(progress, depth, rows)
            drawing.add(image_row(dd, depth, cell, max_runs=most, progress=tell))
        tell = _part_of(progress, rows - 1, rows)
        drawing.add(disk_row(disk, cell, max_runs=most, progress=tell))
    return drawing.text()


def svg_of_rows(images: Sequence[ImageFacts], rows: Iterable[Row]) -> str:
    """The same of rows that are there already.

    Args:
        images: the chain, child first.
        rows: of the images, then of the disk; only this one, where the image is alone.
    """
    drawing = _Drawing(images)
    for row in rows:
        drawing.add(row)
    return drawing.text()


def _part_of(progress: Progress | None, number: int, count: int) -> Progress | None:
    """How far a row is, as how far all of them are."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, count * total)


class _Drawing:
    """The document while it is made.

    Args:
        images: the chain, child first.
    """

    def __init__(self, images: Sequence[ImageFacts]) -> None:
        rows = len(images) + 1
        self.parts = min(max(_MAX_PARTS // rows, _PARTS_OF_A_ROW[0]), _PARTS_OF_A_ROW[-1])
        self._size = max(image.size for image in images)
        self.cell = cell_size(self._size, self.parts)
        self._images = images
        self._y = _TOP
        self._body: list[str] = []
        self._seen: set[Slot] = set()
        self._partly = False

    def add(self, row: Row) -> None:
        """Draw a row below those that are there."""
        self._seen.update(row.totals)
        self._text(_MARGIN, self._y + 14, self._label(row), "n" if row.depth is None else "")
        top = self._y + 22
        for part in sorted(_parts(row), key=lambda part: kind_of(part.slot) >= DATA):
            self._part(row, part, top)
        self._body.append(
            f'<rect class="b" x="{_MARGIN}" y="{top}" width="{self._x(row.size) - _MARGIN:.2f}" '
            f'height="{_BAR}"/>'
        )
        self._y += _ROW

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._document()).encode("ascii", "xmlcharrefreplace").decode()

    def _document(self) -> Iterator[str]:
        self._ticks()
        self._legend()
        height = self._y + _MARGIN
        child = self._images[0]
        title = f"{short_name(child.name)}: {format_size(child.size)}"
        yield '<?xml version="1.0" encoding="UTF-8"?>'
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" role="img">'
        )
        yield f"<title>{_safe(title)}</title>"
        yield f"<style>\n{_STYLE}{self._colours()}</style>"
        yield f"<defs>{self._hatches()}</defs>"
        yield f'<rect class="paper" width="{_WIDTH}" height="{height}" fill="#fff"/>'
        yield f'<text class="h" x="{_MARGIN}" y="36">{_safe(title, _NAME)}</text>'
        yield f'<text class="s" x="{_MARGIN}" y="57">{_safe(self._subtitle())}</text>'
        yield from self._body
        yield "</svg>\n"

    # ---- pieces -----------------------------------------------------------------------------

    def _subtitle(self) -> str:
        count = len(self._images)
        if count == 1:
            return f"{self._images[0].handle}, stands alone"
        return f"{self._images[0].handle}, a chain of {count} images, child on top"

    def _label(self, row: Row) -> str:
        if row.depth is None:
            alone = len(self._images) == 1
            return self._held(row, 0) if alone else "the disk: what all of them show together"
        return self._held(row, row.depth)

    def _held(self, row: Row, depth: int) -> str:
        """`child.qcow2 (qcow2, depth 0): 10 GiB, holds 1 GiB of data ...`."""
        data = row.totals.get(depth * KINDS + DATA, 0)
        packed = row.totals.get(depth * KINDS + COMPRESSED, 0)
        held = [f"{format_size(data)} of data"] if data or not packed else []
        held += [f"{format_size(packed)} of compressed data"] if packed else []
        name = printable(short_name(row.name), _NAME)
        return (
            f"{name} ({row.handle}, depth {depth}): {format_size(row.size)}, "
            f"holds {' and '.join(held)}"
        )

    def _part(self, row: Row, part: _Part, top: int) -> None:
        left = self._x(part.start)
        width = self._x(part.end) - left
        height = _BAR * (part.quarters or 4) / 4
        self._partly |= height < _BAR
        if kind_of(part.slot) >= DATA:  # however small, it can be seen
            left -= max(left + max(width, _LEAST_WIDTH) - (_MARGIN + _ACROSS), 0)
            width = max(width, _LEAST_WIDTH)
        self._body.append(
            f'<rect class="p {_class_of(part.slot)}" x="{left:.2f}" '
            f'y="{top + _BAR - height:g}" width="{width:.2f}" height="{height:g}">'
            f"<title>{_safe(self._hint(row, part), _PATH * 3)}</title></rect>"
        )

    def _hint(self, row: Row, part: _Part) -> str:
        """What hovering tells; the lines are joined once each is safe."""
        start, end = part.start, part.end
        lines = [
            self._kind(row, part.slot),
            f"{format_size(start)} - {format_size(end)}: {format_size(part.length)} "
            f"({start:#x} - {end:#x})",
        ]
        if len(part.amounts) > 1:
            ordered = sorted(part.amounts.items(), key=lambda item: -item[1])
            lines += [f"{format_size(n)} {self._kind(row, slot)}" for slot, n in ordered]
        if part.where:
            lines.append(part.where)
        return "\n".join(printable(line, _PATH) for line in lines)

    def _kind(self, row: Row, slot: Slot) -> str:
        kind, depth = kind_of(slot), depth_of(slot)
        if kind == HOLE:
            last = row.depth is None or row.depth == len(self._images) - 1
            return "not allocated, reads as zeroes" if last else "not in this image: its parent's"
        word = {ZERO: "zeroes", DATA: "data", COMPRESSED: "compressed data"}[kind]
        return f"{word} in {self._images[depth].name} (depth {depth})"

    def _ticks(self) -> None:
        """Offsets below the rows, at round numbers."""
        step = cell_size(self._size, _TICKS)
        y = self._y + 4
        for at in range(0, self._size + 1, step):
            x = self._x(at)
            anchor = "end" if x > _WIDTH - 3 * _MARGIN else "middle" if at else "start"
            self._body.append(f'<path class="t" d="M{x:.2f} {y - 8}v6"/>')
            self._text(x, y + 12, format_size(at), "s", anchor)
        self._y += 36

    def _legend(self) -> None:
        for slot in sorted(self._seen):
            if kind_of(slot) < DATA:
                continue
            word = "compressed data" if kind_of(slot) == COMPRESSED else "data"
            name = printable(short_name(self._images[depth_of(slot)].name), _NAME)
            self._entry(_class_of(slot), f"{word} in {name} (depth {depth_of(slot)})")
        if any(kind_of(slot) == ZERO for slot in self._seen):
            self._entry("zero", "zeroes")
        if any(kind_of(slot) == HOLE for slot in self._seen):
            self._entry("hole", "not in this image" if len(self._images) > 1 else "not allocated")
        if self._partly:
            note = "The height of a part is how much of it is content, in quarters."
            self._text(_MARGIN, self._y + 12, note, "s")
            self._y += _LEGEND_LINE

    def _entry(self, name: str, text: str) -> None:
        for swatch in (name, "b"):
            self._body.append(
                f'<rect class="{swatch}" x="{_MARGIN}" y="{self._y}" width="22" height="14"/>'
            )
        self._text(_MARGIN + 30, self._y + 12, text)
        self._y += _LEGEND_LINE

    def _text(self, x: float, y: float, text: str, name: str = "", anchor: str = "") -> None:
        style = f' class="{name}"' if name else ""
        place = f' text-anchor="{anchor}"' if anchor else ""
        self._body.append(f'<text{style} x="{x:.6g}" y="{y}"{place}>{_safe(text)}</text>')

    def _x(self, offset: int) -> float:
        return _MARGIN + _ACROSS * offset / max(self._size, 1)

    def _colours(self) -> str:
        depths = range(len(self._images))
        return "".join(
            f".d{depth} {{ fill: {_colour(depth)} }}\n.c{depth} {{ fill: url(#h{depth}) }}\n"
            for depth in depths
        )

    def _hatches(self) -> str:
        """The patterns of compressed content, one for each image that has any."""
        depths = sorted({depth_of(slot) for slot in self._seen if kind_of(slot) == COMPRESSED})
        return "".join(
            f'<pattern id="h{depth}" width="6" height="6" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate(45)"><rect width="6" height="6" fill="{_colour(depth)}"/>'
            '<rect width="2.4" height="6" fill="#fff" fill-opacity=".55"/></pattern>'
            for depth in depths
        )


def _parts(row: Row) -> Iterable[_Part]:
    if row.runs is None:
        return _joined_cells(row)
    return (
        _Part(
            run.start,
            run.length,
            run.slot,
            4 if kind_of(run.slot) >= DATA else 0,
            {run.slot: run.length},
            f"at {run.offset:#x} in {run.filename}" if run.filename else "",
        )
        for run in row.runs
    )


def _joined_cells(row: Row) -> Iterator[_Part]:
    """The cells, neighbours that look alike as one."""
    last: _Part | None = None
    for index in range(len(row)):
        face, filename = row.face(index), row.file_of(index)
        where = filename if filename in ("", SEVERAL_FILES) else f"in {filename}"
        part = _Part(
            index * row.cell,
            row.length_of(index),
            face.slot,
            face.quarters,
            row.amounts(index),
            where,
        )
        if last is None or not _alike(last, part):
            if last is not None:
                yield last
            last = part
            continue
        amounts = dict(last.amounts)
        for slot, count in part.amounts.items():
            amounts[slot] = amounts.get(slot, 0) + count
        last = attrs.evolve(last, length=last.length + part.length, amounts=amounts)
    if last is not None:
        yield last


def _alike(one: _Part, other: _Part) -> bool:
    return (one.slot, one.quarters, one.where) == (other.slot, other.quarters, other.where)


def _class_of(slot: Slot) -> str:
    kind = kind_of(slot)
    if kind in (HOLE, ZERO):
        return "zero" if kind == ZERO else "hole"
    return f"{'c' if kind == COMPRESSED else 'd'}{depth_of(slot)}"


def _colour(depth: int) -> str:
    return _COLOURS[depth % len(_COLOURS)]


def _safe(text: str, limit: int = _PATH) -> str:
    """Text for XML: what no document may contain is escaped as for a terminal."""
    return escape("\n".join(printable(line, limit) for line in text.split("\n")))
