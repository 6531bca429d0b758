"""Write-backs of changed tables: in a thread, one at a time; flushes wait for them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial

from tap_qcow.mapping import ClusterMap
from tap_qcow.stages import Piece, Stages, end_stages, take_stages
from tapcore import ImageFile


class Writeback:
    """The write-backs of one image.

    Args:
        map: whose tables are written.

    Attributes:
        running: one is under way.
        error: -errno of the last one that failed, if none has succeeded since.
    """

    def __init__(self, map: ClusterMap) -> None:
        self._map = map
        self._file = map.file
        self._waiting: list[Callable[[int], int]] = []
        self._untold = 0
        self.running = False
        self.error = 0

    def flush(self, then: Callable[[int], int]) -> int:
        """Make all that clients have been answered safe, and then call `then(0 or -errno)`.

        What the kernel could not write it has forgotten, and says so once: the flush that hears of
        it fails. Tables are written again from memory by the next one.
        """
        self._waiting.append(then)
        if not self.running:
            self._begin()
        return 0

    def when_needed(self) -> None:
        """Begin one if so many tables have changed that memory would not stay bounded."""
        if not self.running and self._map.tables.overfull:
            self._begin()

    def no_room(self) -> int:
        """-EBUSY, or the error of the last one, while too many tables wait to be written."""
        if not self._map.tables.full:
            return 0
        if not self.running:
            failed = self.error
            self.when_needed()
            if failed:
                return failed
        return -errno.EBUSY

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        stages = take_stages(self._map)
        self.running = True

        def finished(res: int) -> int:
            self.running = False
            self._end(stages, res)
            if waiting:
                untold = self.failure_to_tell()
                res = res or untold
            else:
                self._untold = stages.lost or self._untold
            done = sum(then(res) for then in waiting)
            if self._waiting and not self.running:
                self._begin()
            return done

        self._file.queue_work(partial(self._perform, stages), finished)

    def failure_to_tell(self) -> int:
        """-errno of an fdatasync that failed when nobody waited for it, once; 0: there is none."""
        untold, self._untold = self._untold, 0
        return untold

    def all_now(self) -> None:
        """Bring everything to the disk and wait for it; nothing may be under way.

        Raises:
            OSError: as the system says.
        """
        assert not self.running
        stages = take_stages(self._map)
        try:
            res = self._perform(stages)
        except OSError as exc:
            res = -(exc.errno or errno.EIO)
        self._end(stages, res)
        if res:
            raise OSError(-res, os.strerror(-res))

    def _perform(self, stages: Stages) -> int:
        """In a thread. Returns 0 or -errno, or raises OSError."""
        file = self._file
        _write(file, stages.new)
        stages.lost = file.flush_blocking()
        if stages.changed and not stages.lost:
            stages.reached = 2
            _write(file, stages.changed)
            stages.lost = file.flush_blocking()
        return stages.lost

    def _end(self, stages: Stages, res: int) -> None:
        self.error = res
        end_stages(self._map, stages, res)


def _write(file: ImageFile, pieces: list[Piece]) -> None:
    for offset, content in pieces:
        file.write_metadata(offset, content)
