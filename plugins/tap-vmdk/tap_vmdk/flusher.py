"""Flushes: content, then the metadata that points to it, each made safe before the next.

One runs at a time; those that come meanwhile share the next one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tap_vmdk.movers import Save
from tap_vmdk.parts.part import Part
from tapcore import DiskDriver, ImageFile, TdCallback

Waiter = tuple[TdCallback, DiskDriver, int, Any]
"""Whom to answer: `cb, dd, id, prv` of the hook."""


class Flusher:
    """The flushes of one image.

    Args:
        files: all that are written.
        parts: all of the disk.
    """

    def __init__(self, files: Sequence[ImageFile], parts: Sequence[Part]) -> None:
        self._files = files
        self._parts = parts
        self._running: list[Waiter] = []
        self._waiting: list[Waiter] = []
        self._saves: list[tuple[Part, Save]] = []
        self._left = 0
        self._status = 0

    def flush(self, dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> int:
        """As `td_queue_flush`."""
        if not self._files:  # all of the image is only read
            return cb(dd, 0, 0, 0, id, prv)
        self._waiting.append((cb, dd, id, prv))
        if not self._running:
            self._start(dd)
        return 0

    def _start(self, dd: DiskDriver) -> None:
        self._running, self._waiting = self._waiting, []
        self._status = 0
        self._saves = [(part, save) for part in self._parts if (save := part.writer.unsaved())]
        self._sync(dd, self._files, self._content_is_safe)

    def _sync(self, dd: DiskDriver, files: Sequence[ImageFile], then: Any) -> None:
        """Flush files; `then` is called once when all have answered."""
        self._left = len(files)
        for file in files:
            file.queue_flush((self._one_done, dd, 0, 0, 0, then))

    def _one_done(self, dd: DiskDriver, res: int, sector: int, nb: int, id: int, then: Any) -> int:
        self._status = self._status or res
        self._left -= 1
        return 0 if self._left else int(then(dd))

    def _content_is_safe(self, dd: DiskDriver) -> int:
        if self._status or not self._saves:
            return self._finish(dd)
        self._left = len(self._saves)
        for part, save in self._saves:
            assert part.file is not None
            part.file.queue_work(save, (), (self._one_done, dd, 0, 0, 0, self._tables_are_written))
        return 0

    def _tables_are_written(self, dd: DiskDriver) -> int:
        if self._status:
            return self._finish(dd)
        files = [part.file for part, _ in self._saves if part.file is not None]
        self._sync(dd, files, self._finish)
        return 0

    def _finish(self, dd: DiskDriver) -> int:
        status, saves, running = self._status, self._saves, self._running
        for part, _ in saves:
            part.writer.saved(status == 0)
        self._saves, self._running = [], []
        if self._waiting:
            self._start(dd)
        return sum(cb(dd, status, 0, 0, id, prv) for cb, dd, id, prv in running)

    def flush_blocking(self) -> None:
        """The same with nothing in flight, waiting for the disk.

        Raises:
            OSError: as the system says.
        """
        saves = [(part, save) for part in self._parts if (save := part.writer.unsaved())]
        res = _all(file.flush_blocking() for file in self._files)
        try:
            res = res or _all(save() for _, save in saves)
            if saves:
                res = res or _all(file.flush_blocking() for file in self._files)
        except OSError as exc:
            res = -(exc.errno or 5)
        for part, _ in saves:
            part.writer.saved(res == 0)
        if res:
            raise OSError(-res, os.strerror(-res))


def _all(results: Any) -> int:
    """Run through all; the first that failed, or 0."""
    status = 0
    for res in results:
        status = status or res
    return status
