"""Printing for people and programs; text from images is made safe to print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from tapcore.errors import printable
from tapcore.sizes import format_size

_MAX_CELL = 4096


def print_line(text: str = "") -> None:
    """One line on standard output, control characters escaped."""
    print(printable(text, _MAX_CELL))


def print_json(value: object) -> None:
    """JSON, pure ASCII, so that no terminal or locale can misread it."""
    import json

    # never all of it in memory: an image may have 65,535 snapshots
    parts = json.JSONEncoder(indent=4, default=str).iterencode(_clear(value))
    while some := "".join(islice(parts, 4096)):
        sys.stdout.write(some)
    print()


def json_text(value: object, *, indent: int | None = None) -> str:
    """JSON, pure ASCII and valid Unicode.

    A name that is not UTF-8 cannot stand in JSON: it is there as it is printed, with `\\xff` for a
    byte, and beside it, under its key and `_bytes`, all of its bytes in hexadecimal.
    """
    import json

    return json.dumps(_clear(value), indent=indent, default=str)


def _clear(value: object) -> object:
    if isinstance(value, str):
        return value if _is_unicode(value) else printable(value, 6 * len(value))
    if isinstance(value, (list, tuple)):
        return [_clear(item) for item in value]
    if not isinstance(value, dict):
        return value
    found: dict[object, object] = {}
    for key, item in value.items():
        found[_clear(key)] = _clear(item)
        raw = _bytes_of(item)
        if raw is not None:
            found[f"{_clear(key)}_bytes"] = raw
    return found


def _bytes_of(value: object) -> object:
    """Of a name, or names, that are not UTF-8: their bytes; None where nothing is so."""
    if isinstance(value, str) and not _is_unicode(value):
        return os.fsencode(value).hex() if _is_name(value) else None
    if isinstance(value, (list, tuple)) and any(map(_bytes_of, value)):
        return [_bytes_of(item) for item in value]
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_name(text: str) -> bool:
    return not any("\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" for c in text)


def print_pairs(pairs: Iterable[tuple[str, object]], indent: str = "") -> None:
    """`name: value` lines with the values in one column."""
    for line in pair_lines(pairs, indent):
        print_line(line)


def pair_lines(pairs: Iterable[tuple[str, object]], indent: str = "") -> list[str]:
    """What `print_pairs` prints."""
    rows = [(f"{indent}{printable(name)}:", text_of(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:{width}} {value}".rstrip() for name, value in rows]


def text_of(value: object) -> str:
    """A value of a format's own facts, for a person."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={text_of(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return "; ".join(text_of(item) for item in value) or "none"
    return str(value)


def format_word(handle: str) -> str:
    """A format for a person: a raw disk is `raw`, whichever driver reads it."""
    from tapcore.opening.names import RAW_HANDLES

    return f"raw ({handle})" if handle in RAW_HANDLES else handle


def size_with_bytes(size: int) -> str:
    """`10 GiB (10737418240 bytes)`."""
    if size < 1024:
        return f"{size} bytes"
    return f"{format_size(size)} ({size} bytes)"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: drawn by rich on a terminal, which wraps long cells; plain columns elsewhere."""
    safe = [[printable(cell, _MAX_CELL) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(headers, safe)
        return
    for line in table_lines(headers, safe):
        print(line)


def terminal_columns() -> int | None:
    """The width of the terminal that standard output is; None where it is none."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def begun_list(words: Sequence[str], columns: int) -> str:
    """As many words of a list as have room, and dots where there are more."""
    whole = ", ".join(words)
    if len(whole) <= columns:
        return whole
    dots = "\N{HORIZONTAL ELLIPSIS}" if can_show("\N{HORIZONTAL ELLIPSIS}") else "..."
    kept = whole[: columns - len(dots) + 1].rpartition(" ")[0]
    return f"{kept} {dots}" if kept else dots


def can_show(text: str) -> bool:
    """Whether standard output has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in plain columns."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headers, *rows)
    ]


def _print_rich(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table: Any = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")  # else the end of a long word would not be shown
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: an image's name is no markup
    Console().print(table)
