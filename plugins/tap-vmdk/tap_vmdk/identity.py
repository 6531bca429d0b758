"""Which kind of image a file is, and what its descriptor names."""

from __future__ import annotations

import os
from typing import NamedTuple

from tap_vmdk.descriptor.disktypes import kind_of_disk, own_sectors
from tap_vmdk.descriptor.place import (
    DescriptorPlace,
    descriptor_behind_header,
    embedded_descriptor,
    naming,
    place_in,
)
from tap_vmdk.descriptor.text import MAX_DESCRIPTOR, Descriptor, ExtentLine
from tap_vmdk.facts import Facts
from tap_vmdk.options import MONOLITHIC_SPARSE
from tap_vmdk.signature import HEAD_BYTES, kind_of
from tap_vmdk.sparse.header import SparseHeader
from tapcore import (
    TD_RDONLY,
    ImageFile,
    ImageFormatError,
    OpenOptions,
    UsageError,
    open_image_file,
)


def stands_alone(image: Facts) -> bool:
    """Whether the image's only part is its own file.

    A sparse file without a capacity holds nothing but a descriptor, which names other files.
    """
    if image.header is not None:
        return image.header.capacity > 0
    return image.place is None


def identify(file: ImageFile) -> Facts:
    """Which kind of image a file is; opens and takes nothing else.

    Raises:
        ImageFormatError: none.
        NotSupportedError: one that is not supported.
    """
    head = file.read_metadata(0, HEAD_BYTES)
    kind = kind_of(head)
    if kind == "hosted":
        return _hosted(file, SparseHeader.unpack(head))
    if kind == "cowd":
        return Facts(file, None, None, "vmfsSparse")
    if kind == "sesparse":
        return Facts(file, None, None, "seSparse")
    refuse_other_content(head, file.size)
    descriptor = Descriptor.parse(file.read_metadata(0, file.size))
    return Facts(file, descriptor, DescriptorPlace(file), kind_of_disk(descriptor, "custom"))


def refuse_other_content(head: bytes, size: int) -> None:
    """Raise for a file that is neither a sparse file nor a descriptor.

    Args:
        head: its first bytes.
        size: of it.

    Raises:
        ImageFormatError: always with the reason.
    """
    if kind_of(head) != "descriptor" and b"createType" not in head:
        raise ImageFormatError("is not a VMDK")
    if size > MAX_DESCRIPTOR:
        raise ImageFormatError(f"is longer than a descriptor may be ({MAX_DESCRIPTOR} bytes)")


def _hosted(file: ImageFile, header: SparseHeader) -> Facts:
    """A sparse file, with its descriptor where it has one."""
    if header.capacity:
        header.check()
    descriptor = embedded_descriptor(header, file.size, file.read_metadata)
    place = None
    if descriptor is not None:
        place = place_in(file, header)
    else:
        descriptor = descriptor_behind_header(file.read_metadata)
    if descriptor is None:
        return Facts(file, None, None, MONOLITHIC_SPARSE, header)
    if place is None:
        header = naming(header, file.read_metadata)
    kind = kind_of_disk(descriptor, MONOLITHIC_SPARSE)
    return Facts(file, descriptor, place, kind, header)


def extent_lines(image: Facts) -> list[ExtentLine]:
    """The extents of a disk whose descriptor names its files, but for those of no sectors.

    Raises:
        ImageFormatError: there are none.
    """
    assert image.descriptor is not None
    lines = [line for line in image.descriptor.extents() if line.sectors]
    if not lines:
        raise ImageFormatError("names no extents in its descriptor")
    return lines


def name_on_disk(image: Facts, name: str) -> str:
    """The name by which a file that a descriptor names is looked for.

    A file has the very bytes of the descriptor as its name, where it came from a system of that
    encoding and where QEMU looks; or the name was brought to UTF-8 with the file, and the
    descriptor stayed behind.

    Args:
        image: of the descriptor.
        name: as it names the file.
    """
    assert image.descriptor is not None
    meant = image.descriptor.meant(name)
    home = os.path.dirname(os.path.realpath(image.file.path))
    if meant == name or os.path.lexists(os.path.join(home, name)):
        return name
    return meant


def is_own_name(named: str, path: str) -> bool:
    """Whether a file that holds its own descriptor is what that names.

    Args:
        named: in the descriptor.
        path: of the file.
    """
    return named in (os.path.basename(path), os.path.basename(os.path.realpath(path)))


class Parent(NamedTuple):
    """A VMDK that is to be a parent.

    Attributes:
        descriptor: of it.
        sectors: of its disk.
    """

    descriptor: Descriptor
    sectors: int


def parent_at(path: str) -> Parent:
    """What there is to record of a parent.

    Args:
        path: of the file, which its user has named.

    Raises:
        TapError, OSError: it is no VMDK, or cannot be read.
    """
    file = open_image_file(path, TD_RDONLY, OpenOptions(locking=False))
    try:
        image = identify(file)
        if image.descriptor is None:
            raise UsageError("a file without a descriptor cannot be a parent", image=path)
        return Parent(image.descriptor, _sectors(image))
    finally:
        file.close()


def _sectors(image: Facts) -> int:
    if stands_alone(image):
        header = image.header
        assert header is not None
        return own_sectors(image.descriptor, header.capacity, header.grain)
    return sum(line.sectors for line in extent_lines(image))
