"""Reads: from the tables to the file, without waiting for either."""

from __future__ import annotations

from typing import Any

from tap_qcow.content import Content
from tap_qcow.inflater import Inflater
from tap_qcow.mapping import HOLE, MISSING, PLAIN, ClusterMap, Run
from tap_qcow.runs import each_run
from tapcore import (
    BLK_NOT_ALLOCATED,
    SECTOR_SHIFT,
    Answer,
    DiskDriver,
    TdCallback,
    content_damaged,
    content_missing,
)


class Reader:
    """The reads of one image.

    Args:
        map: says where a sector lies.
        content: moves that of plain clusters.
        inflater: reads compressed clusters.
    """

    def __init__(self, map: ClusterMap, content: Content, inflater: Inflater) -> None:
        self._map = map
        self._file = map.file
        self._content = content
        self._inflater = inflater

    def read(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """From the page cache at once, else later; arguments and result are the hook's."""
        where = self._map.place(sector, nb_sectors)
        if not where or self._content.cipher is not None:
            return self._read_runs(dd, sector, nb_sectors, buf, cb, id, prv)
        res = self._file.read_now(where, buf)
        if res is None:
            return self._file.queue_read(where, buf, (cb, dd, sector, nb_sectors, id, prv))
        return cb(dd, res, sector, nb_sectors, id, prv)

    def _read_runs(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        answer = Answer(cb, dd, id, prv)

        def visit(run: Run) -> int:
            start = (run.sector - sector) << SECTOR_SHIFT
            part = buf[start : start + (run.nb_sectors << SECTOR_SHIFT)]
            return self._read_run(run, part, answer)

        return each_run(self._map, dd, sector, nb_sectors, visit, answer)

    def _read_run(self, run: Run, part: memoryview, answer: Answer) -> int:
        kind, sector, nb_sectors, where = run
        if kind == PLAIN:
            return self._content.read(where, sector, part, answer.over(sector, nb_sectors))
        if kind == HOLE:
            return answer(BLK_NOT_ALLOCATED, sector, nb_sectors)
        if kind == MISSING:
            text = f"its cluster, at offset {where:#x}, lies past the end of the file"
            res = content_missing(answer.dd, sector, nb_sectors, part, text)
            return answer(res, sector, nb_sectors)
        return self._read_deflated(run, part, answer)

    def _read_deflated(self, run: Run, part: memoryview, answer: Answer) -> int:
        _, sector, nb_sectors, entry = run
        skip = (sector & self._map.geometry.sector_mask) << SECTOR_SHIFT

        def take(res: int, content: bytes) -> int:
            if not res:
                part[:] = memoryview(content)[skip : skip + len(part)]
            elif reason := self._inflater.reason(entry):
                content_damaged(answer.dd, sector, nb_sectors, reason)
            return answer(res, sector, nb_sectors)

        return self._inflater.fetch(entry, take)
