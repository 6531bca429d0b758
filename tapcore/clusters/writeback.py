"""Writing back what has changed in memory, in an order in which a crash leaves at worst lost space.

A write-back takes a picture of all changes and brings it to the disk in stages, each safe there
(fdatasync) before the next begins. What changes while one runs is not in its picture, so nothing is
published before its content is safe. The stages run in a thread, and one write-back at a time.

What was given up can be used again only when all stages are on disk, and nothing under way uses it.
"""

from __future__ import annotations

import errno
import logging
import os

from tapcore.clusters.map import Picture, WritableMap
from tapcore.clusters.mapped import MappedDisk
from tapcore.interface.answer import Then

log = logging.getLogger(__name__)


class Writeback:
    """The write-backs of one map.

    Args:
        disk: that it maps.
        map: of the disk.

    Attributes:
        running: one is under way.
        failing: -errno of the last one; 0: it succeeded.
    """

    def __init__(self, disk: MappedDisk, map: WritableMap) -> None:
        self._disk = disk
        self._map = map
        self._waiting: list[Then] = []
        self._freeing = 0  # holes are punched, in threads
        self._lost = 0  # of the one that runs: -errno with which an fdatasync failed
        self._reached = 0  # of the same: the last stage that has begun
        self._untold = 0
        self._said = False
        self.running = False
        self.failing = 0

    # ---- asking for one ---------------------------------------------------------------------

    def flush(self, then: Then) -> int:
        """Make all that clients have been answered safe, and then call `then(0 or -errno)`.

        What the kernel could not write it has forgotten, and says so once: the flush that hears of
        it fails. What is in memory is written again by the next one.
        """
        self._waiting.append(then)
        if not self.running:
            self._begin()
        return 0

    def when_needed(self) -> None:
        """Begin one if so much has changed that memory would not stay bounded."""
        if not self.running and self._map.must_write_back:
            self._begin()

    def held_back(self) -> int:
        """Why nothing more may change now; 0 where it may.

        Returns:
            -EBUSY until a write-back has finished; another -errno while these fail.
        """
        if not self._map.full:
            return 0
        self.when_needed()
        return self.failing or -errno.EBUSY

    def _begin(self) -> None:
        waiting, self._waiting = self._waiting, []
        picture = self._map.picture()
        failed = self._grow(picture)  # here: nothing is given out meanwhile
        self.running = True

        def finished(res: int) -> int:
            self.running = False
            self._conclude(picture, res)
            if waiting:
                untold = self.failure_to_tell()
                res = res or untold
            else:
                self._untold = self._lost or self._untold
            done = sum(then(res) for then in waiting)
            if self._waiting and not self.running:
                self._begin()
            return done

        self._map.file.queue_work(lambda: failed or self._perform(picture), finished)

    def failure_to_tell(self) -> int:
        """-errno of an fdatasync that failed when nobody waited for it, once; 0: there is none.

        The kernel tells only once that data may be lost, and whoever flushes next must hear of it.
        """
        untold, self._untold = self._untold, 0
        return untold

    def all_now(self) -> None:
        """Bring everything to the disk and wait for it; no request may be under way.

        Raises:
            OSError: as the system says.
        """
        while self.running or self._freeing:  # what began by itself
            self._map.file.drain()
        while True:
            picture = self._map.picture()
            try:
                res = self._grow(picture) or self._perform(picture)
            except OSError as exc:
                res = -(exc.errno or errno.EIO)
            self._conclude(picture, res, waits=True)
            if res:
                raise OSError(-res, os.strerror(-res))
            frees = picture.free is not None and self._map.reuses_space
            if not frees and not any(picture.stages):
                return

    # ---- to the disk ------------------------------------------------------------------------

    def _grow(self, picture: Picture) -> int:
        self._lost, self._reached = 0, 1
        try:
            self._map.file.truncate_up(picture.end)
        except OSError as exc:
            # no warning: whoever waits for the flush is told
            log.info("%s: the file cannot grow: %s", self._map.file.path, exc.strerror)
            return -(exc.errno or errno.EIO)
        return 0

    def _perform(self, picture: Picture) -> int:
        """In a thread. Returns 0 or -errno, or raises OSError."""
        file, data = self._map.file, self._map.data
        for number, stage in enumerate(picture.stages or [[]], 1):
            if number > 1 and not stage:
                continue
            self._reached = number
            for offset, content in stage:
                file.write_metadata(offset, content)
            if number == 1 and data is not file:
                self._lost = data.flush_blocking()
            if not self._lost and (number > 1 or data is file or any(picture.stages)):
                self._lost = file.flush_blocking()
            if self._lost:
                break
        return self._lost

    def _conclude(self, picture: Picture, res: int, *, waits: bool = False) -> None:
        self.failing = res
        picture.conclude(self._reached if res else 0)
        if not res and picture.free is not None and self._may_free():
            free = self._free_waiting if waits else self._free
            self._disk.content.in_flight.barrier(lambda: free(picture))

    # ---- what was given up ------------------------------------------------------------------

    def _may_free(self) -> bool:
        """What is in flight is counted only where a map says that it uses space again.

        Where it forgot to, its space is lost, and no content is.
        """
        if not self._map.reuses_space and not self._said:
            self._said = True
            kind = type(self._map).__name__
            log.error("a driver's map, %s, frees space without `reuses_space`: it is kept", kind)
        return self._map.reuses_space

    def _free(self, picture: Picture) -> None:
        """Nothing points to it any more, on disk or in a request under way.

        Not even a read does: of an encrypted cluster it would decrypt the zeroes of a hole.
        """
        self._disk.before_giving_up()
        if not picture.holes:
            self._freed(picture)
            return
        self._freeing += 1

        def punched(res: int) -> int:
            self._freeing -= 1
            self._freed(picture)
            return 0

        self._map.file.queue_work(lambda: self._punch(picture), punched)

    def _free_waiting(self, picture: Picture) -> None:
        self._disk.before_giving_up()
        self._punch(picture)
        self._freed(picture)

    @staticmethod
    def _freed(picture: Picture) -> None:
        if picture.free is not None:
            picture.free()

    def _punch(self, picture: Picture) -> int:
        """Give ranges back to the file system, perhaps in a thread."""
        file = self._map.file
        for offset, length in picture.holes:
            if res := file.discard_blocking(offset, length):
                log.warning("%s: space is not given back: %s", file.path, os.strerror(-res))
                return res
        return 0
