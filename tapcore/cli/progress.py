"""How far a piece of work is, and an end at a good moment when a signal asks for one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final, Literal, TypeAlias

from tapcore.cli.signals import asking_to_stop
from tapcore.sizes import format_size
from tapcore.tools.colours import GREEN, GREY, PURPLE, RED, TEAL

Progress = Callable[[int, int], None]
Style: TypeAlias = Literal["auto", "plain", "json", "none"]

_LineOf = Callable[[str, tuple[int, int], float, bool], str]

_SECONDS: Final = 1.0  # between two lines
_STYLES: Final = {
    "bar.back": GREY,
    "bar.complete": PURPLE,
    "bar.finished": GREEN,
    "bar.pulse": PURPLE,
    "progress.percentage": PURPLE,
    "progress.download": GREEN,
    "progress.data.speed": RED,
    "progress.remaining": TEAL,
}
"""Of a bar and what stands beside it, by rich's names."""
_NARROW: Final = 100
"""Columns of a terminal that a whole line with speed and bytes has no room in."""


@contextlib.contextmanager
def progress(
    what: str, *, quiet: bool, style: Style = "auto", in_bytes: bool = True
) -> Iterator[Progress]:
    """Show how far a piece of work is, on standard error.

    The work calls what this gives between its pieces; there, and not in the middle of one, signals
    take effect, so that it can clean up. A second one ends the process at once.

    Args:
        what: a word for it.
        quiet: show nothing.
        style: "auto" is a bar on a terminal and nothing elsewhere; "plain" a line a second; "json"
            the same as an object.
        in_bytes: what is counted; else milliseconds.
    """
    quiet = quiet or style == "none"
    with asking_to_stop() as check, shown(what, quiet, style, in_bytes) as show:

        def tell(done: int, total: int) -> None:
            check()
            if show is not None:
                show(done, total)

        yield tell


def shown(
    what: str, quiet: bool, style: Style, in_bytes: bool = True
) -> contextlib.AbstractContextManager[Progress | None]:
    """As `progress`, for work that a signal may end at any moment; None: nothing is shown."""
    if quiet or style in ("auto", "none"):
        return _bar(what, quiet, in_bytes)
    return _lines(what, in_bytes, _json_line if style == "json" else _plain_line)


@contextlib.contextmanager
def _lines(what: str, in_bytes: bool, line_of: _LineOf) -> Iterator[Progress]:
    """For logs and programs: a line a second, and a last one."""
    started = told = monotonic()
    last = (0, 0)

    def show(done: int, total: int) -> None:
        nonlocal told, last
        last = (done, total)
        now = monotonic()
        if now - told >= _SECONDS:
            told = now
            _print(line_of(what, last, now - started, in_bytes))

    yield show
    _print(line_of(what, last, monotonic() - started, in_bytes))


def _print(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _json_line(what: str, how_far: tuple[int, int], seconds: float, in_bytes: bool) -> str:
    """`docs/json.md` has the fields."""
    import json

    done, total = how_far
    rate = int(done / seconds) if seconds > 0 else 0
    left = seconds * (total - done) / done if done and total else None
    return json.dumps(
        {
            "phase": what,
            "bytes" if in_bytes else "milliseconds": done,
            "total": total,
            **({"rate": rate} if in_bytes else {}),
            "seconds_left": None if left is None else round(left, 1),
        }
    )


def _plain_line(what: str, how_far: tuple[int, int], seconds: float, in_bytes: bool) -> str:
    done, total = how_far
    parts = []
    if total:
        parts.append(f"{100 * done / total:.1f}%")
    if in_bytes:
        parts.append(format_size(done) + (f" of {format_size(total)}" if total else ""))
        if seconds > 0:
            parts.append(f"{format_size(int(done / seconds))}/s")
    if 0 < done < total:
        parts.append(f"{seconds * (total - done) / done:.0f} s left")
    return f"tapdisk: {what}: {', '.join(parts)}"


@contextlib.contextmanager
def _bar(what: str, quiet: bool, in_bytes: bool) -> Iterator[Progress | None]:
    """rich's bar on standard error, so that standard output stays what was asked for."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.theme import Theme

    console = Console(stderr=True, theme=Theme(_STYLES))
    columns = _columns(in_bytes, narrow=console.width < _NARROW)
    with RichProgress(*columns, console=console, transient=True) as rich:
        task = rich.add_task(what, total=None)

        def show(done: int, total: int) -> None:
            rich.update(task, completed=done, total=total or None)

        yield show


def _columns(in_bytes: bool, *, narrow: bool) -> list[Any]:
    """What the bar's line shows; on a narrow terminal what has room in one line."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    start = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()]
    if narrow:
        return [start[0], BarColumn(None), start[2], TimeRemainingColumn()]
    if not in_bytes:
        return [*start, TimeRemainingColumn()]
    return [*start, DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()]
