"""Looking at a sparse file that is a whole disk, for `info`: nothing is made ready to be read.

Most VMDKs are such. Whatever is unusual about one is left to `openimage`, which finds words for it.
"""

from __future__ import annotations

import logging
import struct
from itertools import pairwise
from typing import Any, Final

from tap_vmdk.descriptor.disktypes import conflicting_size, own_sectors
from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.facts import Facts
from tap_vmdk.identity import identify, stands_alone
from tap_vmdk.sparse.header import SparseHeader
from tapcore import TD_RDONLY, DiskDriver, ImageFile, TapError, open_image_file

log = logging.getLogger(__name__)

_MOST_TABLES: Final = 1 << 18
"""Of a directory that is looked at here: 8 TiB in grains of 64 KiB."""


class _Whole:
    """All of a disk, in its own file.

    Args:
        line: as a descriptor would have it.
        cluster: bytes of a grain.
    """

    __slots__ = ("_line", "cluster")

    def __init__(self, line: ExtentLine, cluster: int) -> None:
        self._line = line
        self.cluster = cluster

    def describe(self) -> dict[str, Any]:
        """For `info`."""
        return {**self._line.describe(), "grain_size": self.cluster}


def look(dd: DiskDriver, name: str) -> bool:
    """Open an image for what it says of itself.

    Args:
        dd: as of `td_open`.
        name: as of `td_open`.

    Returns:
        Whether that was enough; else nothing is open, and nothing was said.
    """
    file = open_image_file(name, TD_RDONLY, dd.options)
    try:
        header = (facts := identify(file)).header
        if header is None or not _is_usual(facts, header):
            file.close()
            return False
    except (TapError, OSError):  # to be said with all that is known of it
        file.close()
        return False
    except BaseException:
        file.close()
        raise
    sectors = own_sectors(facts.descriptor, header.capacity, header.grain)
    facts.sectors = dd.size = sectors
    facts.parts = (_Whole(ExtentLine("RW", sectors, "SPARSE"), header.grain << 9),)
    dd.private, dd.cluster_size = facts, header.grain << 9
    if facts.descriptor is not None:
        for doubt in conflicting_size(facts.descriptor, header.capacity, header.grain):
            log.warning("%s: %s", name, doubt)
    return True


def _is_usual(facts: Facts, header: SparseHeader) -> bool:
    """Whether an image has all that an ordinary one has, and its grain directory is in order."""
    if not stands_alone(facts) or header.compressed or facts.place is None:
        return False
    return _names_tables(facts.file, header)


def _names_tables(file: ImageFile, header: SparseHeader) -> bool:
    """Whether the directory lies where it must, and names a table for each part of the disk, one
    behind the other: as it is made."""
    count, start = header.tables, header.gd_offset
    behind = max(1, header.descriptor_offset + header.descriptor_room)
    if not behind <= start <= file.size >> 9 or count > _MOST_TABLES:
        return False
    raw = file.read_metadata(start << 9, min(count << 2, file.size - (start << 9)))
    if len(raw) < count << 2:
        return False
    directory = struct.unpack(f"<{count}I", raw)
    return directory[0] > 0 and all(one < other for one, other in pairwise(directory))
