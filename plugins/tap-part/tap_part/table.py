"""Which table a disk has, and one partition of it."""

from __future__ import annotations

import logging

from tap_part import gpt, mbr
from tap_part.partition import Disk, Partition, chosen
from tapcore import ImageFormatError

log = logging.getLogger(__name__)


def find_partition(disk: Disk, number: int, unit: int | None, image: str) -> Partition:
    """A partition of a disk.

    Args:
        disk: with the table.
        number: as Linux counts them.
        unit: bytes of a sector of the table; None: a GPT tells it, and an MBR has 512.
        image: its name, for the log.

    Raises:
        ImageFormatError: there is no such partition, or the table is not to be trusted.
    """
    rows = mbr.entries_of(disk.read(0, 512)) if disk.size >= 512 else None
    found = unit or gpt.unit_of(disk)
    protective = rows is not None and any(row.kind == mbr.GPT_TYPE for row in rows)
    if protective:
        if found is None:
            raise ImageFormatError("its first sector speaks of a GPT, which is not there")
        _tell_of_hybrid(rows or [], image)
        return chosen(gpt.partitions(disk, found, image), number, disk.size)
    if rows is None or not any(row.used for row in rows):
        if unit is None and found is not None:
            text = "has a GPT, and nothing in its first sector that speaks of it; programs differ"
            raise ImageFormatError(f"{text} on such a disk")
        raise ImageFormatError("has no partition table")
    if gpt.unit_of(disk) is not None:
        log.warning("%s: has an old GPT besides its MBR, which is used", image)
    return chosen(mbr.partitions(disk, rows, unit or 512), number, disk.size)


def _tell_of_hybrid(rows: list[mbr.Entry], image: str) -> None:
    others = [row for row in rows if row.used and row.kind != mbr.GPT_TYPE]
    if others:
        log.warning("%s: has other partitions in its MBR than its GPT, which is used", image)
