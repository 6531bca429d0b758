"""Reading sparse files whose grains are compressed: inflated in threads, the last ones kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

from tap_vmdk.descriptor import ExtentLine
from tap_vmdk.grains import GrainMap
from tap_vmdk.sparse import GRAIN_MARKER
from tap_vmdk.sparseparts import SparsePart
from tap_vmdk.tables import HOLE, ZERO
from tapcore import DiskDriver, Extent, ImageFormatError, TdCallback
from tapcore.deflate import inflate

_KEPT_BYTES: Final = 4 << 20
"""Inflated grains that are kept for the reads that follow."""
_TASK_BYTES: Final = 256 << 10
"""So much is inflated by one task of a thread, of a read that is larger."""
_GUESS: Final = 0.55
"""A grain is fetched as if it were compressed to this share; where it is larger, twice."""

_Piece = tuple[int, int, int, memoryview]
"""Of a grain: its place in the file (sectors), its first sector, bytes to skip, and the target."""


class CompressedPart(SparsePart):
    """A sparse file with compressed grains that is only read.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        map: of its grains; their places are those of what is stored of them.
        markers: each grain is preceded by its sector and its compressed size.
        reason: why it is only read.
    """

    def __init__(
        self, line: ExtentLine, start: int, map: GrainMap, *, markers: bool, reason: str = ""
    ) -> None:
        super().__init__(line, start, map, reason)
        self._markers = markers
        self._fd = map.file.meta_fd  # threads read by it
        self._kept: dict[int, bytes] = {}  # by place, the oldest first
        self._keep = max(_KEPT_BYTES // self.cluster, 1)
        self._first_read = max(int(self.cluster * _GUESS), 512) + GRAIN_MARKER.size

    def read(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Grain by grain, from those kept, or by threads."""
        finished = 0
        task: list[_Piece] = []
        first = sector
        while nb:
            at = sector - self.start
            place = self._place(at)
            if place <= ZERO:
                finished += self._inflate_later(dd, task, first, sector, cb, id, prv)
                return finished + self._read_runs(dd, sector, nb, buf, cb, id, prv)
            skip = at & self._grain_mask
            count = min(self._grain - skip, nb)
            kept = self._kept.get(place)
            if kept is not None:
                finished += self._inflate_later(dd, task, first, sector, cb, id, prv)
                task, first = [], sector + count
                buf[: count << 9] = kept[skip << 9 : (skip + count) << 9]
                finished += cb(dd, 0, sector, count, id, prv)
            else:
                task.append((place, at - skip, skip << 9, buf[: count << 9]))
                if len(task) * self.cluster >= _TASK_BYTES:
                    finished += self._inflate_later(dd, task, first, sector + count, cb, id, prv)
                    task, first = [], sector + count
            sector += count
            nb -= count
            buf = buf[count << 9 :]
        return finished + self._inflate_later(dd, task, first, sector, cb, id, prv)

    def _place(self, at: int) -> int:
        """The entry of a grain, `HOLE` where its table is not in memory, or it cannot be true."""
        index = at >> self._table_shift
        table = self._tables.get(index)
        if table is not None:
            return table[(at >> self._grain_shift) & self._entry_mask]
        table = self.map.damaged.get(index)
        place = HOLE if table is None else table[(at >> self._grain_shift) & self._entry_mask]
        return place if self.map.place_possible(place) else HOLE

    def _read_data(
        self,
        dd: DiskDriver,
        place: int,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """A run that has no holes; where its grains are, the tables say again."""
        return self.read(dd, sector, nb, buf, cb, id, prv)

    def _inflate_later(
        self,
        dd: DiskDriver,
        task: list[_Piece],
        first: int,
        end: int,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        if not task:
            return 0
        found: list[tuple[int, bytes]] = []
        damage: list[tuple[int, str]] = []

        def inflated(dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: Any) -> int:
            self._keep_some(found)
            for at, reason in damage:
                start = max(self.start + at, sector)
                count = min(self.start + at + self._grain, sector + nb) - start
                res = self.damaged(dd, start, count, reason)
            return cb(dd, res, sector, nb, id, prv)

        answer = (inflated, dd, first, end - first, id, prv)
        self.map.file.queue_work(self._inflate_all, (task, found, damage), answer)
        return 0

    def _keep_some(self, found: list[tuple[int, bytes]]) -> None:
        kept = self._kept
        for place, content in found:
            kept[place] = content
        while len(kept) > self._keep:
            del kept[next(iter(kept))]

    # ---- in threads --------------------------------------------------------------------------

    def _inflate_all(
        self,
        task: list[_Piece],
        found: list[tuple[int, bytes]],
        damage: list[tuple[int, str]],
    ) -> int:
        for place, at, skip, target in task:
            try:
                content = self.inflate_grain(place, at)
            except ImageFormatError as exc:
                damage.append((at, f"{exc.message}, at sector {place} of the file"))
                continue
            if len(content) < skip + len(target):
                damage.append((at, f"its grain, at sector {place} of the file, is too short"))
                continue
            target[:] = memoryview(content)[skip : skip + len(target)]
            found.append((place, content))
        return 0

    def inflate_grain(self, place: int, at: int) -> bytes:
        """The content of a grain; waits for the disk, changes nothing.

        Args:
            place: sector of the file where what is stored of it begins.
            at: its first sector on this file's disk.

        Raises:
            ImageFormatError: it is damaged.
            OSError: as the system says.
        """
        stored = os.pread(self._fd, self._first_read, place << 9)
        if not self._markers:
            return self._inflate_unmarked(place, stored)
        head = GRAIN_MARKER.size
        if not stored:
            raise ImageFormatError("its grain lies past the end of the file")
        if len(stored) < head:
            raise ImageFormatError("ends within a compressed grain")
        sector, size = GRAIN_MARKER.unpack_from(stored)
        if sector != at or not 0 < size <= 2 * self.cluster:
            raise ImageFormatError("has a damaged marker of a grain")
        missing = head + size - len(stored)
        if missing > 0:
            stored += os.pread(self._fd, missing, (place << 9) + len(stored))
            if len(stored) < head + size:
                raise ImageFormatError("ends within a compressed grain")
        return inflate(memoryview(stored)[head : head + size], self.cluster, wbits=15)

    def _inflate_unmarked(self, place: int, stored: bytes) -> bytes:
        rest = 2 * self.cluster - len(stored)
        stored += os.pread(self._fd, rest, (place << 9) + len(stored))
        return inflate(stored, self.cluster, wbits=15)

    # ---- what lies where ---------------------------------------------------------------------

    def _data_extents(self, place: int, sector: int, nb: int) -> Iterator[Extent]:
        yield Extent(sector, nb, "compressed")
