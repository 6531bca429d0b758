"""Which ranges of a disk hold data, read as zeroes, or come from a parent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from tapcore.disk import Disk
from tapcore.engine import MappedExtent


@attrs.frozen
class MapItem:
    """A run of bytes that are stored in one way; the meaning is that of `qemu-img map`.

    Attributes:
        start: bytes from the start of the disk.
        length: bytes.
        depth: 0 this image, 1 its parent, ...
        zero: reads as zeroes.
        data: stored as content.
        present: some image of the chain says what is here.
        compressed: stored, but not plain.
        offset: where it lies in `filename`, bytes; None where it does not lie plainly in a file.
        filename: the host file.
        missing: content that is not there, since the file ends before: the image is damaged.
    """

    start: int
    length: int
    depth: int
    zero: bool
    data: bool
    present: bool
    compressed: bool
    offset: int | None
    filename: str
    missing: bool = False

    def as_dict(self, image: str) -> dict[str, Any]:
        """The item of `map --json`; the host file is named where it is not the image itself."""
        item: dict[str, Any] = {
            "start": self.start,
            "length": self.length,
            "depth": self.depth,
            "present": self.present,
            "zero": self.zero,
            "data": self.data,
        }
        if self.offset is not None:
            item["offset"] = self.offset
            if self.filename != image:
                item["filename"] = self.filename
        if self.missing:
            item["missing"] = True
        return item


def map_disk(disk: Disk) -> Iterator[MapItem]:
    """The runs of a whole disk, in order, without gaps; none for an empty disk."""
    return map(_item, disk.extents())


def _item(extent: MappedExtent) -> MapItem:
    plain = bool(extent.filename) and extent.kind != "compressed" and not extent.missing
    return MapItem(
        start=extent.start,
        length=extent.length,
        depth=extent.depth,
        zero=extent.kind == "zero",
        data=extent.kind != "zero",
        present=extent.present,
        compressed=extent.kind == "compressed",
        offset=extent.offset if plain else None,
        filename=extent.filename if plain else "",
        missing=extent.missing,
    )
