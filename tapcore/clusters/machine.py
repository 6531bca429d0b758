"""One map and all that moves its bytes: what the hooks of a driver with tables call."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

import attrs

from tapcore.clusters.extents import extents
from tapcore.clusters.map import ClusterMap, PackingMap, ShortWay, WritableMap
from tapcore.clusters.mapped import MappedDisk
from tapcore.clusters.reading import Reader
from tapcore.clusters.runs import ASK, AnswerPart
from tapcore.clusters.tablemap import WritableTableMap
from tapcore.clusters.writeback import Writeback
from tapcore.clusters.writing import Writer
from tapcore.clusters.zeroing import Zeroing
from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import NotSupportedError, TapError
from tapcore.files import ImageFile, open_image_file
from tapcore.interface.answer import Then
from tapcore.interface.extent import Extent
from tapcore.interface.models import DiskDriver

log = logging.getLogger(__name__)

_BEST: Final = 2 << 20
"""Bytes of a cluster of which it is best to write all at once. Of a larger one parts are as good,
since what nobody writes of it stays a hole of the file."""


class NotForDirect(TapError):
    """Content does not lie where O_DIRECT can read it; the message says why, after the name."""


class Clusters:
    """What an open image with a map is made of; the hooks want it at `dd.private.clusters`.

    Args:
        dd: the image in its chain.
        map: of the image, or of a part of it.
        start: where the map's sector 0 lies on the disk, sectors.

    Attributes:
        map: as given.
        data: the file that holds the content.
        disk: what reads and writes share.
        place: `map.place`, or what stands for it where content must not take the short way.
        place_to_write: `map.place_to_write`, or what stands for it; nothing is written here.
        busy: clusters that are being changed: where there are any, no write takes the short way.
        uses: counts who uses a place, where places are used again.
    """

    def __init__(self, dd: DiskDriver, map: ClusterMap, start: int = 0) -> None:
        self.map = map
        self.data = map.data
        self.disk = MappedDisk(dd, map, start)
        self._start = start
        self._files = (map.file,) if map.data is map.file else (map.file, map.data)
        for file in self._files:
            file.keeps_overflow = True
        self._reader = Reader(self.disk)
        self._counted = self.disk.content.counted
        self.uses = self.disk.content.in_flight if map.reuses_space else None
        self.place: ShortWay = _ask
        self.place_to_write: ShortWay = _ask
        self.busy: object = ()
        self.choose_ways()

    def choose_ways(self) -> None:
        """To be called after a change of what the short ways do not look at, as the cipher."""
        self.place = self._way(self.map.place) if self.map.cipher is None else _ask

    def _way(self, place: ShortWay) -> ShortWay:
        """A short way of the map, by the disk's sectors."""
        start = self._start
        return (lambda sector, count: place(sector - start, count)) if start else place

    def attach(self) -> None:
        """Tell the core the disk's size and units, and what to poll: for a map of a whole disk."""
        dd, map = self.disk.dd, self.map
        dd.size = map.sectors
        dd.sector_size = max(map.data.sector_size if map.data.direct else 512, dd.sector_size)
        size = 1 << map.cluster_shift + SECTOR_SHIFT
        dd.cluster_size = size if isinstance(map, PackingMap) else min(size, _BEST)
        for sid, file in enumerate(self._files):
            dd.io_fd[sid] = file.io_fd

    def queue_read(self, where: int, buf: memoryview, then: Then) -> int:
        """Read what `place` said that lies inside the file, later; returns 0."""
        return self.data.queue_read(where, buf, self._counted(then))

    def read(self, sector: int, nb_sectors: int, buf: memoryview, answer: AnswerPart) -> int:
        """As `td_queue_read`; `answer` is for parts of the range."""
        start, answer = self._own(sector, answer)
        return self._reader.read(start, start + nb_sectors, buf, answer)

    def _own(self, sector: int, answer: AnswerPart) -> tuple[int, AnswerPart]:
        """A sector of the disk, and an answer, by the map's own sectors."""
        if not self._start:
            return sector, answer
        base = self._start
        return sector - base, lambda res, at, count: answer(res, base + at, count)

    def extents(self, sector: int, nb_sectors: int) -> Iterator[Extent]:
        """As `td_extents`."""
        return extents(self.disk, sector - self._start, nb_sectors)

    def forget(self) -> None:
        """Compressed content was given up, and other content may come to its place."""
        if self.disk.packed is not None:
            self.disk.packed.forget()

    def submit(self) -> None:
        """As `td_submit`."""
        self.disk.submit()

    def reap(self, sid: int = 0) -> int:
        """As `td_do_callbacks`; what callbacks have queued is handed on too."""
        finished = self._files[sid].reap()
        self.submit()
        return finished

    def drain(self) -> None:
        """Wait until nothing is under way; what finishes in one file may begin something more."""
        self.submit()
        while any(file.in_flight for file in self._files):
            for file in self._files:
                file.drain()
            self.submit()

    def save(self) -> None:
        """Wait until nothing is under way."""
        self.drain()

    def close(self) -> None:
        """Save, and close the files in any case.

        Raises:
            OSError, TapError: not everything could be saved.
        """
        try:
            self.save()
        finally:
            self._close_files(*self._files)

    def _close_files(self, *files: ImageFile) -> None:
        if files:
            try:
                files[-1].close()
            finally:
                self._close_files(*files[:-1])


