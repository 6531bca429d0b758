"""Opening an image: which kind it is, its descriptor, and the files that it consists of."""

from __future__ import annotations

from tap_vmdk import sesparse, sparse
from tap_vmdk.compressed import CompressedPart
from tap_vmdk.descriptor import MAX_DESCRIPTOR, NO_PARENT, Descriptor, ExtentLine
from tap_vmdk.grains import DEFAULT_CACHE, GrainMap
from tap_vmdk.grainwrite import WritablePart
from tap_vmdk.image import DescriptorPlace, Image
from tap_vmdk.layouts import (
    cowd_header,
    cowd_layout,
    hosted_layout,
    sesparse_header,
    sesparse_layout,
    with_footer,
)
from tap_vmdk.parts import FlatPart, Part, ZeroPart
from tap_vmdk.signature import kind_of
from tap_vmdk.sparse import SparseHeader
from tap_vmdk.sparseparts import SparsePart
from tap_vmdk.streampart import StreamPart
from tapcore import (
    TD_RDONLY,
    DiskDriver,
    ImageFile,
    ImageFormatError,
    NotSupportedError,
    open_image_file,
    open_named_file,
)

FLAT_KINDS = ("FLAT", "VMFS")
SPARSE_KINDS = ("SPARSE", "VMFSSPARSE", "SESPARSE")

DEVICE_TYPES = {
    "fulldevice": "a whole device of its host",
    "partitioneddevice": "partitions of a device of its host",
    "vmfsraw": "a raw device of its host",
    "vmfsrawdevicemap": "a raw device of its host",
    "vmfspassthroughrawdevicemap": "a raw device of its host",
    "vmfsrdm": "a raw device of its host",
    "vmfsrdmp": "a raw device of its host",
}
"""Values of `createType`, in lower case, of disks that are no files."""
DISK_TYPES = {
    "monolithicsparse",
    "monolithicflat",
    "twogbmaxextentsparse",
    "twogbmaxextentflat",
    "streamoptimized",
    "vmfs",
    "vmfssparse",
    "vmfsthin",
    "vmfspreallocated",
    "vmfseagerzeroedthick",
    "sesparse",
    "vmfssesparse",
    "custom",
}
"""Those of disks that are: what counts are their extents."""


def refuse_kind(descriptor: Descriptor) -> None:
    """Raise for what is not supported, by its name.

    Raises:
        NotSupportedError: an encrypted or device-backed disk, or one of an unknown kind.
    """
    descriptor.refuse_encrypted()
    kind = descriptor.create_type
    if kind.lower() in DEVICE_TYPES:
        raise NotSupportedError(
            f"is of the kind {kind}: it stands for {DEVICE_TYPES[kind.lower()]}, "
            "which is not supported"
        )
    if kind and kind.lower() not in DISK_TYPES:
        raise NotSupportedError(f"is of the kind '{kind}', which is not supported")


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
        image = identify(file)
        if dd.options.metadata_only and not stands_alone(image):
            image.sectors = sum(line.sectors for line in extent_lines(image))
        else:
            open_parts(dd, image)
        if not flags & TD_RDONLY:
            refuse_unwritable(image, mending=dd.options.metadata_only)
    except BaseException:
        for each in image.files if image is not None else [file]:
            each.close()
        raise
    return image


def stands_alone(image: Image) -> bool:
    """Whether the image's only part is its own file.

    A sparse file without a capacity holds nothing but a descriptor, which names other files.
    """
    if image.header is not None:
        return image.header.capacity > 0
    return image.place is None


def identify(file: ImageFile) -> Image:
    """Which kind of image a file is; opens and takes nothing else.

    Raises:
        ImageFormatError: none.
        NotSupportedError: one that is not supported.
    """
    head = file.read_metadata(0, 4096)
    kind = kind_of(head)
    if kind == "hosted":
        return _hosted(file, SparseHeader.unpack(head))
    if kind == "cowd":
        return Image(file, None, None, "vmfsSparse")
    if kind == "sesparse":
        return Image(file, None, None, "seSparse")
    if kind != "descriptor" and b"createType" not in head:
        raise ImageFormatError("is not a VMDK")
    if file.size > MAX_DESCRIPTOR:
        raise ImageFormatError(f"is longer than a descriptor may be ({MAX_DESCRIPTOR} bytes)")
    descriptor = Descriptor.parse(file.read_metadata(0, file.size))
    refuse_kind(descriptor)
    return Image(file, descriptor, DescriptorPlace(file), descriptor.create_type or "custom")


def _hosted(file: ImageFile, header: SparseHeader) -> Image:
    """A sparse file, with its descriptor where it has one."""
    if header.capacity:
        header.check()
    if not header.descriptor_offset:
        if not header.capacity:
            raise ImageFormatError("has neither a size nor a descriptor")
        return Image(file, None, None, "monolithicSparse", header)
    descriptor, place = embedded_descriptor(file, header)
    refuse_kind(descriptor)
    return Image(file, descriptor, place, descriptor.create_type or "monolithicSparse", header)


def embedded_descriptor(
    file: ImageFile, header: SparseHeader
) -> tuple[Descriptor, DescriptorPlace]:
    """The descriptor in a sparse file, and where it is.

    Raises:
        ImageFormatError: it lies outside the file, or makes no sense.
    """
    offset, size = header.descriptor_offset * 512, header.descriptor_size * 512
    if not 0 < size <= MAX_DESCRIPTOR or offset + size > file.size:
        raise ImageFormatError("has a descriptor that lies outside the file, or is too long")
    descriptor = Descriptor.parse(file.read_metadata(offset, size))
    return descriptor, DescriptorPlace(file, offset, size)


