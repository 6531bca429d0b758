"""Growing disks of a single extent, where that is safe."""

from __future__ import annotations

from array import array
from typing import Final

from tap_vmdk.change.parent import recorded_parent
from tap_vmdk.create.newdisk import SPLIT_SECTORS, NewDisk
from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.image import Image
from tap_vmdk.options import SPLIT_FLAT, SPLIT_SPARSE
from tap_vmdk.parts.part import Part
from tap_vmdk.parts.plain import FlatMap
from tap_vmdk.parts.sparse import writable_part
from tap_vmdk.sparse.entries import CODING
from tap_vmdk.sparse.header import SparseHeader
from tap_vmdk.sparse.kinds import hosted_layout
from tap_vmdk.sparse.sizes import round_up
from tap_vmdk.sparse.writable import WritableGrainMap
from tapcore import DiskDriver, ImageFile, NotSupportedError
from tapcore.clusters import DATA

_STEP: Final = 1 << 20


def resize(dd: DiskDriver, size: int) -> None:
    """As `td_resize`: flat disks grow with their file, sparse ones get more tables.

    Raises:
        NotSupportedError: it would shrink, or is of another kind.
    """
    image: Image = dd.private
    sectors = size // 512
    if sectors == image.sectors:
        return
    if sectors < image.sectors:
        raise NotSupportedError("a VMDK cannot be made smaller")
    if len(image.parts) != 1 or image.descriptor is None or image.place is None:
        raise NotSupportedError("a VMDK of several extents, or without descriptor, cannot grow")
    if image.subformat in (SPLIT_SPARSE, SPLIT_FLAT) and sectors > SPLIT_SECTORS:
        raise NotSupportedError("an extent of a split disk cannot grow over 2 GiB")
    if sum(1 for line in image.descriptor.extents() if line.sectors) != 1:
        raise NotSupportedError("its descriptor names several extents, or none")
    _refuse_longer_parent(dd, image)
    image.begin_writing()
    image.clusters.save()
    part = image.parts[0]
    if part.writable and isinstance(part.bytes, FlatMap):
        _grow_flat(part.bytes.data, part.line, sectors)
    elif isinstance(part.map, WritableGrainMap):
        part = _grow_sparse(part, part.map, sectors)
    else:
        raise NotSupportedError(f"a {image.subformat} disk cannot grow")
    image.clusters.save()  # before the descriptor says so
    _describe(image, part, sectors)
    image.clusters.save()
    part.end = sectors
    image.set_parts([part])
    dd.size = sectors


def _refuse_longer_parent(dd: DiskDriver, image: Image) -> None:
    """New sectors must read as zeroes, and a longer parent would show in them."""
    if recorded_parent(image) is None:
        return
    if dd.next is None or dd.next.size > image.sectors:
        raise NotSupportedError("its parent is longer, or not open: growing would show more of it")


def _grow_flat(file: ImageFile, line: ExtentLine, sectors: int) -> None:
    if not _all_zeroes(file, (line.offset + line.sectors) * 512):
        raise NotSupportedError("its extent's file is longer than the disk, and holds more")
    file.truncate_up((line.offset + sectors) * 512)


def _all_zeroes(file: ImageFile, start: int) -> bool:
    """Whether nothing lies in a file from a place (bytes) on, but what a stopped growing left."""
    rest = max(file.size - start, 0)
    for begin, end, data in file.runs(start, rest):
        for at in range(begin, end if data else begin, _STEP):
            if any(file.read_metadata(at, min(_STEP, end - at))):
                return False
    return True


def _grow_sparse(part: Part, map: WritableGrainMap, sectors: int) -> Part:
    """Give a sparse file more sectors, on disk when this returns.

    The new tables, and the directories where they do not fit into their old places, go to the
    end of the file. The header, one sector, says at one stroke that all is so.

    Returns:
        What takes the part's place.
    """
    file, old = map.file, map.header
    header = old._replace(capacity=sectors)
    header.check()
    if not map.whole_directories:
        raise NotSupportedError("its grain directories are damaged")
    _zero_after_end(map, part.line.sectors)
    if header.tables > old.tables:
        header = _more_tables(map, header)
    file.make_safe()
    file.write_metadata(0, header._replace(unclean=1).pack())
    file.make_safe()
    line = part.line._replace(sectors=sectors)
    grown = WritableGrainMap(map.dd, file, hosted_layout(header), header)
    return writable_part(line, part.start, grown)


def _zero_after_end(map: WritableGrainMap, end: int) -> None:
    """In the last grain, what lies behind the disk's end so far (sector of the part)."""
    rest = -end % map.header.grain
    if not rest:
        return
    for run in map.runs(end - 1, end):
        if run.kind == DATA:
            map.file.write_metadata(run.where + 512, bytes(rest << 9))


def _describe(image: Image, part: Part, sectors: int) -> None:
    """Put the new size into the descriptor."""
    assert image.descriptor is not None
    assert image.place is not None
    descriptor = image.descriptor.copy()
    lines = descriptor.extents()
    descriptor.replace_extents(
        [line._replace(sectors=sectors) if line.sectors else line for line in lines]
    )
    part.line = part.line._replace(sectors=sectors)
    adapter = descriptor.get("ddb.adapterType") or "ide"
    disk = NewDisk(sectors, image.subformat, adapter, 4, False)
    if descriptor.get("ddb.geometry.cylinders") is not None:
        descriptor.set("ddb.geometry.cylinders", f' "{disk.cylinders}"')
    image.place.write(descriptor)
    image.descriptor = descriptor


def _more_tables(map: WritableGrainMap, header: SparseHeader) -> SparseHeader:
    """Make tables, and places for them in the directories; returns the header that names them."""
    old = map.header
    added = header.tables - old.tables
    fits = header.directory_sectors == old.directory_sectors
    offsets = []
    directories = (map.directory, map.spare)
    for directory, offset in zip(directories, map.layout.directories, strict=False):
        assert directory is not None
        first = map.take(round_up(added * header.table_sectors, header.grain))
        tables = range(first, first + added * header.table_sectors, header.table_sectors)
        place = offset // 512
        if not fits:
            place = map.take(round_up(header.directory_sectors, header.grain))
        map.file.truncate_up(map.end << 9)
        content = CODING.encode(directory + array("I", tables))
        map.file.write_metadata(place << 9, content.ljust(header.directory_sectors << 9, b"\0"))
        offsets.append(place)
    rgd = offsets[1] if len(offsets) > 1 else old.rgd_offset
    return header._replace(gd_offset=offsets[0], rgd_offset=rgd)
