"""Appending to streams (streamOptimized): grains are compressed in threads, and go to the end.

The file stays readable at every moment. While it is written, its header says where the last
flush has put the grain directory; at the end a footer follows that directory, and the header
refers to the footer. Written once, in ascending order, it is what `create.stream` would have
written.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import attrs

from tap_vmdk.grains.lookup import Grains
from tap_vmdk.movers import Save, Writer
from tap_vmdk.sparse.entries import HOLE, LAST_SECTOR, ZERO, pack_entries
from tap_vmdk.sparse.grainmap import DAMAGED, GrainMap
from tap_vmdk.sparse.header import FLAG_REDUNDANT, GD_AT_END, SparseHeader
from tap_vmdk.sparse.markers import (
    MARKER_DIRECTORY,
    MARKER_FOOTER,
    MARKER_TABLE,
    grain_with_marker,
    is_marker,
    marker,
    stream_end,
)
from tapcore import DiskDriver, TapError, TdCallback
from tapcore.deflate import deflate


@attrs.define(eq=False)
class Job:
    """A grain on its way into the file.

    Attributes:
        at: its first sector, of the file's disk.
        content: as it was handed in; shorter at the disk's end.
        stored: what goes into the file; empty for a grain of zeroes.
        res: 0 or -errno, None while it is being compressed.
        answer: to be called when it is in the file.
    """

    at: int
    content: memoryview
    stored: bytes = b""
    res: int | None = None
    answer: Any = None


IN_USE_BEHIND = "something lies behind its footer, and would be lost (`tapdisk convert` copies it)"
"""Why a stream is not written."""


def in_use_behind(map: GrainMap, tail: int) -> bool:
    """Whether something lies behind a stream's footer, which is cut off when writing begins.

    Args:
        map: of its grains.
        tail: sector where the footer begins, or the file ends.
    """
    layout, start = map.layout, tail << 9
    ends = [layout.directory_range(0)[1], max(map.directory) + layout.table_sectors]
    if max(ends) > tail:
        return True
    end = map.file.read_metadata(start, max(map.file.size - start, 0))
    if not end:
        return False
    marked = len(end) >= 512 and is_marker(end[:512], MARKER_FOOTER)
    return any(end[1024 if marked else 512 :])


class Appender(Writer):
    """Writes a stream.

    Args:
        grains: of the part.
        header: of the file.
        tail: sector where the footer begins, or the file ends.
    """

    writable = True
    compresses = True

    def __init__(self, grains: Grains, header: SparseHeader, tail: int) -> None:
        self._grains = grains
        self._map = map = grains.map
        self._file = map.file
        self._header = header
        self._grain_bytes = grains.grain << 9
        self._zeroes = bytes(self._grain_bytes)
        self._jobs: deque[Job] = deque()
        fresh = self._is_fresh(tail)
        self._end = max(header.overhead, map.layout.first_grain) if fresh else tail
        self._cut = self._end
        self._footed = header.gd_offset == GD_AT_END
        gd = map.layout.directories[0] // 512
        self._open_header = attrs.evolve(
            header, flags=header.flags & ~FLAG_REDUNDANT, rgd_offset=0, gd_offset=gd
        )
        self._fresh = fresh
        self._begun = False
        self._beginning = threading.Lock()
        self._saving: set[int] = set()

    def _is_fresh(self, tail: int) -> bool:
        """Whether there is nothing yet but a header, a descriptor and an empty directory."""
        if any(self._map.directory):
            return False
        start = max(self._header.overhead, self._map.layout.first_grain)
        if any(end > start for _, end in self._map.layout.reserved):
            return False
        return start <= tail <= start + 1 + self._header.directory_sectors

    def lost(self) -> Iterator[tuple[int, int]]:
        """By the grain tables."""
        return self._grains.lost()

    def keep_free(self, end: int) -> None:
        """New grains go behind."""
        self._end = max(self._end, end)

    # ---- write ------------------------------------------------------------------------------

    def write(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Whole grains: each is compressed by a thread; they are appended in the order given."""
        finished = 0
        while nb:
            at = sector - self._grains.start
            try:
                table = self._map.table_now(at >> self._grains.table_shift)
            except (TapError, OSError) as exc:
                res = self._grains.failed(exc, dd, sector, nb)
                return finished + cb(dd, res, sector, nb, id, prv)
            if table is None:
                self._grains.load_and(self.write, dd, sector, nb, buf, cb, id, prv)
                return finished
            count = min(self._grains.grain, nb)
            if at >> self._grains.table_shift in self._map.damaged:
                finished += cb(dd, -errno.EIO, sector, count, id, prv)
            else:
                job = Job(at, buf[: count << 9])
                self._jobs.append(job)
                self._map.pinned += 1
                answer = (self._compressed, dd, sector, count, id, (job, cb, prv))
                self._file.queue_work(self._compress, (job,), answer)
            sector += count
            nb -= count
            buf = buf[count << 9 :]
        return finished

    def _compress(self, job: Job) -> int:
        """In a thread."""
        content: bytes | memoryview = job.content
        if len(content) < self._grain_bytes:
            content = bytes(content).ljust(self._grain_bytes, b"\0")
        if content[0] or bytes(content) != self._zeroes:
            job.stored = grain_with_marker(job.at, deflate(content, wbits=15))
        return self._begin() if not self._begun else 0

    def _begin(self) -> int:
        """Before the first change, in a thread: let the header refer to the grain directory."""
        with self._beginning:
            if self._begun:
                return 0
            if not self._fresh:
                self._file.write_metadata(0, self._open_header.pack())
                if res := self._file.flush_blocking():
                    return res
            self._file.resize(self._cut << 9)  # off with the footer, or the empty directory
            self._begun = True
        return 0

    def _compressed(
        self, dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: tuple[Any, ...]
    ) -> int:
        job, cb, mine = prv
        job.res = res
        job.answer = (cb, dd, sector, nb, id, mine)
        finished = 0
        while self._jobs and self._jobs[0].res is not None:
            finished += self._append(self._jobs.popleft())
        return finished

    def _append(self, job: Job) -> int:
        dd, sector, nb, id = job.answer[1:5]
        if job.res or not job.stored:
            return self._stored(dd, job.res or 0, sector, nb, id, (job, HOLE))
        place, end = self._end, self._end + (len(job.stored) >> 9)
        if end > LAST_SECTOR:
            return self._stored(dd, -errno.EFBIG, sector, nb, id, (job, HOLE))
        self._end = end
        content = memoryview(job.stored)
        res = self._file.write_now(place << 9, content)
        if res is None:
            return self._file.queue_write(
                place << 9, content, (self._stored, dd, sector, nb, id, (job, place))
            )
        return self._stored(dd, res, sector, nb, id, (job, place))

    def _stored(
        self, dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: tuple[Job, int]
    ) -> int:
        job, place = prv
        self._map.pinned -= 1
        if res == 0 and self._grains.entry(self._grains.start + job.at) != place:
            self._map.set_entries(job.at, place, 1)
        cb, mine = job.answer[0], job.answer[5]
        finished: int = cb(dd, res, sector, nb, id, mine)
        return finished

    # ---- discard and zeroes -----------------------------------------------------------------

    def zero(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Whole grains become holes; what was stored of them stays behind in the file."""
        return self._clear(dd, 0, sector, nb, id, (cb, prv))

    def discard(
        self, dd: DiskDriver, sector: int, nb: int, cb: TdCallback, id: int, prv: Any
    ) -> int:
        """The same."""
        return self._clear(dd, 0, sector, nb, id, (cb, prv))

    def _clear(
        self, dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: tuple[Any, ...]
    ) -> int:
        cb, mine = prv
        if res:
            failed: int = cb(dd, res, sector, nb, id, mine)
            return failed
        finished = 0
        while nb:
            try:
                run = self._grains.run(sector, nb)
            except (TapError, OSError) as exc:
                return finished + int(
                    cb(dd, self._grains.failed(exc, dd, sector, nb), sector, nb, id, mine)
                )
            if run is None:
                self._grains.load(dd, sector, nb, self._clear, id, prv)
                return finished
            place, count = run
            if place > ZERO:
                self._map.set_entries(
                    sector - self._grains.start, HOLE, -(-count // self._grains.grain)
                )
            finished += cb(dd, -errno.EIO if place == DAMAGED else 0, sector, count, id, mine)
            sector += count
            nb -= count
        return finished

    # ---- metadata ---------------------------------------------------------------------------

    def unsaved(self) -> Save | None:
        """The changed tables and a new directory, behind the grains."""
        changed = self._map.unsaved
        if not changed:
            return None
        self._saving, self._map.unsaved = changed, set()
        self._map.pinned += 1
        content = bytearray()
        for index in sorted(changed):
            table = pack_entries(self._map.tables[index])
            if any(table):
                content += marker(MARKER_TABLE, self._header.table_sectors)
                self._map.directory[index] = self._end + (len(content) >> 9)
                content += table.ljust(self._header.table_sectors << 9, b"\0")
            else:
                self._map.directory[index] = 0
        size = self._header.directory_sectors
        content += marker(MARKER_DIRECTORY, size)
        gd_offset = self._end + (len(content) >> 9)
        content += pack_entries(self._map.directory).ljust(size << 9, b"\0")
        start, self._end = self._end, self._end + (len(content) >> 9)
        header = attrs.evolve(self._open_header, gd_offset=gd_offset)
        return partial(self._save, start, content, header)

    def _save(self, start: int, content: bytearray, header: SparseHeader) -> int:
        if res := self._begin():
            return res
        file = self._file
        file.write_metadata(start << 9, content)
        if res := file.flush_blocking():
            return res
        file.write_metadata(0, header.pack())
        self._open_header = header
        return 0

    def saved(self, ok: bool) -> None:
        """As for other sparse files."""
        self._map.pinned -= 1
        if not ok:
            self._map.unsaved |= self._saving
        self._saving = set()

    def finish(self) -> None:
        """Put the footer behind the directory, then let the header refer to it."""
        if not self._begun or not self._footed:
            return
        file, header = self._file, attrs.evolve(self._open_header, gd_offset=GD_AT_END)
        file.write_metadata(self._end << 9, stream_end(header, self._open_header.gd_offset))
        if res := file.flush_blocking():
            raise OSError(-res, os.strerror(-res))
        file.write_metadata(0, header.pack())
