"""How a tool that moves content tells how far it is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""`progress(done, total)` in bytes, called after each piece; what it raises stops the work, at a
moment when nothing is half done."""

_SECONDS: Final = 0.2  # between two looks


@contextlib.contextmanager
def watched(progress: Progress, how_far: Callable[[], int], total: int) -> Iterator[None]:
    """Tell how far work is that does not tell itself, from a thread of its own.

    Args:
        progress: is told; it must not raise.
        how_far: gives the bytes that are done.
        total: bytes in all.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS):
            progress(min(how_far(), total), total)

    thread = threading.Thread(target=watch, name="tapcore-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    progress(total, total)
