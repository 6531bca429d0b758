"""What an image is, for a person: the lines of `tapdisk info`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeGuard

from tapcore.cli.output import (
    format_word,
    pair_lines,
    print_line,
    size_with_bytes,
    table_lines,
    text_of,
)
from tapcore.errors import printable
from tapcore.sizes import format_size
from tapcore.tools.info import ImageInfo

_INDENT: Final = "    "
_MAX_CELL: Final = 200
_SIZES: Final = ("size", "granularity")
"""What a fact's name ends with, of which the value is bytes."""


def print_images(found: Sequence[ImageInfo], *, chain: bool = False) -> None:
    """One image; with `chain` its parents too, as a tree."""
    if chain:
        from tapcore.cli.tree import tree_lines

        for line in tree_lines([(info.image, _facts(info, in_tree=True)) for info in found]):
            print_line(line)
    else:
        for line in _facts(found[0], in_tree=False):
            print_line(line)


def _facts(info: ImageInfo, *, in_tree: bool) -> list[str]:
    """The lines about one image; in a tree its name stands above them, and its parent below."""
    return [
        *pair_lines(
            [
                *([] if in_tree else [("image", info.image)]),
                ("format", format_word(info.handle)),
                ("virtual size", size_with_bytes(info.virtual_size)),
                ("disk size", format_size(info.disk_size)),
                *([("sector size", info.sector_size)] if info.sector_size != 512 else []),
                *([("read only", True)] if info.read_only else []),
                *([("parent", _parent(info))] if info.parent is not None and not in_tree else []),
            ]
        ),
        *_format_facts(info),
        *_tables(info),
        *info.notes,
    ]


def _parent(info: ImageInfo) -> str:
    return f"{info.parent} ({info.parent_handle or 'format not recorded'})"


def _format_facts(info: ImageInfo) -> list[str]:
    """What the format says of itself, but for lists of things, which are tables."""
    facts = [
        (name.replace("_", " "), _human(name, value))
        for name, value in info.format.items()
        if value is not None and name not in ("snapshots", "bitmaps") and not _is_table(value)
    ]
    return ["of this format:", *pair_lines(facts, _INDENT)] if facts else []


def _human(name: str, value: object) -> object:
    """A size, by its name, as a size."""
    if isinstance(value, int) and not isinstance(value, bool) and name.endswith(_SIZES):
        return format_size(value)
    return value


def _is_table(value: object) -> TypeGuard[list[dict[str, object]]]:
    """Whether a fact is a list of things that have the same facts."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and [*item] == [*value[0]] for item in value)
    )


def _tables(info: ImageInfo) -> Iterator[str]:
    for name, value in info.format.items():
        if _is_table(value) and name not in ("snapshots", "bitmaps"):
            columns = [key.replace("_", " ").upper() for key in value[0]]
            rows = [[text_of(_human(key, item[key])) for key in item] for item in value]
            yield from _table(name.replace("_", " "), columns, rows)
    if info.snapshots:
        from tapcore.cli.snapshotrows import COLUMNS as SNAPSHOT_COLUMNS
        from tapcore.cli.snapshotrows import snapshot_rows

        yield from _table("snapshots", SNAPSHOT_COLUMNS, snapshot_rows(info.snapshots))
    if info.bitmaps:
        from tapcore.cli.bitmapstate import state_of

        rows = [[b.name, format_size(b.granularity), state_of(b)] for b in info.bitmaps]
        yield from _table("bitmaps", ("NAME", "GRANULARITY", "STATE"), rows)


def _table(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"{name}:"
    safe = [[printable(cell, _MAX_CELL) for cell in row] for row in rows]
    for line in table_lines(columns, safe):
        yield f"{_INDENT}{line}"
