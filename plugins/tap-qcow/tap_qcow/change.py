"""Changes of the image itself, with nothing in flight: its parent, its size, all of its content.

Each is made with one write of the header's sector, or can be cut off anywhere; what the header
comes to point to is safe on disk before.
"""

from __future__ import annotations

import contextlib

import attrs

from tap_qcow import layout
from tap_qcow.header import HEADER, Header, encode_name
from tap_qcow.image import Image
from tap_qcow.mapping import QcowMap
from tap_qcow.tables import L2
from tap_qcow.xen import XEN_PAGE
from tapcore import (
    DEFAULT_SECTOR_SIZE,
    SECTOR_SHIFT,
    DiskDriver,
    DiskId,
    NotSupportedError,
    UsageError,
)
from tapcore.clusters import HOLE, PACKED


def set_parent(image: Image, parent: DiskId | None) -> None:
    """Record another parent; of it, only the name can be.

    Raises:
        NotSupportedError: the image was made to stand alone.
        OSError, TapError: the image is as it was.
    """
    image.clusters.begin_writing()
    header, space = image.map.header, image.map.space
    size = header.geometry.cluster_size
    if parent is not None and not header.backing_file and size > layout.CHILD.cluster_size:
        raise NotSupportedError(
            f"has clusters of {size} bytes; of a parent's child they must have 512, since other "
            "programs do not copy what a write leaves out"
        )
    name = parent.name if parent is not None else ""
    encoded = encode_name(name)
    offset = 0
    image.save()
    if encoded:  # not over the old name: that is in use until the header is written
        offset = space.end
        image.file.write_metadata(offset, encoded)
        space.end += len(encoded)
    _replace_header(
        image.map, attrs.evolve(header, backing_file=name, backing_offset=offset, mtime=0)
    )


def make_empty(image: Image) -> None:
    """Forget all content, and give the space back.

    Raises:
        OSError, TapError: some of the content may be forgotten.
    """
    image.save()
    map = image.map
    _replace_header(map, map.header)
    image.file.write_metadata(map.header.l1_offset, bytes(map.header.l1_bytes))
    image.file.make_safe()
    map.tables.forget()
    image.clusters.forget()
    map.l1.entries = L2.zeroes(len(map.l1.entries))
    end = max(end for _, end in map.header.places())
    unit = DEFAULT_SECTOR_SIZE if map.header.xen is None else XEN_PAGE
    with contextlib.suppress(UsageError):  # a block device keeps its size
        image.file.resize(-(-end // unit) * unit)
    map.space.end = image.file.size
    image.seal()
    image.file.make_safe()


def grow(image: Image, dd: DiskDriver, size: int) -> None:
    """Make the disk larger (bytes); a larger L1 table goes to the end of the file.

    Raises:
        NotSupportedError: the disk would become smaller, or its parent's content would show.
        UsageError: it would become too large.
        OSError, TapError: the disk has the size that it had.
    """
    map, old = image.map, image.map.header
    geometry = old.geometry
    sectors = size >> SECTOR_SHIFT
    if sectors < map.sectors:
        raise NotSupportedError("a qcow image cannot be made smaller")
    if 8 * geometry.l1_entries(size) > layout.MAX_L1_BYTES:
        raise UsageError(f"can have {_largest(geometry)} bytes at most")
    if old.backing_file and (dd.next is None or dd.next.size > map.sectors):
        raise NotSupportedError("cannot grow: the rest of its parent, which is longer, would show")
    image.clusters.begin_writing()
    _clear_past_end(image)
    image.save()
    header = attrs.evolve(old, size=size)
    entries = geometry.l1_entries(size) - len(map.l1.entries)
    if entries > 0:
        header.l1_offset = _move_l1(image, header.l1_bytes)
    _replace_header(map, header)
    if entries > 0:
        map.l1.entries.extend(L2.zeroes(entries))
    map.sectors = dd.size = sectors


def _largest(geometry: layout.Geometry) -> int:
    return layout.MAX_L1_BYTES // 8 << (geometry.cluster_bits + geometry.l2_bits)


def _move_l1(image: Image, length: int) -> int:
    """Copy the L1 table to the end of the file, and leave room for `length` bytes of it."""
    map, space = image.map, image.map.space
    unit = max(map.geometry.cluster_size, XEN_PAGE)
    offset = -(-space.end // unit) * unit
    image.file.write_metadata(offset, map.l1.content()[1])
    image.file.truncate_up(offset + length)
    space.end = offset + length
    return offset


def _clear_past_end(image: Image) -> None:
    """What tables and clusters say of sectors past the end of the disk, if anything: zeroes."""
    map = image.map
    if not map.sectors:
        return
    geometry = map.geometry
    last = map.sectors - 1
    (run,) = map.runs(last, last + 1)
    _clear_entries_behind(map, last)
    cut = map.sectors & geometry.sector_mask
    if not cut or run.kind == HOLE:
        return
    tail = bytes(geometry.cluster_size - (cut << SECTOR_SHIFT))
    cipher = map.cipher
    if map.header.encrypted and cipher is None:
        raise NotSupportedError("its last cluster is not full, and cannot be encrypted here")
    if run.kind == PACKED:
        _store_plain(image, last, map.deflated.unpack(run.where)[: -len(tail)] + tail)
        return
    content = tail if cipher is None else cipher.encrypt(map.sectors, tail)
    image.file.write_metadata(run.where + (1 << SECTOR_SHIFT), content)


def _clear_entries_behind(map: QcowMap, sector: int) -> None:
    """Those of the same L2 table behind the cluster of a sector."""
    geometry, tables = map.geometry, map.tables
    index = sector >> geometry.table_shift
    if not map.l1.entries[index]:
        return
    table = tables.wait(index)
    first = ((sector >> geometry.cluster_shift) & geometry.entry_mask) + 1
    if any(table.entries[first:]):
        tables.set(table, first, L2.zeroes(geometry.entry_mask + 1 - first))


def _store_plain(image: Image, sector: int, content: bytes) -> None:
    """Give a compressed cluster a place of its own."""
    geometry, tables, cipher = image.map.geometry, image.map.tables, image.map.cipher
    start = sector & ~geometry.sector_mask
    host = image.map.space.allocate(1)
    stored = content if cipher is None else cipher.encrypt(start, content)
    image.file.write_metadata(host, stored)
    table = tables.wait(sector >> geometry.table_shift)
    tables.set(table, (sector >> geometry.cluster_shift) & geometry.entry_mask, (host,))


def _replace_header(map: QcowMap, header: Header) -> None:
    """Make everything else safe, then the new header."""
    if header.xen is not None:
        header.xen = header.xen.for_changes(little=map.little) or header.xen
        map.file.write_metadata(HEADER.size, header.xen.pack())
    map.file.make_safe()
    map.file.write_metadata(0, header.pack())
    map.file.make_safe()
    map.use_header(header)
