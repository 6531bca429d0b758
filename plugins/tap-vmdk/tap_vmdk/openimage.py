"""Opening an image, with the files that it consists of."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Final

from tap_vmdk.descriptor.disktypes import (
    FLAT_KINDS,
    SPARSE_KINDS,
    conflicting_size,
    lone_extent,
    own_sectors,
)
from tap_vmdk.descriptor.place import NOT_NAMED
from tap_vmdk.descriptor.text import ExtentLine
from tap_vmdk.identity import extent_lines, identify, is_own_name, name_on_disk, stands_alone
from tap_vmdk.image import Image
from tap_vmdk.parts.part import Part
from tap_vmdk.parts.plain import barred_part, flat_part, unreadable_part, zero_part
from tap_vmdk.parts.sparse import hosted_part, sparse_part
from tap_vmdk.signature import kind_of
from tap_vmdk.sparse import sesparse
from tap_vmdk.sparse.kinds import cowd_header, sesparse_header
from tap_vmdk.sparse.missing import unnamed_data
from tapcore import (
    TD_RDONLY,
    DiskDriver,
    ImageFile,
    ImageFormatError,
    NotSupportedError,
    TapError,
    open_image_file,
    open_named_file,
)
from tapcore.clusters import DamagedTable

log = logging.getLogger(__name__)

HOW_TO_SALVAGE: Final = "convert --salvage copies what is left"


def open_image(dd: DiskDriver, name: str, flags: int) -> Image:
    """Open an image with all its parts.

    Args:
        dd: as of `td_open`.
        name: as of `td_open`.
        flags: as of `td_open`.

    Raises:
        TapError, OSError: it cannot be opened; everything is closed again.
    """
    file = open_image_file(name, flags, dd.options)
    image: Image | None = None
    try:
        image = Image.of(identify(file))
        if dd.options.missing == "zeroes":
            image.goes_on = partial(_tell_of_zeroes, dd)
        content = not (dd.options.metadata_only or dd.options.parent_only)
        if content or stands_alone(image):
            open_parts(dd, image)
        else:
            image.sectors = sum(line.sectors for line in extent_lines(image))
        if not flags & TD_RDONLY:
            if not dd.options.metadata_only:
                refuse_unnamed(image)
            if not dd.options.parent_only:
                refuse_unwritable(image, mending=not content)
        for doubt in _doubts(image):
            log.warning("%s: %s", name, doubt)
    except BaseException:
        for each in image.files if image is not None else [file]:
            each.close()
        raise
    return image


def _tell_of_zeroes(dd: DiskDriver, text: str) -> None:
    dd.td_state.losses.log_zeroed(dd.name, text)


def _doubts(image: Image) -> Iterator[str]:
    """What a person has to know of an image that can be read all the same."""
    header, descriptor = image.header, image.descriptor
    if descriptor is None:
        yield lone_extent(image.file.path)
        return
    if image.place is None:
        yield f"{NOT_NAMED}; it is read"
    for part in image.parts:
        if part.map is not None and (lost := unnamed_data(part.map)):
            yield lost if part.file is image.file else f"its extent {part.map.file.path}: {lost}"
    if header is not None and header.capacity:
        yield from conflicting_size(descriptor, header.capacity, header.grain)


def open_parts(dd: DiskDriver, image: Image) -> None:
    """Open what the disk consists of, and give it to the image.

    Raises:
        TapError, OSError: something cannot be opened; the image has what is open already.
    """
    if stands_alone(image):
        image.set_parts([_own_part(dd, image)])
        return
    lines = extent_lines(image)
    parts: list[Part] = []
    start = 0
    for line in lines:
        try:
            part = open_extent(dd, image, line, start)
        except TapError as exc:
            part = _lost_part(dd, image, line, start, exc)
        start = part.end
        parts.append(part)
    image.set_parts(parts)


def open_extent(dd: DiskDriver, image: Image, line: ExtentLine, start: int) -> Part:
    """Open the file of an extent; it is one of the image's files from then on.

    Args:
        dd: the disk.
        image: of it.
        line: the extent.
        start: its first sector on the disk.

    Raises:
        TapError, OSError: it cannot be opened, or is not what the line says.
    """
    if line.access == "NOACCESS":
        return barred_part(dd, line, start, image.file)
    if line.kind == "ZERO":
        return zero_part(dd, line, start, image.file)
    if line.kind not in FLAT_KINDS + SPARSE_KINDS:
        raise NotSupportedError(f"has an extent of the kind {line.kind}, which is not supported")
    if line.kind in FLAT_KINDS:
        return _flat(dd, image, line, start, _extent_file(dd, image, line))
    file = _extent_file(dd, image, line)
    part = sparse_part(dd, line, start, file)
    assert part.map is not None
    capacity = part.map.layout.capacity
    if capacity < line.sectors:
        raise ImageFormatError(
            f"its extent {file.path} has {capacity} sectors, and its descriptor says {line.sectors}"
        )
    return part


def _lost_part(dd: DiskDriver, image: Image, line: ExtentLine, start: int, exc: TapError) -> Part:
    """In place of an extent that cannot be opened, where what is left of the disk is wanted.

    Raises:
        TapError: as given, in all other cases.
    """
    from tap_vmdk.parts.damaged import is_damage

    if len(extent_lines(image)) == 1 or not is_damage(exc):
        raise exc
    if not dd.options.salvage:
        exc.message += f" ({HOW_TO_SALVAGE})"
        raise exc
    return unreadable_part(dd, line, start, image.file, DamagedTable(exc.message))


def _extent_file(dd: DiskDriver, image: Image, line: ExtentLine) -> ImageFile:
    """The file of an extent; flat ones may share it, as partitions of a disk do."""
    known = image.named.get((line.name, line.access))
    if known is not None:
        _refuse_shared(image, line, known)
        return known
    name = name_on_disk(image, line.name)
    if image.header is not None and line.kind in FLAT_KINDS and is_own_name(name, dd.name):
        return image.file  # the content lies behind the descriptor
    flags = dd.flags if line.access == "RW" else TD_RDONLY
    file = open_named_file(dd, name, role="extent", flags=flags)
    image.files.append(file)
    _refuse_shared(image, line, file)
    image.named[line.name, line.access] = file
    return file


def _refuse_shared(image: Image, line: ExtentLine, file: ImageFile) -> None:
    """Raise where a sparse file is another extent too, by whatever name: it has tables of its own.

    Raises:
        ImageFormatError: so it is.
        OSError: as the system says.
    """
    status = os.fstat(file.meta_fd)
    identity, sparse = (status.st_dev, status.st_ino), line.kind in SPARSE_KINDS
    before = image.stored.get(identity)
    image.stored[identity] = sparse
    if before is not None and (sparse or before):
        raise ImageFormatError(f"names the sparse extent {file.path} twice")


def _flat(dd: DiskDriver, image: Image, line: ExtentLine, start: int, file: ImageFile) -> Part:
    cut = (line.offset + line.sectors) * 512 > -(-file.size // 512) * 512
    if cut and not dd.options.salvage:
        how = "" if len(extent_lines(image)) > 1 else f" ({HOW_TO_SALVAGE})"
        raise ImageFormatError(f"its extent {file.path} is shorter than its descriptor says" + how)
    if file is image.file:
        assert image.header is not None
        if line.offset < image.header.descriptor_offset + image.header.descriptor_size:
            raise ImageFormatError("has an extent that overlaps its own descriptor")
    if not cut:
        return flat_part(dd, line, start, file)
    from tap_vmdk.parts.damaged import cut_part

    return cut_part(dd, line, start, file)


def _own_part(dd: DiskDriver, image: Image) -> Part:
    """The image's own file is the disk."""
    file = image.file
    head = file.read_metadata(0, sesparse.HEADER_BYTES)
    kind = kind_of(head)
    if kind == "hosted":
        assert image.header is not None
        header = image.header
        sectors = own_sectors(image.descriptor, header.capacity, header.grain)
        line = ExtentLine("RW", sectors, "SPARSE")
        no_parent = image.descriptor is None or not image.descriptor.has_parent
        return hosted_part(dd, line, 0, file, header, appendable=no_parent)
    if kind == "cowd":
        line = ExtentLine("RW", cowd_header(file).capacity, "VMFSSPARSE")
    else:
        line = ExtentLine("RW", sesparse_header(file).capacity, "SESPARSE")
    return sparse_part(dd, line, 0, file)


def refuse_unnamed(image: Image) -> None:
    """Raise where the place of the descriptor has to be known, and its header does not say it.

    Raises:
        ImageFormatError: it has to be repaired before.
    """
    if image.descriptor is not None and image.place is None:
        raise ImageFormatError(
            f"{NOT_NAMED}; it can be read, and `tapdisk check --repair all` mends it"
        )


def refuse_unwritable(image: Image, *, mending: bool = False) -> None:
    """Raise where a part of the disk could not be written.

    Args:
        image: open for writing.
        mending: its metadata may be damaged.

    Raises:
        NotSupportedError: with the reason.
        ImageFormatError: it has to be repaired before.
    """
    for part in image.parts:
        map = part.map if part.writable else None
        if map is not None and not map.whole_directories and not mending:
            raise ImageFormatError(
                "has a damaged grain directory; it can be read, and `tapdisk check --repair all` "
                "mends it"
            )
        if not part.writable:
            named = f" '{part.line.name}'" if part.line.name else ""
            raise NotSupportedError(f"cannot be written: its extent{named}: {part.reason}")
