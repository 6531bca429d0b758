"""What a cluster holds around a write that does not cover it: read before it is written anew."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tap_qcow2.tables import mapping
from tapcore import SECTOR_SHIFT, ImageFormatError, TapError, content_damaged

if TYPE_CHECKING:
    from tap_qcow2.image import Image
    from tap_qcow2.tables.l2tables import Table


class Fill:
    """Fills parts of a buffer with what the disk shows there, its parents included.

    Args:
        image: open.
        done: called with 0 or -errno when all parts are there; returns how many requests it
            completed.
    """

    __slots__ = ("_done", "_image", "_open", "_status")

    def __init__(self, image: Image, done: Callable[[int], int]) -> None:
        self._image = image
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
                    run = (
                        mapping.Run(mapping.UNALLOCATED, start, end - start, 0)
                        if table is None
                        else mapping.run_at(self._image, table, start, end)
                    )
                    at = (start - first) << SECTOR_SHIFT
                    self._read(run, view[at : at + (run.nb_sectors << SECTOR_SHIFT)])
                    start += run.nb_sectors
        except ImageFormatError as exc:  # what has begun must finish first
            status = content_damaged(self._image.dd, start, end - start, exc.message)
            self._image.mark_corrupt(exc.message, told=True)
        return self._one_less(status)

    def _read(self, run: mapping.Run, view: memoryview) -> None:
        image = self._image
        self._open += 1
        answer = (self._answered, image.dd, run.sector, run.nb_sectors, 0, None)
        try:
            if run.kind == mapping.DATA:
                image.read_data(run.where, view, answer)
            elif run.kind == mapping.COMPRESSED:
                image.inflater.read(run, view, answer)
            elif run.kind == mapping.ZERO or image.dd.next is None:
                view[:] = bytes(len(view))
                self._open -= 1
            else:
                assert image.dd.td_state is not None
                assert image.dd.td_state.blkif is not None
                image.dd.td_state.blkif.read_below(image.dd, run.sector, view, self._from_below)
        except (TapError, OSError) as exc:
            self._open -= 1
            self._status = self._status or -(exc.errno or errno.EIO)

    def _answered(self, dd: object, res: int, *_: Any) -> int:
        return self._one_less(res)

    def _from_below(self, request: Any) -> None:
        self._one_less(request.status)
        self._image.submit()  # this may come from a parent's hook, and nobody submits here

    def _one_less(self, res: int) -> int:
        self._status = self._status or res
        self._open -= 1
        return 0 if self._open else self._done(self._status)


def shows_zeroes(image: Image, table: Table | None, ranges: list[tuple[int, int]]) -> bool:
    """Whether ranges of sectors are known to read as zeroes, without a look into any parent."""
    parent = image.dd.next
    for start, end in ranges:
        while start < end:
            run = (
                mapping.Run(mapping.UNALLOCATED, start, end - start, 0)
                if table is None
                else mapping.run_at(image, table, start, end)
            )
            below = parent is not None and start < parent.size
            if run.kind not in (mapping.ZERO, mapping.UNALLOCATED):
                return False
            if run.kind == mapping.UNALLOCATED and below:
                return False
            start += run.nb_sectors
    return True
