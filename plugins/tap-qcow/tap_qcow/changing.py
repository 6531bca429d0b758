"""Changes of the image itself, with nothing in flight: its parent, its size, all of its content.

Each is made with one write of the header's sector, or can be cut off anywhere; what the header
comes to point to is safe on disk before.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import attrs

from tap_qcow import layout, words
from tap_qcow.header import HEADER, XEN_PAGE, Header, encode_name
from tap_qcow.mapping import DEFLATED, HOLE, runs
from tapcore import DEFAULT_SECTOR_SIZE, SECTOR_SHIFT, NotSupportedError, UsageError

if TYPE_CHECKING:
    from tap_qcow.image import Image
    from tapcore import DiskDriver, DiskId, ImageFile


def set_parent(image: Image, parent: DiskId | None) -> None:
    """Record another parent; of it, only the name can be.

    Raises:
        NotSupportedError: the image was made to stand alone.
        OSError, TapError: the image is as it was.
    """
    image.begin_writing()
    size = image.geometry.cluster_size
    if parent is not None and not image.header.backing_file and size > layout.CHILD.cluster_size:
        raise NotSupportedError(
            f"has clusters of {size} bytes; of a parent's child they must have 512, since other "
            "programs do not copy what a write leaves out"
        )
    name = parent.name if parent is not None else ""
    encoded = encode_name(name)
    offset = 0
    image.save()
    if encoded:  # not over the old name: that is in use until the header is written
        offset = image.end
        image.file.write_metadata(offset, encoded)
        image.end += len(encoded)
    _replace_header(
        image, attrs.evolve(image.header, backing_file=name, backing_offset=offset, mtime=0)
    )
    image.fills = image.header.encrypted or bool(name)


def make_empty(image: Image) -> None:
    """Forget all content, and give the space back.

    Raises:
        OSError, TapError: some of the content may be forgotten.
    """
    image.save()
    _replace_header(image, image.header)
    image.file.write_metadata(image.header.l1_offset, bytes(image.header.l1_bytes))
    _sync(image.file)
    image.tables.forget(words.zeroes(len(image.tables.l1)))
    image.inflater.forget()
    end = max(end for _, end in image.header.places())
    unit = DEFAULT_SECTOR_SIZE if image.header.xen is None else XEN_PAGE
    with contextlib.suppress(UsageError):  # a block device keeps its size
        image.file.resize(-(-end // unit) * unit)
    image.end = image.file.size
    image.seal()
    _sync(image.file)


def grow(image: Image, dd: DiskDriver, size: int) -> None:
    """Make the disk larger (bytes); a larger L1 table goes to the end of the file.

    Raises:
        NotSupportedError: the disk would become smaller, or its parent's content would show.
        UsageError: it would become too large.
        OSError, TapError: the disk has the size that it had.
    """
    geometry, old = image.geometry, image.header
    sectors = size >> SECTOR_SHIFT
    if sectors < image.sectors:
        raise NotSupportedError("a qcow image cannot be made smaller")
    if 8 * geometry.l1_entries(size) > layout.MAX_L1_BYTES:
        raise UsageError(f"can have {_largest(geometry)} bytes at most")
    if old.backing_file and (dd.next is None or dd.next.size > image.sectors):
        raise NotSupportedError("cannot grow: the rest of its parent, which is longer, would show")
    image.begin_writing()
    _clear_past_end(image)
    image.save()
    header = attrs.evolve(old, size=size)
    entries = geometry.l1_entries(size) - len(image.tables.l1)
    if entries > 0:
        header.l1_offset = _move_l1(image, header.l1_bytes)
    _replace_header(image, header)
    if entries > 0:
        image.tables.l1.extend(words.zeroes(entries))
    image.sectors = dd.size = sectors


def _largest(geometry: layout.Geometry) -> int:
    return layout.MAX_L1_BYTES // 8 << (geometry.cluster_bits + geometry.l2_bits)


def _move_l1(image: Image, length: int) -> int:
    """Copy the L1 table to the end of the file, and leave room for `length` bytes of it."""
    unit = max(image.geometry.cluster_size, XEN_PAGE)
    offset = -(-image.end // unit) * unit
    image.file.write_metadata(offset, words.to_bytes(image.tables.l1, little=image.little))
    image.file.truncate_up(offset + length)
    image.end = offset + length
    return offset


def _clear_past_end(image: Image) -> None:
    """What tables and clusters say of sectors past the end of the disk, if anything: zeroes."""
    if not image.sectors:
        return
    geometry, tables = image.geometry, image.tables
    last = image.sectors - 1
    index = last >> geometry.table_shift
    (run,) = runs(image, last, 1)
    if tables.l1[index]:
        table = tables.wait(index)
        first = ((last >> geometry.cluster_shift) & geometry.entry_mask) + 1
        if any(table.entries[first:]):
            tables.set(table, first, words.zeroes(geometry.entry_mask + 1 - first))
    cut = image.sectors & geometry.sector_mask
    if not cut or run.kind == HOLE:
        return
    tail = bytes(geometry.cluster_size - (cut << SECTOR_SHIFT))
    if image.header.encrypted and image.cipher is None:
        raise NotSupportedError("its last cluster is not full, and cannot be encrypted here")
    if run.kind == DEFLATED:
        _store_plain(image, last, image.inflater.content(run.where)[: -len(tail)] + tail)
        return
    content = tail if image.cipher is None else image.cipher.encrypt(image.sectors, tail)
    image.file.write_metadata(run.where + (1 << SECTOR_SHIFT), content)


def _store_plain(image: Image, sector: int, content: bytes) -> None:
    """Give a compressed cluster a place of its own."""
    geometry = image.geometry
    start = sector & ~geometry.sector_mask
    host = image.allocate(1)
    stored = content if image.cipher is None else image.cipher.encrypt(start, content)
    image.file.write_metadata(host, stored)
    table = image.tables.wait(sector >> geometry.table_shift)
    image.tables.set(table, (sector >> geometry.cluster_shift) & geometry.entry_mask, (host,))


def _replace_header(image: Image, header: Header) -> None:
    """Make everything else safe, then the new header."""
    header.xen = image.plain_extension() or header.xen
    if header.xen is not None:
        image.file.write_metadata(HEADER.size, header.xen.pack())
    _sync(image.file)
    image.file.write_metadata(0, header.pack())
    _sync(image.file)
    image.header = header
    image.note_places()


def _sync(file: ImageFile) -> None:
    if res := file.flush_blocking():
        raise OSError(-res, os.strerror(-res))
