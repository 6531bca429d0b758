"""Reading grains that are stored compressed: inflated in threads, the last ones kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tap_vmdk.grains.inflater import Inflater
from tap_vmdk.grains.lookup import Grains
from tap_vmdk.grains.runs import RunReader
from tap_vmdk.sparse.entries import ZERO
from tapcore import DiskDriver, Extent, ImageFormatError, TdCallback

_KEPT_BYTES: Final = 4 << 20
"""Inflated grains that are kept for the reads that follow."""
_TASK_BYTES: Final = 256 << 10
"""So much is inflated by one task of a thread, of a read that is larger."""

_Piece = tuple[int, int, int, memoryview]
"""Of a grain: its place in the file (sectors), its first sector, bytes to skip, and the target."""


class CompressedReader:
    """Reads a part.

    Args:
        grains: of the part; their places are those of what is stored of them.
        markers: each grain is preceded by its sector and its compressed size.
    """

    def __init__(self, grains: Grains, *, markers: bool) -> None:
        size = grains.grain << 9
        self._grains = grains
        self._inflater = Inflater(grains.file, size, markers=markers)
        self._runs = RunReader(grains, self._read_data)
        self._kept: dict[int, bytes] = {}  # by place, the oldest first
        self._keep = max(_KEPT_BYTES // size, 1)
        self._task_grains = -(-_TASK_BYTES // size)

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
        grains = self._grains
        finished = 0
        task: list[_Piece] = []
        first = sector
        while nb:
            at = sector - grains.start
            place = grains.entry(sector)
            if place <= ZERO:
                finished += self._inflate_later(dd, task, first, sector, cb, id, prv)
                return finished + self._runs.read(dd, sector, nb, buf, cb, id, prv)
            skip = at & grains.grain_mask
            count = min(grains.grain - skip, nb)
            kept = self._kept.get(place)
            if kept is not None:
                finished += self._inflate_later(dd, task, first, sector, cb, id, prv)
                task, first = [], sector + count
                buf[: count << 9] = kept[skip << 9 : (skip + count) << 9]
                finished += cb(dd, 0, sector, count, id, prv)
            else:
                task.append((place, at - skip, skip << 9, buf[: count << 9]))
                if len(task) >= self._task_grains:
                    finished += self._inflate_later(dd, task, first, sector + count, cb, id, prv)
                    task, first = [], sector + count
            sector += count
            nb -= count
            buf = buf[count << 9 :]
        return finished + self._inflate_later(dd, task, first, sector, cb, id, prv)

    def _read_data(self, place: int, *request: Any) -> int:
        """A run that has no holes; where its grains are, the tables say again."""
        return self.read(*request)

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
        grains = self._grains

        def inflated(dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: Any) -> int:
            self._keep_some(found)
            for at, reason in damage:
                start = max(grains.start + at, sector)
                count = min(grains.start + at + grains.grain, sector + nb) - start
                res = grains.damaged(dd, start, count, reason)
            return cb(dd, res, sector, nb, id, prv)

        answer = (inflated, dd, first, end - first, id, prv)
        grains.file.queue_work(self._inflate_all, (task, found, damage), answer)
        return 0

    def _keep_some(self, found: list[tuple[int, bytes]]) -> None:
        kept = self._kept
        for place, content in found:
            kept[place] = content
        while len(kept) > self._keep:
            del kept[next(iter(kept))]

    def _inflate_all(
        self,
        task: list[_Piece],
        found: list[tuple[int, bytes]],
        damage: list[tuple[int, str]],
    ) -> int:
        """In a thread."""
        for place, at, skip, target in task:
            try:
                content = self._inflater.content(place, at)
            except ImageFormatError as exc:
                damage.append((at, f"{exc.message}, at sector {place} of the file"))
                continue
            if len(content) < skip + len(target):
                damage.append((at, f"its grain, at sector {place} of the file, is too short"))
                continue
            target[:] = memoryview(content)[skip : skip + len(target)]
            found.append((place, content))
        return 0

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """From the tables."""

        def data(place: int, sector: int, nb: int) -> Iterator[Extent]:
            yield Extent(sector, nb, "compressed")

        return self._grains.extents(sector, nb, data)
