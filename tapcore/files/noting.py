"""Files that are opened are noted, while a rehearsal wants that; so most processes load no more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapcore.files.rehearsal import Rehearsal

_running: Rehearsal | None = None


@contextlib.contextmanager
def rehearsing(seen: Rehearsal) -> Iterator[None]:
    """Whatever this process opens by the functions of this layer is noted (one at a time)."""
    global _running
    _running = seen
    try:
        yield
    finally:
        _running = None


def note(fd: int, *, written: bool = False) -> None:
    """A file was opened, perhaps in a rehearsal."""
    if _running is not None:
        _running.see(fd, written=written)
