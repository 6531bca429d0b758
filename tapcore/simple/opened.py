"""An open image of a `SimpleDriver`: its methods are called in a thread, one after the other."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import ImageFormatError, TapError, errno_of
from tapcore.interface.answer import Answer
from tapcore.interface.damage import content_damaged
from tapcore.interface.distrust import show_where
from tapcore.interface.models import DiskDriver
from tapcore.process.workers import Completions, Lane
from tapcore.simple.methods import SimpleMethods

log = logging.getLogger(__name__)

Piece = tuple[int, int, int]
"""Result, first sector, sectors: what one call has come to."""

_PATIENCE_SECONDS: Final = 0.02
"""For the call that is under way, when the loop asks what lies where: others wait for the loop."""


class OpenSimple:
    """What `dd.private` is: an open image, and the calls that are under way.

    Args:
        dd: the image in its chain.
        disk: the author's.
    """

    def __init__(self, dd: DiskDriver[Any], disk: SimpleMethods) -> None:
        self.dd = dd
        self.disk = disk
        self.unit = disk.block_size
        self.alone = threading.Lock()  # one call at a time, from whatever thread
        self._completions = Completions()
        self._lane = Lane(1, dd.options.workers)
        self._under_way = 0
        self._waited = False  # in vain, since a call was last finished
        dd.io_fd[0] = self._completions.eventfd

    # ---- requests ---------------------------------------------------------------------------

    def queue(self, calls: Iterable[tuple[int, int, Callable[[], int]]], answer: Answer) -> int:
        """Make calls in a thread, one after the other; each is answered for its sectors.

        Args:
            calls: (first sector, sectors, call).
            answer: of the request.
        """
        done: list[Piece] = []
        failed: list[tuple[int, int, Exception]] = []

        def work() -> int:
            for sector, count, call in calls:
                try:
                    with self.alone:
                        res = call()
                except Exception as exc:
                    failed.append((sector, count, exc))
                else:
                    done.append((res, sector, count))
            return 0

        def over(res: int) -> int:
            pieces = done + [(self._failed(exc, at, n), at, n) for at, n, exc in failed]
            return sum(answer(res, sector, count) for res, sector, count in pieces)

        self._under_way += 1
        try:
            self._lane.put(work, (), self._completions, over)
        except OSError:
            self._under_way -= 1
            raise
        return 0

    def _failed(self, exc: Exception, sector: int, count: int) -> int:
        if isinstance(exc, ImageFormatError):
            return content_damaged(self.dd, sector, count, exc.message)
        self.tell_of_bug(exc)
        return -errno_of(exc)

    def tell_of_bug(self, exc: Exception) -> None:
        """Nobody but the log hears of what an author did not mean to raise."""
        if not isinstance(exc, TapError | OSError):
            kind, text = type(self.disk).handle, f"{type(exc).__name__}: {exc}"
            log.error("%s: a bug in the driver %s: %s", self.dd.name, kind, text)
            show_where(exc)

    def pieces(self, sector: int, nb_sectors: int) -> Iterator[tuple[int, int, int, int]]:
        """A range, block by block where blocks are larger than sectors.

        Yields:
            (first sector, sectors, offset, length): the bytes end where the disk does.
        """
        unit, size, end = self.unit >> SECTOR_SHIFT, self.disk.size, sector + nb_sectors
        while sector < end:
            until = min(sector - sector % unit + unit, end) if unit > 1 else end
            offset = sector << SECTOR_SHIFT
            length = min(until << SECTOR_SHIFT, size) - offset
            yield sector, until - sector, offset, length
            sector = until

    def extents(self, sector: int, nb_sectors: int) -> list[tuple[int, str]] | None:
        """What the author's `extents` says; None: a call is under way, and takes its time."""
        patience = 0.0 if self._waited else _PATIENCE_SECONDS
        self._waited = not self.alone.acquire(timeout=patience)
        if self._waited:
            return None
        try:
            return list(self.disk.extents(sector << SECTOR_SHIFT, nb_sectors << SECTOR_SHIFT))
        finally:
            self.alone.release()

    def reap(self) -> int:
        """Answer all that is done."""
        self._waited = False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._completions.eventfd)
        finished = 0
        for res, over in self._completions.take():
            self._under_way -= 1
            finished += over(res)
        return finished

    def drain(self) -> None:
        """Wait until nothing is under way."""
        poll = select.poll()
        poll.register(self._completions.eventfd, select.POLLIN)
        while self._under_way:
            poll.poll()
            self.reap()

    def close(self) -> None:
        """Flush what was written, and release everything in any case.

        Raises:
            OSError, TapError: the flush failed.
        """
        disk = self.disk
        with contextlib.ExitStack() as stack:
            stack.callback(self._completions.close)
            if disk.needs_file:
                stack.callback(disk.file.close)
            stack.callback(disk.close)
            self.drain()
            if not disk.read_only:
                disk.flush()
