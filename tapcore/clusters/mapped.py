"""The disk of one map: its content, what it says of damage, and what lies below it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tapcore.clusters.content import Content
from tapcore.clusters.map import ClusterMap
from tapcore.clusters.packed import PackedContent
from tapcore.clusters.runs import AnswerPart, DamagedTable, MissingContent, Run
from tapcore.constants import SECTOR_SHIFT
from tapcore.errors import ImageFormatError
from tapcore.interface.damage import content_damaged, content_missing
from tapcore.interface.models import DiskDriver


class MappedDisk:
    """What reads and writes of one map share.

    Args:
        dd: the image in its chain.
        map: of the image, or of a part of it.
        start: where the map's sector 0 lies on the disk, sectors.

    Attributes:
        dd: as given.
        map: as given.
        start: as given.
        shift: log2 of a cluster's sectors.
        mask: of a sector's number inside its cluster.
        content: of the image.
        packed: its compressed clusters; None where there can be none.
    """

    __slots__ = ("content", "dd", "map", "mask", "packed", "shift", "start")

    def __init__(self, dd: DiskDriver, map: ClusterMap, start: int = 0) -> None:
        self.dd = dd
        self.map = map
        self.start = start
        self.shift = map.cluster_shift
        self.mask = (1 << map.cluster_shift) - 1
        self.content = Content(map)
        self.packed: PackedContent | None = None
        if map.unpacker is not None:
            size = 1 << map.cluster_shift + SECTOR_SHIFT
            self.packed = PackedContent(map.file, map.unpacker, size, self.content.counted)

    def submit(self) -> None:
        """Hand what was queued to the kernel, and compressed clusters to a thread."""
        if self.packed is not None:
            self.packed.submit()
        self.map.data.submit()
        if self.map.file is not self.map.data:
            self.map.file.submit()

    # ---- tables -----------------------------------------------------------------------------

    def load(self, sector: int, stop: int, again: Callable[[], int], answer: AnswerPart) -> None:
        """Read the table that a range needs, and go on; or answer why that cannot be."""

        def loaded(failed: Exception | None) -> int:
            if failed is None:
                return again()
            return answer(self.failed(failed, sector, stop), sector, stop - sector)

        self.map.load(sector, loaded)

    def table_end(self, sector: int, stop: int) -> int:
        """The first sector, up to `stop`, that another table maps than that of a sector."""
        shift = self.map.table_shift
        return min(((sector >> shift) + 1) << shift, stop)

    # ---- what is wrong ----------------------------------------------------------------------

    def concerns(self, exc: Exception, sector: int, stop: int) -> int:
        """Up to which sector nothing can be told, when `map.run` has raised."""
        if isinstance(exc, DamagedTable):
            return self.table_end(sector, stop)
        return min((sector | self.mask) + 1, stop) if isinstance(exc, ImageFormatError) else stop

    def failed(self, exc: Exception, sector: int, stop: int) -> int:
        """-errno to be answered for a range; damage is noted, and the map told of it."""
        if isinstance(exc, ImageFormatError):
            res = self.damaged(exc.message, sector, stop)
            self.map.found_damage(exc.message)
            return res
        return -(getattr(exc, "errno", 0) or errno.EIO)

    def damaged(self, reason: str, sector: int, stop: int) -> int:
        """Note damage of content; returns -EIO."""
        reason = self.map.located(reason)
        return content_damaged(self.dd, self.start + sector, stop - sector, reason)

    def unreadable(self, exc: Exception, sector: int, buf: memoryview) -> int:
        """As `failed`, of a range that was to be read: what is missing may read as zeroes."""
        stop = sector + (len(buf) >> SECTOR_SHIFT)
        if not isinstance(exc, MissingContent):
            return self.failed(exc, sector, stop)
        reason = self.map.located(exc.message)
        return content_missing(self.dd, self.start + sector, stop - sector, buf, reason)

    def missing(self, run: Run, there: int, buf: memoryview) -> int:
        """A run of DATA lies past the end of its file, but for the first bytes of it.

        Args:
            run: of the disk.
            there: bytes of it that are there, whole sectors.
            buf: place of what is not; filled where zeroes are to be answered.

        Returns:
            0 or -errno, for what is not there.
        """
        map, skip = self.map, there >> SECTOR_SHIFT
        file = "file" if map.data is map.file else f"data file {map.data.path}"
        text = f"its cluster, at offset {run.where + there:#x}, lies past the end of the {file}"
        sector, count = self.start + run.sector + skip, run.nb_sectors - skip
        return content_missing(self.dd, sector, count, buf, map.located(text))

    # ---- the parents ------------------------------------------------------------------------

    def below(self, sector: int, stop: int) -> int:
        """Up to which sector of a range a parent may hold what is a hole here."""
        parent = self.dd.next
        if parent is None:
            return sector
        end = parent.size - self.start
        return stop if end >= stop else end if end > sector else sector

    def before_giving_up(self) -> None:
        """Tell whoever reads from the file past the driver that places will be used again."""
        blkif = self.dd.td_state.blkif
        if blkif is not None:
            blkif.before_giving_up()

    def read_below(self, sector: int, buf: memoryview, then: Callable[[int], int]) -> None:
        """Read what the parents hold; `then` is called with 0 or -errno."""

        def done(request: Any) -> None:
            then(request.status)
            self.submit()  # this may come from a parent's hook, and nobody submits here

        blkif = self.dd.td_state.blkif
        assert blkif is not None
        blkif.read_below(self.dd, self.start + sector, buf, done)
