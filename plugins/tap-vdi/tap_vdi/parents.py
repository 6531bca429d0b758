"""Which parent a differencing image has, and whether one is as it was.

An image knows its parent by a UUID, and says nothing of where it lies: VirtualBox keeps that in
the machine's settings. The core looks for the image of that UUID.
"""

from __future__ import annotations

import os
from uuid import uuid4

import attrs

from tap_vdi.header import HEADER_BYTES, NOTHING, PARENT_AT, Header, is_vdi, unpack_header
from tap_vdi.image import Image
from tapcore import (
    DiskDriver,
    DiskId,
    ImageFormatError,
    ImageIds,
    NotSupportedError,
    UsageError,
    check_ids,
    find_by_ids,
    look_at_file,
    printable,
)


def parent_name(image: Image) -> str | None:
    """The name of the parent, relative to the image's folder; None where there is none.

    Raises:
        ImageFormatError: it is not found, or not known which it is.
    """
    if not image.header.differs:
        return None
    folder = os.path.dirname(os.path.realpath(image.file.path))
    found = find_by_ids(folder, _recorded(image), _ids_in)
    if found is None:
        raise ImageFormatError(
            f"its parent, a VDI with the id {image.header.parent}, is neither in its folder nor in "
            "the one above"
        )
    return found


def _recorded(child: Image) -> ImageIds:
    return ImageIds(child.header.parent, child.parent_modified)


def _header_in(fd: int) -> Header | None:
    head = os.pread(fd, HEADER_BYTES, 0)
    return unpack_header(head) if is_vdi(head) else None


def _ids_in(fd: int) -> ImageIds | None:
    header = _header_in(fd)
    return None if header is None else ImageIds(header.id, header.modified)


def check_parent(child: Image, parent: DiskDriver) -> None:
    """Compare a parent with what its child has recorded.

    Raises:
        ImageFormatError: it is another image, or was changed.
    """
    image = parent.private
    if not isinstance(image, Image):
        raise ImageFormatError("has a parent that is not a VDI")
    check_ids(_recorded(child), ImageIds(image.header.id, image.modified))


def new_parent(folder: str, parent: DiskId) -> Header:
    """The header of an image that is to be a parent.

    Args:
        folder: of the child.
        parent: its name, relative to the folder, or absolute.

    Raises:
        UsageError: it is no VDI, or would not be found again.
    """
    if parent.drivertype not in ("", "vdi"):
        raise UsageError("the parent of a VDI must be a VDI: it is known by its id")
    path = os.path.realpath(os.path.join(folder, parent.name))
    if os.path.dirname(path) not in (folder, os.path.dirname(folder)):
        raise UsageError(
            "a VDI does not say where its parent is: that must lie in the folder of the child, or "
            "in the one above"
        )
    header = look_at_file(path, _header_in)
    if header is None:
        raise UsageError(f"the parent {printable(parent.name)} is not a VDI")
    try:
        found = find_by_ids(folder, ImageIds(header.id, header.modified), _ids_in)
    except ImageFormatError as exc:
        raise UsageError(exc.message) from None
    if found is None:
        raise UsageError(f"the parent {printable(parent.name)} has no id by which it is found")
    if not os.path.samefile(os.path.join(folder, found), path):
        text = f"{printable(found)} has the same id as its parent, and would be taken for it"
        raise UsageError(text)
    return header


def set_parent(dd: DiskDriver[Image], parent: DiskId | None) -> None:
    """As `td_set_parent`.

    Raises:
        NotSupportedError: an image that is not a differencing one cannot have a parent.
        UsageError: it would not be found again.
        OSError: as the system says.
    """
    image = dd.private
    if not image.header.differs:
        raise NotSupportedError("is a VDI that cannot have a parent: only differencing ones can")
    if parent is None:
        raise NotSupportedError("is a differencing VDI, which must have a parent: convert it")
    folder = os.path.dirname(os.path.realpath(image.file.path))
    header = new_parent(folder, parent)
    image.clusters.save()
    image.record(PARENT_AT, header.id, header.modified)
    image.header = attrs.evolve(image.header, parent=header.id)
    image.parent_modified = header.modified


def before_commit(child: Image, parent: DiskDriver) -> None:
    """As `td_before_commit`: for a moment the child takes its parent whatever its last change is.

    Raises:
        OSError: as the system says; the child takes its parent.
    """
    image = parent.private
    if not isinstance(image, Image) or image.changed:
        return
    child.record_parent_change(NOTHING)
    image.record_change(uuid4())
    child.record_parent_change(image.modified)