class WritableClusters(Clusters):
    """The same of an image that is written.

    Attributes:
        writing: the preparations for a first change have been made.
        writeback: of what changes.
    """

    map: WritableMap

    def __init__(self, dd: DiskDriver, map: WritableMap, start: int = 0) -> None:
        self.writing = False
        super().__init__(dd, map, start)
        self.map = map
        self.writeback = Writeback(self.disk, map)
        self._writer = Writer(self.disk, map, self._reader, self.writeback)
        self.busy = self._writer.busy.claims
        told = type(map).about_to_change is not WritableMap.about_to_change
        self._about_to_change = map.about_to_change if told else None
        self._clears_now = type(map).clear_now is not WritableMap.clear_now
        if isinstance(map, WritableTableMap):  # the table of a busy cluster stays in memory
            shift, any_in = map.table_shift, self._writer.busy.any_in
            map.tables.in_use = lambda index: any_in(index << shift, (index + 1) << shift)

    def choose_ways(self) -> None:
        """Those of writes, too."""
        super().choose_ways()
        plain = self.writing and self.map.cipher is None
        self.place_to_write = self._way(self.map.place_to_write) if plain else _ask

    def begin_writing(self) -> None:
        """Before the first change; raises as `WritableMap.begin_writing`."""
        if not self.writing:
            self.map.begin_writing()
            self.writing = True
            self.choose_ways()

    def stop_writing(self) -> None:
        """All is saved, or nothing is written any more: the next change has to begin again."""
        self.writing = False
        self.choose_ways()

    def _refuse(self, sector: int, nb_sectors: int) -> int:
        """-errno of why nothing may change now; 0: it may."""
        if self.map.full and (res := self.writeback.held_back()):
            return res
        if not self.writing:
            self.begin_writing()
        if self._about_to_change is not None:
            self._about_to_change(sector - self._start, nb_sectors)
        return 0

    def queue_write(self, where: int, buf: memoryview, then: Then) -> int:
        """Write where `place_to_write` said, later, while no cluster is busy; returns 0."""
        return self.data.queue_write(where, buf, self._counted(then))

    def write(self, sector: int, nb_sectors: int, buf: memoryview, answer: AnswerPart) -> int:
        """As `td_queue_write`."""
        if res := self._refuse(sector, nb_sectors):
            return res
        if self._start:
            sector, answer = self._own(sector, answer)
        return self._writer.write(sector, sector + nb_sectors, buf, answer)

    def write_packed(self, sector: int, buf: memoryview, answer: AnswerPart) -> int:
        """As `td_queue_write_compressed`."""
        if not isinstance(self.map, PackingMap):
            raise NotSupportedError("cannot hold compressed clusters")
        from tapcore.clusters.packing import write_packed

        if res := self._refuse(sector, len(buf) >> SECTOR_SHIFT):
            return res
        start, answer = self._own(sector, answer)
        return write_packed(self._writer, self.map, start, buf, answer)

    def write_zeroes(
        self, sector: int, nb_sectors: int, may_unmap: bool, answer: AnswerPart
    ) -> int:
        """As `td_queue_write_zeroes`."""
        return self._zero(sector, nb_sectors, answer, False, may_unmap)

    def discard(self, sector: int, nb_sectors: int, answer: AnswerPart) -> int:
        """As `td_queue_discard`."""
        return self._zero(sector, nb_sectors, answer, True, True)

    def _zero(
        self, sector: int, nb_sectors: int, answer: AnswerPart, discard: bool, may_unmap: bool
    ) -> int:
        if res := self._refuse(sector, nb_sectors):
            return res
        map = self.map
        if self._clears_now and not self.busy:
            first, mask = sector - self._start, (1 << map.unit_shift) - 1
            stop = first + nb_sectors
            try:
                whole = not first & mask and (not stop & mask or stop == map.sectors)
                if whole and map.clear_now(first, stop, discard, may_unmap):
                    if map.must_write_back:
                        self.writeback.when_needed()
                    return answer(0, sector, nb_sectors)
            except (TapError, OSError):
                pass  # it is met again, and told for the run that it is about
        if self._start:
            sector, answer = self._own(sector, answer)
        zeroing = Zeroing(self._writer, answer, discard=discard, may_unmap=may_unmap)
        return zeroing.run(sector, sector + nb_sectors)

    def flush(self, then: Then) -> int:
        """As `td_queue_flush`: content, then what names it, in a thread."""
        return self.writeback.flush(then) if self.writing else then(0)

    def save(self) -> None:
        """Bring everything to the disk and wait for it.

        Raises:
            OSError, TapError: it failed.
        """
        super().save()
        if self.writing:
            self.writeback.all_now()
            if res := self.writeback.failure_to_tell():
                raise OSError(-res, os.strerror(-res))


