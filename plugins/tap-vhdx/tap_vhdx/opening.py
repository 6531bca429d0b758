"""Opening an image: the log is replayed, into the file or over what is read of it."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

from tap_vhdx.headers import MIB, NOTHING
from tap_vhdx.image import Image
from tap_vhdx.layout import Layout, pending, read_layout
from tap_vhdx.regions import TABLE_BYTES, TABLES_AT
from tapcore import DiskDriver, ImageFile, NotSupportedError
from tapcore.clusters import open_mapped

log = logging.getLogger(__name__)


def open_image(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """As `td_open`."""
    open_mapped(dd, name, flags, _image)


def _image(dd: DiskDriver[Any], file: ImageFile) -> Image:
    layout = read_layout(file.read_metadata, file.size)
    if not dd.read_only and layout.headers.current.log != NOTHING:
        replay(file, layout)
        layout = read_layout(file.read_metadata, file.size)
    for damage in (layout.headers.damage, layout.regions.damage):
        if damage:
            log.warning("%s: its %s", file.path, damage)
    dd.sector_size = layout.disk.logical
    image = Image(dd, file, layout)
    _check_overlay(image)
    return image


def replay(file: ImageFile, layout: Layout) -> None:
    """Bring what the log says to its places; it is empty then, on disk when this returns.

    Raises:
        ImageFormatError, NotSupportedError: as `find_replay`.
        OSError: as the system says; the log is as it was.
    """
    found = pending(file.read_metadata, file.size, layout.headers)
    if found is not None:
        log.info("%s: its log is replayed", file.path)
        found.write(file)
    layout.headers.change(file, file_write=uuid4(), log=NOTHING)


def _check_overlay(image: Image) -> None:
    """Whether all that the log says is looked at where it is laid over the file: not content.

    Raises:
        NotSupportedError: it is not.
    """
    overlay, regions = image.layout.overlay, image.layout.regions
    places = [(at, at + TABLE_BYTES) for at in TABLES_AT]
    places += [(each.offset, each.end) for each in (regions.bat, regions.metadata)]

    def strange() -> list[tuple[int, int]]:
        ranges = zip(overlay.starts, overlay.ends, strict=True)
        return [
            each
            for each in ranges
            if not any(start <= each[0] and each[1] <= end for start, end in places)
        ]

    if strange():
        places += [(place, place + MIB) for _, place in image.pages.bitmaps()]
    if strange():
        raise NotSupportedError(
            "has a log that changes what its disk holds: it has to be replayed, by opening it for "
            "writing or by check --repair"
        )
