"""Which parent a differencing image has, and whether one is as it was.

An image knows its parent by a UUID, and says nothing of where it lies: VirtualBox keeps that in
the machine's settings. The parent is the file of that UUID in the image's own folder, or in the one
above, since VirtualBox keeps children in a folder `Snapshots` beside the first image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final
from uuid import UUID, uuid4

import attrs

from tap_vdi.header import HEADER_BYTES, NOTHING, PARENT_AT, Header, is_vdi, unpack_header
from tap_vdi.image import Image
from tapcore import (
    DiskDriver,
    DiskId,
    ImageFormatError,
    NotSupportedError,
    TapError,
    UsageError,
    printable,
)

MOST_FILES: Final = 10_000
"""Files of a folder that are looked at."""


@attrs.frozen
class Found:
    """A file that may be the parent.

    Attributes:
        name: relative to the image's folder.
        header: of it.
    """

    name: str
    header: Header


def parent_name(image: Image) -> str | None:
    """The name of the parent, relative to the image's folder; None where there is none.

    Raises:
        ImageFormatError: it is not found, or not known which it is.
    """
    if not image.header.differs:
        return None
    folder = os.path.dirname(os.path.realpath(image.file.path))
    return find(folder, image.header.parent, image.parent_modified).name


def find(folder: str, wanted: UUID, modified: UUID) -> Found:
    """The image with a UUID.

    Args:
        folder: of the child.
        wanted: the UUID.
        modified: that of the last change, where two have the same; `NOTHING`: not known.

    Raises:
        ImageFormatError: there is none, or more than one.
    """
    for prefix in ("", ".."):
        found = [each for each in images(folder, prefix) if each.header.id == wanted]
        if len(found) > 1:
            found = [each for each in found if each.header.modified == modified] or found
        if len(found) > 1:
            names = " and ".join(printable(each.name) for each in found[:2])
            raise ImageFormatError(f"does not say which of {names} its parent is: both have its id")
        if found:
            return found[0]
    raise ImageFormatError(
        f"its parent, a VDI with the id {wanted}, is neither in its folder nor in the one above"
    )


def images(folder: str, prefix: str) -> Iterator[Found]:
    """The VDIs of a folder, by name.

    Args:
        folder: of the child.
        prefix: of the names: the way from there.
    """
    try:
        with os.scandir(os.path.join(folder, prefix)) as entries:
            names = sorted(entry.name for entry, _ in zip(entries, range(MOST_FILES), strict=False))
    except OSError:
        return
    for name in names:
        header = header_of(os.path.join(folder, prefix, name))
        if header is not None:
            yield Found(os.path.join(prefix, name), header)


def header_of(path: str) -> Header | None:
    """What a file says of itself; None where it is no VDI."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        head = os.pread(fd, HEADER_BYTES, 0)
        return unpack_header(head) if is_vdi(head) else None
    except (OSError, TapError):
        return None
    finally:
        os.close(fd)


def check_parent(child: Image, parent: DiskDriver) -> None:
    """Compare a parent with what its child has recorded.

    Raises:
        ImageFormatError: it is another image, or was changed.
    """
    image = parent.private
    if not isinstance(image, Image):
        raise ImageFormatError("has a parent that is not a VDI")
    if image.header.id != child.header.parent:
        text = f"its parent is another image (its id is {image.header.id}, not "
        raise ImageFormatError(f"{text}{child.header.parent})")
    if child.parent_modified not in (NOTHING, image.modified):
        raise ImageFormatError(
            "its parent was changed after it was made (the id of its last change is "
            f"{image.modified}, and {child.parent_modified} was recorded)"
        )


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
    header = header_of(path)
    if header is None:
        raise UsageError(f"the parent {printable(parent.name)} is not a VDI")
    try:
        found = find(folder, header.id, header.modified)
    except ImageFormatError as exc:
        raise UsageError(exc.message) from None
    if not os.path.samefile(os.path.join(folder, found.name), path):
        text = f"{printable(found.name)} has the same id as its parent, and would be taken for it"
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
