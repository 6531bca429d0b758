"""Appending to streams (streamOptimized): grains are compressed in threads, and go to the end.

The file stays readable at every moment. While it is written, its header says where the last
flush has put the grain directory; at the end a footer follows that directory, and the header
refers to the footer. Written once, in ascending order, it is what `create.stream` would have
written.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from functools import partial
from typing import ClassVar

import attrs

from tap_vmdk.sparse.compressed import CompressedMap
from tap_vmdk.sparse.entries import HOLE, LAST_SECTOR
from tap_vmdk.sparse.grainmap import DAMAGED_TABLE, GrainMap
from tap_vmdk.sparse.graintable import GrainTable
from tap_vmdk.sparse.header import FLAG_REDUNDANT, GD_AT_END, SparseHeader
from tap_vmdk.sparse.layout import Layout
from tap_vmdk.sparse.markers import (
    MARKER_DIRECTORY,
    MARKER_FOOTER,
    MARKER_TABLE,
    grain_with_marker,
    is_marker,
    marked,
    stream_end,
)
from tapcore import DiskDriver, ImageFile, ImageFormatError, TapError, clusters
from tapcore.clusters import NOWHERE, PACKED, AnswerPart, Picture, Place, Run
from tapcore.deflate import deflate

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


class StreamMap(CompressedMap, clusters.WritableTableMap[GrainTable]):
    """The map of a stream that is appended to.

    Args:
        dd: the disk.
        file: open.
        layout: of it.
        header: of it.
        tail: sector where the footer begins, or the file ends.
    """

    full: ClassVar[bool] = False  # each write-back puts all tables that it concerns behind the end
    must_write_back: ClassVar[bool] = False

    def __init__(
        self, dd: DiskDriver, file: ImageFile, layout: Layout, header: SparseHeader, tail: int
    ) -> None:
        super().__init__(dd, file, layout)
        self._header = header
        self._fresh = self._is_fresh(tail)
        self.end = max(header.overhead, layout.first_grain) if self._fresh else tail
        self._cut = self.end
        self._footed = header.gd_offset == GD_AT_END
        gd = layout.directories[0] // 512
        self._open_header = header._replace(
            flags=header.flags & ~FLAG_REDUNDANT, rgd_offset=0, gd_offset=gd
        )

    def _is_fresh(self, tail: int) -> bool:
        """Whether there is nothing yet but a header, a descriptor and an empty directory."""
        if any(self.directory):
            return False
        start = max(self._header.overhead, self.layout.first_grain)
        if any(end > start for _, end in self.layout.reserved):
            return False
        return start <= tail <= start + 1 + self._header.directory_sectors

    def keep_free(self, end: int) -> None:
        """New grains go behind."""
        self.end = max(self.end, end)

    def begin_writing(self) -> None:
        """Let the header refer to the grain directory, and cut the footer off."""
        if not self._fresh:
            self.file.write_metadata(0, self._open_header.pack())
            self.file.make_safe()
        self.file.resize(self._cut << 9)

    def finish(self) -> None:
        """Put the footer behind the directory, then let the header refer to it."""
        if not self._footed:
            return
        file, header = self.file, self._open_header._replace(gd_offset=GD_AT_END)
        file.write_metadata(self.end << 9, stream_end(header, self._open_header.gd_offset))
        file.make_safe()
        file.write_metadata(0, header.pack())

    def run_to_write(self, sector: int, stop: int) -> Run | None:
        """Nothing is changed in a table that is damaged."""
        run = self.run(sector, stop)
        table = self.tables.get(sector >> self.table_shift)
        if run is not None and table is not None and not table.sound:
            raise ImageFormatError(DAMAGED_TABLE)
        return run

    def allocate(self, sector: int, count: int) -> Place:
        """So many sectors at the end."""
        place, end = self.end, self.end + count
        if end > LAST_SECTOR:
            raise OSError(errno.EFBIG, "the stream would exceed 2 TiB")
        self.end = end
        return Place(place << 9, count)

    def link(self, sector: int, stop: int, where: int) -> None:
        """Of one grain; NOWHERE: it becomes a hole."""
        index = sector >> self.table_shift
        table = self.tables.get(index)
        if table is None:
            if where == NOWHERE:
                return
            table = GrainTable(index, 0, self.empty[:])
            self.tables.add(table)
        self.sure.add(index)
        place = HOLE if where == NOWHERE else where >> 9
        number = (sector >> self.grain_shift) & self.entry_mask
        if table.entries[number] != place:
            self.tables.set(table, number, [place])

    def clear(self, run: Run, *, discard: bool, may_unmap: bool) -> int:
        """Grains become holes; what was stored of them stays behind in the file."""
        if run.kind == PACKED:
            self.link(run.sector, run.end, NOWHERE)
        return 0

    def picture(self) -> Picture:
        """The changed tables and a new directory, behind the grains; then the header."""
        taken = self.tables.take()
        tables = sorted((table for table, _, _ in taken.tables), key=lambda table: table.index)
        header = self._open_header
        fresh, self._fresh = self._fresh, False

        def conclude(failed: int) -> None:
            taken.conclude(ok=not failed, published=failed > 1)
            if failed:
                self._fresh = fresh
            else:
                self._open_header = header

        if not tables and not fresh:
            return Picture([], conclude)
        content = bytearray()
        for table in tables:
            self.directory[table.index] = 0
            if any(table.entries):
                self.directory[table.index] = self.end + (len(content) >> 9) + 1
                content += marked(MARKER_TABLE, header.table_sectors, table.entries)
        header = header._replace(gd_offset=self.end + (len(content) >> 9) + 1)
        content += marked(MARKER_DIRECTORY, header.directory_sectors, self.directory)
        start, self.end = self.end, self.end + (len(content) >> 9)
        return Picture([[(start << 9, bytes(content))], [(0, header.pack())]], conclude)


@attrs.define(eq=False)
class Job:
    """A grain on its way into the file.

    Attributes:
        first: its first sector.
        content: as it was handed in; shorter at the disk's end.
        answer: to be called when it is in the file, with 0 or -errno.
        stored: what goes into the file; empty for a grain of zeroes.
        res: 0 or -errno, None while it is being compressed.
    """

    first: int
    content: memoryview
    answer: AnswerPart
    stored: bytes = b""
    res: int | None = None

    def done(self, res: int) -> int:
        """Answer; returns how many requests that finished."""
        return self.answer(res, self.first, len(self.content) >> 9)


class StreamClusters(clusters.WritableClusters):
    """Moves the bytes of a stream: it is written by whole grains, of which each is new.

    Args:
        dd: the disk.
        map: of it.
        start: 0.
    """

    map: StreamMap

    def __init__(self, dd: DiskDriver, map: StreamMap, start: int = 0) -> None:
        super().__init__(dd, map, start)
        self._zeroes = bytes(map.layout.grain << 9)
        self._jobs: deque[Job] = deque()
        self._wanted: Counter[int] = Counter()  # tables, by those jobs that will change them
        map.tables.in_use = lambda index: self._wanted[index] > 0

    def write(self, sector: int, nb_sectors: int, buf: memoryview, answer: AnswerPart) -> int:
        """Each grain is compressed by a thread; they are appended in the order given."""
        self.begin_writing()
        return self._write(sector, sector + nb_sectors, buf, answer)

    def write_packed(self, sector: int, buf: memoryview, answer: AnswerPart) -> int:
        """Everything is stored so."""
        return self.write(sector, len(buf) >> 9, buf, answer)

    def _write(self, sector: int, stop: int, buf: memoryview, answer: AnswerPart) -> int:
        finished, first = 0, sector
        while sector < stop:
            end = min(sector + self.map.layout.grain, stop)
            rest = buf[(sector - first) << 9 :]
            try:
                run = self.map.run_to_write(sector, end)
            except (TapError, OSError) as exc:
                finished += answer(self.disk.failed(exc, sector, end), sector, end - sector)
            else:
                if run is None:
                    again = partial(self._write, sector, stop, rest, answer)
                    self.disk.load(sector, stop, again, answer)
                    return finished
                self._compress_later(Job(sector, rest[: (end - sector) << 9], answer))
            sector = end
        return finished

    def _compress_later(self, job: Job) -> None:
        self._jobs.append(job)
        self._wanted[job.first >> self.map.table_shift] += 1
        self.data.queue_packing(partial(self._compress, job), partial(self._compressed, job))

    def _compress(self, job: Job) -> int:
        """In a thread."""
        content: bytes | memoryview = job.content
        if len(content) < len(self._zeroes):
            content = bytes(content).ljust(len(self._zeroes), b"\0")
        if content[0] or bytes(content) != self._zeroes:
            job.stored = grain_with_marker(job.first, deflate(content, wbits=15))
        return 0

    def _compressed(self, job: Job, res: int) -> int:
        job.res = res
        finished = 0
        while self._jobs and self._jobs[0].res is not None:
            finished += self._append(self._jobs.popleft())
        return finished

    def _append(self, job: Job) -> int:
        if job.res or not job.stored:
            return self._stored(job, NOWHERE, job.res or 0)
        try:
            where = self.map.allocate(job.first, len(job.stored) >> 9).where
        except OSError as exc:
            return self._stored(job, NOWHERE, -(exc.errno or errno.EIO))
        content, then = memoryview(job.stored), partial(self._stored, job, where)
        res = self.data.write_now(where, content)
        return self.data.queue_write(where, content, then) if res is None else then(res)

    def _stored(self, job: Job, where: int, res: int) -> int:
        self._wanted[job.first >> self.map.table_shift] -= 1
        if not res:
            self.map.link(job.first, job.first + 1, where)
        return job.done(res)