def extent_lines(image: Image) -> list[ExtentLine]:
    """The extents of a disk whose descriptor names its files.

    Raises:
        ImageFormatError: there are none.
    """
    assert image.descriptor is not None
    lines = image.descriptor.extents()
    if not lines:
        raise ImageFormatError("names no extents in its descriptor")
    return lines


def open_parts(dd: DiskDriver, image: Image) -> None:
    """Open what the disk consists of, and give it to the image.

    Raises:
        TapError, OSError: something cannot be opened; the image has what is open already.
    """
    if stands_alone(image):
        image.set_parts([_own_part(dd, image)])
        return
    parts: list[Part] = []
    start = 0
    for line in extent_lines(image):
        part = open_extent(dd, image, line, start)
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
        return Part(line, start)
    if line.kind == "ZERO":
        return ZeroPart(line, start)
    if line.kind not in FLAT_KINDS + SPARSE_KINDS:
        raise NotSupportedError(f"has an extent of the kind {line.kind}, which is not supported")
    file = _extent_file(dd, image, line)
    if line.kind in FLAT_KINDS:
        return _flat(line, start, file)
    part = _sparse(dd, line, start, file)
    if part.map.layout.capacity < line.sectors:
        raise ImageFormatError(
            f"its extent {file.path} has {part.map.layout.capacity} sectors, "
            f"and its descriptor says {line.sectors}"
        )
    return part


def _extent_file(dd: DiskDriver, image: Image, line: ExtentLine) -> ImageFile:
    """The file of an extent; flat ones may share it, as partitions of a disk do."""
    known = image.named.get((line.name, line.access))
    if known is not None:
        if line.kind in SPARSE_KINDS:
            raise ImageFormatError(f"names the sparse extent {known.path} twice")
        return known
    flags = dd.flags if line.access == "RW" else TD_RDONLY
    file = open_named_file(dd, line.name, role="extent", flags=flags)
    image.files.append(file)
    image.named[line.name, line.access] = file
    return file


def _flat(line: ExtentLine, start: int, file: ImageFile) -> FlatPart:
    if (line.offset + line.sectors) * 512 > -(-file.size // 512) * 512:
        raise ImageFormatError(f"its extent {file.path} is shorter than its descriptor says")
    return FlatPart(line, start, file)


def _own_part(dd: DiskDriver, image: Image) -> SparsePart:
    """The image's own file is the disk."""
    file = image.file
    head = file.read_metadata(0, sesparse.HEADER_BYTES)
    kind = kind_of(head)
    if kind == "hosted":
        header = SparseHeader.unpack(head)
        line = ExtentLine("RW", header.capacity, "SPARSE")
        no_parent = image.descriptor is None or image.descriptor.parent_cid == NO_PARENT
        return _hosted_part(dd, line, 0, file, appendable=no_parent)
    if kind == "cowd":
        line = ExtentLine("RW", cowd_header(file).capacity, "VMFSSPARSE")
    else:
        line = ExtentLine("RW", sesparse_header(file).capacity, "SESPARSE")
    return _sparse(dd, line, 0, file)


def _sparse(dd: DiskDriver, line: ExtentLine, start: int, file: ImageFile) -> SparsePart:
    """A sparse file of whatever kind it is."""
    head = file.read_metadata(0, sesparse.HEADER_BYTES)
    kind = kind_of(head)
    if kind == "hosted":
        return _hosted_part(dd, line, start, file)
    if kind == "cowd":
        layout, reason = cowd_layout(cowd_header(file)), "vmfsSparse (COWD) can only be read"
    elif kind == "sesparse":
        layout, reason = sesparse_layout(sesparse_header(file)), "seSparse can only be read"
    else:
        raise ImageFormatError(f"its extent {file.path} is not a sparse file")
    return SparsePart(line, start, GrainMap(file, layout, _cache(dd)), reason)


def _hosted_part(
    dd: DiskDriver, line: ExtentLine, start: int, file: ImageFile, *, appendable: bool = False
) -> SparsePart:
    header = SparseHeader.unpack(file.read_metadata(0, sparse.HEADER_BYTES))
    header.check()
    found, tail = with_footer(file, header)
    found.check()
    map = GrainMap(file, hosted_layout(found), _cache(dd))
    markers = bool(header.flags & sparse.FLAG_MARKERS)
    writing = not file.read_only and line.access == "RW"
    if not header.compressed:
        if writing:
            return WritablePart(line, start, map, header)
        return SparsePart(line, start, map, "its description says that it must not be written")
    if writing and appendable and markers and map.layout.grain <= 2048:
        return StreamPart(line, map, header, tail)
    reason = "compressed extents can only be read, unless they are a streamOptimized disk alone"
    return CompressedPart(line, start, map, markers=markers, reason=reason)


def _cache(dd: DiskDriver) -> int:
    given = dd.options.metadata_cache
    return DEFAULT_CACHE if given is None else given


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
        damaged = isinstance(part, WritablePart) and not part.map.whole_directories
        if damaged and not mending:
            raise ImageFormatError(
                "has a damaged grain directory; it can be read, and `tapdisk check --repair all` "
                "mends it"
            )
        if not part.writable and not isinstance(part, ZeroPart):
            named = f" '{part.line.name}'" if part.line.name else ""
            raise NotSupportedError(f"cannot be written: its extent{named}: {part.reason}")
