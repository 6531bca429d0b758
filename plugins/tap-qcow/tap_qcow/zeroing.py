"""Zeroes and discards: the format has no mark for them, but the file can have holes."""

from __future__ import annotations

import errno
from typing import Any

from tap_qcow.content import Content
from tap_qcow.mapping import HOLE, PLAIN, ClusterMap, Run
from tap_qcow.runs import each_run
from tapcore import SECTOR_SHIFT, Answer, DiskDriver, TdCallback


class Zeroer:
    """The zeroes and discards of one image.

    Args:
        map: says where a sector lies.
        content: knows whether it is encrypted.
    """

    def __init__(self, map: ClusterMap, content: Content) -> None:
        self._map = map
        self._file = map.file
        self._content = content

    def _in_place(self, run: Run) -> bool:
        return run.kind == PLAIN and self._content.cipher is None

    def write_zeroes(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Zero what is stored plain, in its place; arguments and result are the hook's.

        What cannot be done (it would show a parent, is compressed or encrypted) is answered so.
        """
        answer = Answer(cb, dd, id, prv)
        bare = may_unmap and not self._map.header.backing_file

        def visit(run: Run) -> int:
            if self._in_place(run):
                then = answer.over(run.sector, run.nb_sectors)
                self._file.queue_zero(run.where, run.nb_sectors << SECTOR_SHIFT, may_unmap, then)
                return 0
            res = 0 if bare and run.kind == HOLE else -errno.EOPNOTSUPP
            return answer(res, run.sector, run.nb_sectors)

        return each_run(self._map, dd, sector, nb_sectors, visit, answer)

    def discard(
        self, dd: DiskDriver, sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
    ) -> int:
        """Give back what is stored plain; the clusters stay, and read as zeroes."""
        answer = Answer(cb, dd, id, prv)

        def visit(run: Run) -> int:
            if self._in_place(run):
                then = answer.over(run.sector, run.nb_sectors)
                self._file.queue_discard(run.where, run.nb_sectors << SECTOR_SHIFT, then)
                return 0
            return answer(0, run.sector, run.nb_sectors)

        return each_run(self._map, dd, sector, nb_sectors, visit, answer)
