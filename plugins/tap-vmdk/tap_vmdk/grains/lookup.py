"""The grains of a part, by sectors of the disk; tables that are not in memory are loaded."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from tap_vmdk.sparse.entries import HOLE, ZERO
from tap_vmdk.sparse.grainmap import DAMAGED, GrainMap
from tap_vmdk.sparse.missing import lost_grains, why_damaged
from tapcore import DiskDriver, Extent, ImageFormatError, TdCallback, content_damaged


class Grains:
    """Where the content of a part lies.

    Args:
        map: of the file's grains.
        start: the part's first sector on the disk.
        end: first sector past it.

    Attributes:
        map: as given.
        start: as given.
        end: as given.
        file: that the grains lie in.
        grain: sectors of one.
        table_shift: from a sector of the file's disk to the number of its table.
        grain_shift: from such a sector to the number of its grain.
        grain_mask: of its number inside its grain.
        entry_mask: of a grain's number inside its table.
    """

    def __init__(self, map: GrainMap, start: int, end: int) -> None:
        self.map = map
        self.start = start
        self.end = end
        self.file = map.file
        self.grain = map.layout.grain
        self.table_shift = map.table_shift
        self.grain_shift = map.grain_shift
        self.grain_mask = map.grain_mask
        self.entry_mask = map.entry_mask

    def run(self, sector: int, nb: int) -> tuple[int, int] | None:
        """As `GrainMap.run`."""
        return self.map.run(sector - self.start, nb)

    def entry(self, sector: int) -> int:
        """The entry of a grain, `HOLE` where its table is not in memory, or it cannot be true."""
        at = sector - self.start
        index, number = at >> self.table_shift, (at >> self.grain_shift) & self.entry_mask
        table = self.map.tables.get(index)
        if table is not None:
            return table[number]
        table = self.map.damaged.get(index)
        place = HOLE if table is None else table[number]
        return place if self.map.place_possible(place) else HOLE

    # ---- tables that have to be waited for --------------------------------------------------

    def load(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        then: TdCallback,
        id: int,
        prv: Any,
    ) -> None:
        """Load the table of a sector in a thread, and call `then`."""
        index = (sector - self.start) >> self.table_shift
        generation = self.map.generation
        found: list[array[int]] = []
        damage: list[ImageFormatError] = []

        def work() -> int:
            try:
                found.append(self.map.read(index))
            except ImageFormatError as exc:
                damage.append(exc)
            return 0

        def loaded(dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: Any) -> int:
            if damage:
                res = self.failed(damage[0], dd, sector, nb)
            elif not res and generation == self.map.generation:
                self.map.install(index, found[0])
            return then(dd, res, sector, nb, id, prv)

        self.file.queue_work(work, (), (loaded, dd, sector, nb, id, prv))

    def load_and(
        self,
        again: Callable[..., int],
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> None:
        """The same, and go on with a read or a write: `again` with its arguments."""

        def then(dd: DiskDriver, res: int, sector: int, nb: int, id: int, prv: Any) -> int:
            if res:
                return cb(dd, res, sector, nb, id, prv)
            return again(dd, sector, nb, buf, cb, id, prv)

        self.load(dd, sector, nb, then, id, prv)

    # ---- damage -----------------------------------------------------------------------------

    def failed(self, exc: Exception, dd: DiskDriver, sector: int, nb: int) -> int:
        """-errno of a request that an exception has ended; damage is noted for its sectors."""
        if isinstance(exc, ImageFormatError):
            return self.damaged(dd, sector, nb, exc.message)
        return -(getattr(exc, "errno", None) or errno.EIO)

    def damaged(self, dd: DiskDriver, sector: int, nb: int, reason: str) -> int:
        """Note damage; returns -EIO."""
        return content_damaged(dd, sector, nb, self.told(dd, reason))

    def told(self, dd: DiskDriver, reason: str) -> str:
        """A reason with the file, where that is not the disk's own."""
        path = self.file.path
        return reason if path == dd.name else f"its extent {path}: {reason}"

    def why_damaged(self, sector: int) -> tuple[str, bool]:
        """Of a sector whose run is `DAMAGED`: the reason, and whether the file is too short."""
        return why_damaged(self.map, sector - self.start)

    def lost(self) -> Iterator[tuple[int, int]]:
        """What lies past the end of the file: (sector of the disk, sector of the file)."""
        return ((self.start + at, place) for at, place in lost_grains(self.map))

    # ---- what lies where --------------------------------------------------------------------

    def runs(self, sector: int, nb: int) -> Iterator[tuple[int, int, int]]:
        """The runs of a range as (place, sector, sectors); waits for tables.

        A table that the directory hides is `DAMAGED`.
        """
        end = sector + nb
        while sector < end:
            at = sector - self.start
            index = at >> self.table_shift
            last = (end - self.start - 1) >> self.table_shift
            if empty := self.map.empty_tables(index, last + 1):
                count = min(((index + empty) << self.table_shift) - at, end - sector)
                yield HOLE, sector, count
                sector += count
                continue
            try:
                self.map.table(index)
                run = self.map.run(at, end - sector)
                assert run is not None
                place, count = run
            except ImageFormatError:
                place = DAMAGED
                count = (((at >> self.table_shift) + 1) << self.table_shift) - at
                count = min(count, end - sector)
            yield place, sector, count
            sector += count

    def extents(
        self, sector: int, nb: int, data: Callable[[int, int, int], Iterator[Extent]]
    ) -> Iterator[Extent]:
        """From the tables.

        Args:
            sector: of the disk.
            nb: sectors.
            data: what grains hold that are there, by their place, first sector and sectors.
        """
        for place, first, count in self.runs(sector, nb):
            if place == HOLE:
                yield Extent(first, count, "unallocated")
            elif place == ZERO:
                yield Extent(first, count, "zero")
            elif place == DAMAGED:
                _, missing = self.why_damaged(first)
                yield Extent(first, count, "compressed", missing=missing)
            else:
                yield from data(place, first, count)
