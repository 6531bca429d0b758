"""What a file consists of, besides its blocks: each leads to the next."""

from __future__ import annotations

from itertools import pairwise

import attrs

from tap_vhdx.bat import ENTRY_BYTES
from tap_vhdx.headers import MIB, NOTHING, Headers, ReadAt, read_headers
from tap_vhdx.items import Disk, read_disk
from tap_vhdx.logreading import Replay, find_replay
from tap_vhdx.overlay import Overlay
from tap_vhdx.regions import Regions, read_regions
from tapcore import ImageFormatError


@attrs.define
class Layout:
    """A file's structures.

    Attributes:
        headers: of the file.
        overlay: what its log says that is not in its place.
        regions: of the file.
        disk: that it holds.
    """

    headers: Headers
    overlay: Overlay
    regions: Regions
    disk: Disk

    @property
    def places(self) -> list[tuple[int, int]]:
        """Where no block may lie: first byte, and first one behind."""
        return structure_places(self.headers, self.regions)


def structure_places(headers: Headers, regions: Regions) -> list[tuple[int, int]]:
    """Where the structures of a file lie: first byte, and first one behind."""
    header = headers.current
    log = (header.log_offset, header.log_offset + header.log_length)
    regions_there = [(each.offset, each.end) for each in regions.all]
    return sorted([(0, MIB), *([log] if header.log_length else []), *regions_there])


def pending(read: ReadAt, size: int, headers: Headers) -> Replay | None:
    """What a log says that is not in its place; None: nothing. Raises as `find_replay`."""
    if headers.current.log == NOTHING:
        return None
    return find_replay(read, size, headers.current)


def read_layout(read: ReadAt, size: int) -> Layout:
    """The structures of a file, as its log says.

    Args:
        read: reads the file.
        size: of the file, bytes.

    Raises:
        ImageFormatError: it is no VHDX, or one that cannot be.
        NotSupportedError: of a kind that is not known.
    """
    headers = read_headers(read)
    replay = pending(read, size, headers)
    overlay = replay.overlay() if replay else Overlay()

    def read_after(at: int, length: int) -> bytes:
        return overlay.patch(at, read(at, length))

    regions = read_regions(read_after)
    places = structure_places(headers, regions)
    if any(end > start for (_, end), (start, _) in pairwise(places)):
        raise ImageFormatError("has structures that lie over each other")
    for region in (regions.bat, regions.metadata):
        if region.end > max(size, replay.end if replay else 0):
            raise ImageFormatError("was cut: a region lies past the end of the file")
    disk = read_disk(read_after, regions.metadata)
    if disk.bat_entries * ENTRY_BYTES > regions.bat.length:
        raise ImageFormatError("has a block table that is too small for its disk")
    return Layout(headers, overlay, regions, disk)
