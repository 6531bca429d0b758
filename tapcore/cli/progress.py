"""A progress bar on a terminal, and an end at a good moment when a signal asks for one."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from tapcore.cli.failures import Stopped

Progress = Callable[[int, int], None]


@contextlib.contextmanager
def progress(what: str, *, quiet: bool, in_bytes: bool = True) -> Iterator[Progress]:
    """Show how far a piece of work is.

    The work calls what this gives between its pieces; there, and not in the middle of one, SIGINT
    and SIGTERM take effect, so that it can clean up. A second one ends the process at once.

    Args:
        what: a word for the bar.
        quiet: no bar.
        in_bytes: what is counted.
    """
    with _stopping() as check, _bar(what, quiet, in_bytes) as show:

        def tell(done: int, total: int) -> None:
            check()
            if show is not None:
                show(done, total)

        yield tell


@contextlib.contextmanager
def _stopping() -> Iterator[Callable[[], None]]:
    seen: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        signal.signal(signum, before[signum])

    def check() -> None:
        if seen:
            raise Stopped(seen[0])

    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for signum in before:
        signal.signal(signum, note)
    try:
        yield check
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _bar(what: str, quiet: bool, in_bytes: bool) -> Iterator[Progress | None]:
    """rich's bar on standard error, so that standard output stays what was asked for."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    with RichProgress(*_columns(in_bytes), console=Console(stderr=True), transient=True) as rich:
        task = rich.add_task(what, total=None)

        def show(done: int, total: int) -> None:
            rich.update(task, completed=done, total=total)

        yield show


def _columns(in_bytes: bool) -> list[Any]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    start = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()]
    if not in_bytes:
        return [*start, TimeRemainingColumn()]
    return [*start, DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()]
