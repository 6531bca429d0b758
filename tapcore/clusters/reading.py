"""Reads: run by run, from the map to the file, without waiting for either."""

from __future__ import annotations

from functools import partial

from tapcore.clusters.mapped import MappedDisk
from tapcore.clusters.runs import DATA, PACKED, ZERO, AnswerPart, MissingContent, Run
from tapcore.constants import BLK_NOT_ALLOCATED, SECTOR_SHIFT
from tapcore.errors import ImageFormatError, TapError


class Reader:
    """Reads of one disk.

    Args:
        disk: that is read.
    """

    __slots__ = ("_disk",)

    def __init__(self, disk: MappedDisk) -> None:
        self._disk = disk

    def read(self, sector: int, stop: int, buf: memoryview, answer: AnswerPart) -> int:
        """Read a range, of which each part is answered once, now or later.

        Args:
            sector: first sector.
            stop: first sector past it.
            buf: its content's place.
            answer: gets BLK_NOT_ALLOCATED for holes.

        Returns:
            How many requests were finished inside this call.
        """
        disk, first, finished = self._disk, sector, 0
        while sector < stop:
            rest = buf[(sector - first) << SECTOR_SHIFT :]
            try:
                run = disk.map.run(sector, stop)
            except (TapError, OSError) as exc:
                until = disk.concerns(exc, sector, stop)
                part = rest[: (until - sector) << SECTOR_SHIFT]
                res = disk.unreadable(exc, sector, part)
                finished += answer(res, sector, until - sector)
            else:
                if run is None:
                    until = disk.table_end(sector, stop)
                    part = rest[: (until - sector) << SECTOR_SHIFT]
                    again = partial(self.read, sector, until, part, answer)
                    disk.load(sector, until, again, answer)
                else:
                    until = run.end
                    part = rest[: run.nb_sectors << SECTOR_SHIFT]
                    finished += self._read_run(run, part, answer)
            sector = until
        return finished

    def _read_run(self, run: Run, buf: memoryview, answer: AnswerPart) -> int:
        kind, sector, nb_sectors, where, _ = run
        if kind == DATA:
            if where + len(buf) > self._disk.map.data.size:
                return self._read_end(run, buf, answer)
            then = _over(answer, sector, nb_sectors)
            return self._disk.content.read(where, sector, buf, then)
        if kind == PACKED:
            return self._read_packed(run, buf, answer)
        if kind == ZERO:
            buf[:] = bytes(len(buf))
            return answer(0, sector, nb_sectors)
        return answer(BLK_NOT_ALLOCATED, sector, nb_sectors)

    def _read_end(self, run: Run, buf: memoryview, answer: AnswerPart) -> int:
        """Of content that reaches past the end of its file: what is there."""
        disk = self._disk
        there = disk.content.bytes_there(run)
        if there < len(buf):
            res = disk.missing(run, there, buf[there:])
            if res or not there:
                return answer(res, run.sector, run.nb_sectors)
        then = _over(answer, run.sector, run.nb_sectors)
        return disk.content.read(run.where, run.sector, buf[:there], then)

    def _read_packed(self, run: Run, buf: memoryview, answer: AnswerPart) -> int:
        disk, packed = self._disk, self._disk.packed
        assert packed is not None
        whole = len(buf) == 1 << disk.shift + SECTOR_SHIFT
        if whole and packed.read_whole(run, buf, answer, self._not_unpacked) == 0:
            return 0
        skip = (run.sector & disk.mask) << SECTOR_SHIFT

        def take(found: bytes | Exception) -> int:
            if isinstance(found, Exception):
                return self._not_unpacked(found, run, buf, answer)
            buf[:] = memoryview(found)[skip : skip + len(buf)]
            return answer(0, run.sector, run.nb_sectors)

        return packed.fetch(run.where, take, whole=whole)

    def _not_unpacked(self, found: Exception, run: Run, buf: memoryview, answer: AnswerPart) -> int:
        """Why a compressed cluster has no content."""
        if isinstance(found, ImageFormatError) and not isinstance(found, MissingContent):
            res = self._disk.damaged(found.message, run.sector, run.end)
        else:
            res = self._disk.unreadable(found, run.sector, buf)
        return answer(res, run.sector, run.nb_sectors)


def _over(answer: AnswerPart, sector: int, nb_sectors: int) -> partial[int]:
    return partial(_answer_over, answer, sector, nb_sectors)


def _answer_over(answer: AnswerPart, sector: int, nb_sectors: int, res: int) -> int:
    return answer(res, sector, nb_sectors)
