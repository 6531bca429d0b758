"""Another parent, none, or no content any more."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from uuid import uuid4

import attrs

from tap_vhdx.bat import ENTRY_BYTES, PARTIAL, PLACE, PRESENT, STATE, Page
from tap_vhdx.bits import is_set, same_bits_until
from tap_vhdx.image import Image
from tap_vhdx.items import (
    FILE_PARAMETERS,
    HAS_PARENT,
    PARENT_LOCATOR,
    TABLE_BYTES,
    moved_item,
    without_item,
)
from tap_vhdx.locator import LINKAGE, OTHER_LINKAGE, pack_locator, read_locator
from tap_vhdx.moving import cut
from tap_vhdx.parents import new_parent
from tap_vhdx.survey import survey
from tapcore import SECTOR_SHIFT, DiskDriver, DiskId, NotSupportedError, UsageError
from tapcore.clusters import Write


def set_parent(image: Image, parent: DiskId | None) -> None:
    """As `td_set_parent`.

    Raises:
        NotSupportedError: an image that is not a differencing one cannot have a parent.
        UsageError: it is no VHDX, or one with sectors of another size.
        OSError: as the system says.
    """
    if not image.differs:
        raise NotSupportedError("is a VHDX that cannot have a parent: only differencing ones can")
    image.clusters.save()
    if parent is None:
        _stand_alone(image)
        return
    below = new_parent(image.file.path, parent)
    if below.disk.logical != image.layout.disk.logical:
        raise UsageError(f"the parent has sectors of {below.disk.logical} bytes")
    _record(image, read_locator(below.locator))


def before_commit(child: Image, parent: DiskDriver) -> None:
    """As `td_before_commit`: for a moment the child takes its parent as it was, and as it is to be.

    Raises:
        OSError, TapError: as the system says; the child takes its parent.
    """
    image = parent.private
    if not isinstance(image, Image) or image.log.told:
        return
    assert child.layout.disk.locator is not None
    pairs, changed = read_locator(child.layout.disk.locator), uuid4()
    _record(child, pairs | {OTHER_LINKAGE: f"{{{changed}}}"})
    image.log.begin(data_write=changed)
    _record(child, pairs | {LINKAGE: f"{{{changed}}}"})


def _record(image: Image, pairs: Mapping[str, str]) -> None:
    """Let an image say this of its parent, on disk when this returns."""
    disk, region = image.layout.disk, image.layout.regions.metadata
    locator = pack_locator(pairs)
    table = image.file.read_metadata(region.offset, TABLE_BYTES)
    entry, at = moved_item(table, PARENT_LOCATOR, len(locator))
    if at + len(locator) > region.length:
        raise NotSupportedError("has no room for what is to be said of its parent")
    where = struct.pack("<II", at, len(locator))
    writes = [(region.offset + at, locator), (region.offset + entry, where)]
    image.log.commit(writes, content=False)
    image.layout.disk = attrs.evolve(disk, locator=locator)


def _stand_alone(image: Image) -> None:
    """What is not stored reads as zeroes from now on, and the image is a dynamic one."""
    region, pages = image.layout.regions.metadata, image.pages
    writes = [write for page in pages.all() for write in _made_whole(image, page)]
    for chunk, _ in pages.bitmaps():
        at = pages.entry_place(pages.geometry.bitmap_entry(chunk))
        writes.append((at, bytes(ENTRY_BYTES)))
    image.log.commit(writes, content=False)
    at, _ = image.layout.disk.places[FILE_PARAMETERS]
    block_size, flags = struct.unpack("<II", image.file.read_metadata(at, 8))
    table = image.file.read_metadata(region.offset, TABLE_BYTES)
    parameters = struct.pack("<II", block_size, flags & ~HAS_PARENT)
    writes = [(at, parameters), (region.offset, without_item(table, PARENT_LOCATOR))]
    image.log.commit(writes, content=False)
    image.adopt(attrs.evolve(image.layout.disk, locator=None))


def _made_whole(image: Image, page: Page) -> list[Write]:
    """Let what is not stored of blocks be zeroes in their place, which nobody looks at yet.

    Returns:
        What the block table is to say then.
    """
    geometry, shift = image.pages.geometry, image.pages.bit_shift
    bits_of_block = (1 << image.cluster_shift) >> shift
    writes = []
    for at, entry in enumerate(page.entries):
        if entry & STATE != PARTIAL:
            continue
        first = (at - (at >> geometry.ratio_shift)) * bits_of_block
        bit, stop = first, first + bits_of_block
        while bit < stop:
            until = same_bits_until(page.bits, bit, stop)
            if not is_set(page.bits, bit):
                place = (entry & PLACE) + (bit - first << shift + SECTOR_SHIFT)
                length = until - bit << shift + SECTOR_SHIFT
                if res := image.file.zero_blocking(place, length, True):
                    raise OSError(-res, "a block cannot be made whole")
            bit = until
        whole = (entry & PLACE) | PRESENT
        writes.append((page.offset + ENTRY_BYTES * at, whole.to_bytes(ENTRY_BYTES, "little")))
    return writes


def make_empty(image: Image) -> None:
    """As `td_make_empty`.

    Raises:
        NotSupportedError: of an image that has no parent.
        OSError, TapError: as the system says; it is as it was, or some of it is empty.
    """
    if not image.differs:
        raise NotSupportedError("is a VHDX without a parent, which cannot be emptied")
    image.clusters.begin_writing()
    image.clusters.save()
    pages = image.pages
    for page in pages.all():
        nothing = bytes(ENTRY_BYTES * len(page.entries))
        image.log.commit([(page.offset, nothing)], content=False)
    for chunk, _ in pages.bitmaps():
        at = pages.entry_place(pages.geometry.bitmap_entry(chunk))
        image.log.commit([(at, bytes(ENTRY_BYTES))], content=False)
    image.tables.forget()
    image.clusters.stop_writing()
    cut(image, survey(pages).last)
