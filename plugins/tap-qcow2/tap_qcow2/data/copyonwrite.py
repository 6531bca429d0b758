"""What a cluster holds around a write that does not cover it: read before it is written anew."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tap_qcow2.data.clusters import Clusters
from tap_qcow2.ondisk.entries import COMPRESSED, DATA, UNALLOCATED, ZERO
from tap_qcow2.tables.l2tables import Table
from tap_qcow2.tables.mapping import Run, run_at
from tapcore import SECTOR_SHIFT, ImageFormatError, TapError


class Fill:
    """Fills parts of a buffer with what the disk shows there, its parents included.

    Args:
        clusters: of the disk.
        done: called with 0 or -errno when all parts are there; returns how many requests it
            completed.
    """

    __slots__ = ("_clusters", "_done", "_open", "_status")

    def __init__(self, clusters: Clusters, done: Callable[[int], int]) -> None:
        self._clusters = clusters
        self._done = done
        self._open = 1  # until `start` has asked for everything
        self._status = 0

    def start(
        self, table: Table | None, ranges: list[tuple[int, int]], first: int, view: memoryview
    ) -> int:
        """Begin.

        Args:
            table: that maps the ranges; None where no table does.
            ranges: [start, end) in sectors, inside the disk's clusters.
            first: sector that `view` begins with.
            view: where the content goes.

        Returns:
            How many requests were completed, if everything was there at once.
        """
        status = 0
        try:
            for start, end in ranges:
                while start < end:
                    run = run_at(self._clusters.decoder, table, start, end)
                    at = (start - first) << SECTOR_SHIFT
                    self._read(run, view[at : at + (run.nb_sectors << SECTOR_SHIFT)])
                    start += run.nb_sectors
        except ImageFormatError as exc:  # what has begun must finish first
            status = self._clusters.failure_of(exc, start, end - start)
        return self._one_less(status)

    def _read(self, run: Run, view: memoryview) -> None:
        clusters, dd = self._clusters, self._clusters.dd
        self._open += 1
        try:
            if run.kind == DATA:
                clusters.host.read(run.where, view, run.sector, self._answered)
            elif run.kind == COMPRESSED:
                clusters.inflater.read(run, view, self._answered)
            elif run.kind == ZERO or dd.next is None:
                view[:] = bytes(len(view))
                self._open -= 1
            else:
                assert dd.td_state is not None
                assert dd.td_state.blkif is not None
                dd.td_state.blkif.read_below(dd, run.sector, view, self._from_below)
        except (TapError, OSError) as exc:
            self._open -= 1
            self._status = self._status or -(exc.errno or errno.EIO)

    def _answered(self, res: int, *_: int) -> int:
        return self._one_less(res)

    def _from_below(self, request: Any) -> None:
        self._one_less(request.status)
        self._clusters.submit()  # this may come from a parent's hook, and nobody submits here

    def _one_less(self, res: int) -> int:
        self._status = self._status or res
        self._open -= 1
        return 0 if self._open else self._done(self._status)


def shows_zeroes(clusters: Clusters, table: Table | None, ranges: list[tuple[int, int]]) -> bool:
    """Whether ranges of sectors are known to read as zeroes, without a look into any parent.

    Raises:
        ImageFormatError: a table entry is not possible.
    """
    for start, end in ranges:
        while start < end:
            run = run_at(clusters.decoder, table, start, end)
            if run.kind not in (ZERO, UNALLOCATED):
                return False
            if run.kind == UNALLOCATED and not nothing_below(clusters, start):
                return False
            start += run.nb_sectors
    return True


def nothing_below(clusters: Clusters, sector: int) -> bool:
    """Whether a sector that is not allocated here is zero, whatever happens to the parent."""
    parent = clusters.dd.next
    return parent is None or sector >= parent.size
