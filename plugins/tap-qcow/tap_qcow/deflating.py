"""Compressed writes: deflated in threads, some clusters at a time, and stored behind each other."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tap_qcow.claims import Claim, claim_of, first_claimed
from tap_qcow.tables import Table
from tap_qcow.writing import Write, put, with_table, write_in_table
from tapcore.deflate import deflate

if TYPE_CHECKING:
    from tapcore import DiskDriver

GROUP_SECTORS: Final = 128
"""So much (64 KiB), or one cluster, is compressed by one thread and written with one call."""


def write_compressed(request: Write, sector: int, nb_sectors: int) -> int:
    """Write whole clusters; returns how many requests were finished inside the call."""
    geometry = request.image.geometry
    end = sector + nb_sectors
    finished = 0
    while sector < end:
        index = sector >> geometry.table_shift
        table_end = (index + 1) << geometry.table_shift
        until = min(sector + max(GROUP_SECTORS, 1 << geometry.cluster_shift), end, table_end)
        finished += _write_group(request, index, sector, until)
        sector = until
    return finished


def _write_group(request: Write, index: int, sector: int, until: int) -> int:
    again = partial(_write_group, request, index, sector, until)

    def go_on(table: Table) -> int:
        image = request.image
        start = sector >> image.geometry.cluster_shift
        end = ((until - 1) >> image.geometry.cluster_shift) + 1
        claimed = first_claimed(image.claims, start, end)
        if claimed < end:
            claim = claim_of(image.claims, claimed)
            assert claim is not None
            claim.waiting.append(again)
            return 0
        first = start & image.geometry.entry_mask
        if any(table.entries[first : first + end - start]):  # space that is there is used
            return write_in_table(request, index, sector, until)
        _Group(request, Claim(image.claims, table, start, end), sector, until).deflate()
        return 0

    return with_table(
        request.image, index, go_on, again, lambda res: request.answer(res, sector, until)
    )


class _Group:
    """Clusters that are compressed and stored together.

    Args:
        request: they are a part of.
        claim: to them.
        sector: their first sector.
        until: the sector behind them.
    """

    def __init__(self, request: Write, claim: Claim, sector: int, until: int) -> None:
        self._request = request
        self._image = request.image
        self._claim = claim
        self._sector = sector
        self._until = until
        self._streams: list[bytes] = []
        self._entries: list[int] = []

    def deflate(self) -> None:
        """Compress in a thread; the rest follows from there."""
        answer = (self._deflated, self._request.dd, 0, 0, 0, None)
        self._image.file.queue_work(self._deflate, (), answer)

    def _bounds(self, number: int) -> tuple[int, int]:
        """First sector of a cluster of the group, and the sector behind it."""
        shift = self._image.geometry.cluster_shift
        start = self._sector + (number << shift)
        return start, min(start + (1 << shift), self._until)

    def _deflate(self) -> int:
        size = self._image.geometry.cluster_size
        for number in range(self._claim.end - self._claim.start):
            content = self._request.content(*self._bounds(number))
            if len(content) < size:  # the disk ends inside of it
                content = memoryview(bytes(content).ljust(size, b"\0"))
            self._streams.append(deflate(content))
        return 0

    def _deflated(
        self, dd: DiskDriver, res: int, sector: int, nb_sectors: int, id: int, prv: Any
    ) -> int:
        if res:
            return self._give_up(res)
        geometry = self._image.geometry
        smaller = [stream for stream in self._streams if len(stream) < geometry.cluster_size]
        try:
            offset = self._image.allocate_compressed(sum(map(len, smaller)))
        except OSError as exc:
            return self._give_up(-(exc.errno or errno.EIO))
        at = offset
        for stream in self._streams:
            if len(stream) < geometry.cluster_size:
                self._entries.append(geometry.compressed_entry(at, len(stream)))
                at += len(stream)
            else:
                self._entries.append(0)
        if not smaller:
            return self._stored(0)
        return self._put(offset, b"".join(smaller))

    def _put(self, offset: int, content: bytes) -> int:
        file = self._image.file
        if not file.direct:
            return put(self._request, offset, memoryview(content), self._stored)

        def work() -> int:
            file.write_metadata(offset, content)  # of any alignment
            return 0

        def written(dd: object, res: int, *_: Any) -> int:
            return self._stored(res)

        file.queue_work(work, (), (written, self._request.dd, 0, 0, 0, None))
        return 0

    def _stored(self, res: int) -> int:
        if res:
            return self._give_up(res)
        image = self._image
        first = self._claim.start & image.geometry.entry_mask
        if any(self._entries):
            image.tables.set(self._claim.table, first, self._entries)
        image.writeback.when_needed()
        finished = 0
        plain: list[tuple[int, int]] = []
        for number, entry in enumerate(self._entries):
            if entry:
                finished += self._request.answer(0, *self._bounds(number))
            else:
                plain.append(self._bounds(number))
        finished += self._claim.release()
        index = self._claim.table.index
        return finished + sum(write_in_table(self._request, index, *bounds) for bounds in plain)

    def _give_up(self, res: int) -> int:
        finished = self._request.answer(res, self._sector, self._until)
        return finished + self._claim.release()
