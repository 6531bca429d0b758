"""Compressed writes: packed in threads, some clusters at a time, and stored behind each other."""

from __future__ import annotations

from typing import Final

from tapcore.clusters.busy import Claim
from tapcore.clusters.map import PackingMap
from tapcore.clusters.runs import HOLE, AnswerPart
from tapcore.clusters.writing import Writer
from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import TapError
from tapcore.interface.answer import Then

GROUP_SECTORS: Final = 512
"""So much (256 KiB), or one cluster, is packed by one thread in one go, and stored by one call."""


def write_packed(
    writer: Writer, map: PackingMap, sector: int, buf: memoryview, answer: AnswerPart
) -> int:
    """Write whole clusters (the disk's last one may be cut), to be stored compressed.

    Args:
        writer: of the disk.
        map: of the same disk.
        sector: first sector.
        buf: content.
        answer: for parts of it.

    Returns:
        How many requests were finished inside the call.

    Raises:
        NotSupportedError: this image cannot hold compressed clusters.
    """
    map.check_packing()
    finished, first, stop = 0, sector, sector + (len(buf) >> SECTOR_SHIFT)
    most = max(GROUP_SECTORS, 1 << map.cluster_shift)
    while sector < stop:
        until = writer.disk.table_end(sector, min(sector + most, stop))
        part = buf[(sector - first) << SECTOR_SHIFT : (until - first) << SECTOR_SHIFT]
        finished += _Group(writer, map, sector, until, part, answer).start()
        sector = until
    return finished


class _Group(Claim):
    """Clusters that are packed together, all mapped by one table.

    Args:
        writer: of the disk.
        map: of the same disk.
        sector: their first sector.
        stop: first sector past them.
        buf: their content.
        answer: for parts of a request.
    """

    def __init__(
        self,
        writer: Writer,
        map: PackingMap,
        sector: int,
        stop: int,
        buf: memoryview,
        answer: AnswerPart,
    ) -> None:
        shift = map.cluster_shift
        super().__init__(sector >> shift, ((stop - 1) >> shift) + 1)
        self._writer = writer
        self._map = map
        self._sector = sector
        self._stop = stop
        self._buf = buf
        self._answer = answer
        self._packed: list[bytes] = []
        self._places: list[tuple[int, int]] = []  # number of the cluster, host offset

    def start(self) -> int:
        """Begin, now or when the clusters are free; returns how many requests were finished."""
        disk, busy, sector, stop = self._writer.disk, self._writer.busy, self._sector, self._stop
        claim = busy.at(sector) or busy.at(min(busy.free_until(sector, stop), stop - 1))
        if claim is not None:
            claim.waiting.append(self.start)
            return 0
        try:
            run = self._map.run_to_write(sector, stop)
            if run is None:
                disk.load(sector, stop, self.start, self._answer)
                return 0
        except (TapError, OSError) as exc:
            return self._answer(disk.failed(exc, sector, stop), sector, stop - sector)
        if not self._map.reuses_space and (run.kind != HOLE or run.end < stop):
            return self._writer.write(sector, stop, self._buf, self._answer)
        busy.take(self)
        self._map.file.queue_packing(self._pack, self._stored_or_not)
        return 0

    def _bounds(self, number: int) -> tuple[int, int]:
        """First sector of a cluster of the group, and the one past it."""
        start = self._sector + (number << self._map.cluster_shift)
        return start, min(start + (1 << self._map.cluster_shift), self._stop)

    def _between(self, start: int, stop: int) -> memoryview:
        first = self._sector
        return self._buf[(start - first) << SECTOR_SHIFT : (stop - first) << SECTOR_SHIFT]

    def _pack(self) -> int:
        """In a thread."""
        size = 1 << self._map.cluster_shift + SECTOR_SHIFT
        for number in range(self.end - self.first):
            content: bytes | memoryview = self._between(*self._bounds(number))
            if len(content) < size:  # the disk ends inside of it
                content = bytes(content).ljust(size, b"\0")
            packed = self._map.pack(content)
            self._packed.append(packed if len(packed) < size else b"")
        return 0

    def _stored_or_not(self, res: int) -> int:
        """They are packed, or could not be."""
        if not res:
            try:
                for number, packed in enumerate(self._packed):
                    if packed:
                        where = self._map.allocate_packed(self._bounds(number)[0], len(packed))
                        self._places.append((number, where))
            except (TapError, OSError) as exc:
                res = self._writer.disk.failed(exc, self._sector, self._stop)
        return self._finish(res) if res or not self._places else self._store()

    def _store(self) -> int:
        file, writes = self._map.file, self._joined()
        then: Then = self._finish
        if len(writes) == 1 and not file.direct:
            where, content = writes[0]
            res = file.write_now(where, memoryview(content))
            if res is not None:
                return then(res)

        def work() -> int:  # neighbours share pages, so this always goes through the page cache
            for where, content in writes:
                file.write_metadata(where, content)
            return 0

        file.queue_work(work, self._writer.disk.content.counted(then))
        return 0

    def _joined(self) -> list[tuple[int, bytes]]:
        writes: list[tuple[int, list[bytes]]] = []
        end = -1
        for number, where in self._places:
            if where != end:
                writes.append((where, []))
            writes[-1][1].append(self._packed[number])
            end = where + len(self._packed[number])
        return [(where, b"".join(parts)) for where, parts in writes]

    def _finish(self, res: int) -> int:
        finished = 0
        plain: list[tuple[int, int]] = []  # neighbours joined
        places = dict(self._places)
        for number in range(self.end - self.first):
            start, stop = self._bounds(number)
            if not res and number not in places:
                if plain and plain[-1][1] == start:
                    start = plain.pop()[0]
                plain.append((start, stop))
                continue
            failed = res or self._link(number, places[number])
            if failed and number in places:
                self._map.give_back_packed(places[number], len(self._packed[number]))
            finished += self._answer(failed, start, stop - start)
        finished += self._writer.busy.release(self)
        for start, stop in plain:
            finished += self._writer.write(start, stop, self._between(start, stop), self._answer)
        self._writer.writeback.when_needed()
        return finished

    def _link(self, number: int, where: int) -> int:
        start, stop = self._bounds(number)
        disk = self._writer.disk
        try:
            token = self._map.link_packed(start, where, len(self._packed[number]))
        except (TapError, OSError) as exc:
            return disk.failed(exc, start, stop)
        if disk.packed is not None:
            disk.packed.forget(token)
        return 0
