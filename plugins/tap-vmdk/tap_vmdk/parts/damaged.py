"""Parts of a damaged disk whose rest is wanted: the reads that want what is not there are told."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.parts.part import Part
from tap_vmdk.parts.plain import FlatReader
from tapcore import (
    DiskDriver,
    Extent,
    ImageFile,
    ImageFormatError,
    TapError,
    TdCallback,
    content_damaged,
)


def is_damage(exc: TapError) -> bool:
    """Whether an extent that cannot be opened is lost, and not just refused to us."""
    return isinstance(exc, ImageFormatError) or exc.errno in (errno.ENOENT, errno.EIO)


def lost_part(line: ExtentLine, start: int, why: str) -> Part:
    """An extent of which nothing can be read.

    Args:
        line: as the descriptor has it.
        start: its first sector on the disk.
        why: without the image's name.
    """
    reason = "its description says that it must not be used"
    return Part(line, start, LostReader(why), reason=reason)


def cut_part(line: ExtentLine, start: int, file: ImageFile) -> Part:
    """Content as it is, in a file that ends too early; arguments as of `flat_part`."""
    shift = line.offset - start
    there = start + max(file.size // 512 - line.offset, 0)
    why = f"its place lies past the end of its extent {file.path}"
    return Part(
        line,
        start,
        CutReader(FlatReader(file, shift), there, why),
        file=file,
        unit=file.sector_size,
        reason="its file is shorter than its description says",
    )


class LostReader:
    """Reads nothing.

    Args:
        why: is told of each read.
    """

    def __init__(self, why: str) -> None:
        self._why = why

    def read(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """Fails, and says why."""
        return cb(dd, content_damaged(dd, sector, nb, self._why), sector, nb, id, prv)

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """All of it is missing."""
        yield Extent(sector, nb, "compressed", missing=True)


class CutReader:
    """Reads the beginning of a part.

    Args:
        whole: reads what is there.
        there: the first sector of the disk that is not.
        why: is told of reads behind that.
    """

    def __init__(self, whole: FlatReader, there: int, why: str) -> None:
        self._whole = whole
        self._there = there
        self._why = why

    def read(
        self,
        dd: DiskDriver,
        sector: int,
        nb: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        """What is there, and an answer for what is not."""
        finished, there = 0, min(max(self._there - sector, 0), nb)
        if there:
            finished = self._whole.read(dd, sector, there, buf[: there << 9], cb, id, prv)
        if there < nb:
            sector, nb = sector + there, nb - there
            res = content_damaged(dd, sector, nb, self._why)
            finished += cb(dd, res, sector, nb, id, prv)
        return finished

    def extents(self, sector: int, nb: int) -> Iterator[Extent]:
        """As of a whole file; the rest is missing."""
        there = min(max(self._there - sector, 0), nb)
        if there:
            yield from self._whole.extents(sector, there)
        if there < nb:
            yield Extent(sector + there, nb - there, "data", missing=True)