def _ask(sector: int, nb_sectors: int) -> int:
    return ASK


class Mapped(Protocol):
    """What `dd.private` has to be to be read."""

    @property
    def clusters(self) -> Clusters: ...


class WritableMapped(Protocol):
    """What it has to be to be written."""

    @property
    def clusters(self) -> WritableClusters: ...


M = TypeVar("M", bound=Mapped)
T = TypeVar("T")


def or_through_page_cache(dd: DiskDriver, name: str, opened: Callable[[], T]) -> T:
    """What `opened` returns; where that raises `NotForDirect`, by `dd.options` for the page cache.

    Args:
        dd: the image in its chain.
        name: path of its file.
        opened: opens it, and leaves nothing open if it raises.
    """
    try:
        return opened()
    except NotForDirect as exc:
        if dd.options.cache != "none":
            raise
        log.warning("%s: %s; using the page cache", name, exc.message)
        dd.options = attrs.evolve(dd.options, cache="writeback")
        return opened()


def open_mapped(
    dd: DiskDriver[M], name: str, flags: int, make: Callable[[DiskDriver[M], ImageFile], M]
) -> None:
    """As `td_open`, of an image of one file: what is made of it becomes `dd.private`.

    Args:
        dd: the image in its chain.
        name: path of the file.
        flags: `TD_RDONLY` or 0.
        make: reads the header, and makes the map and its `clusters`. What it raises as
            `NotForDirect` is no error: the file is opened again, through the page cache.
    """

    def opened() -> M:
        file = open_image_file(name, flags, dd.options)
        try:
            return make(dd, file)
        except BaseException:
            file.close()
            raise

    dd.private = or_through_page_cache(dd, name, opened)
    dd.private.clusters.attach()
