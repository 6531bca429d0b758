"""Which parent an image has, and whether one is as it was."""

from __future__ import annotations

import os

import attrs

from tap_vhdx.image import Image
from tap_vhdx.items import Disk
from tap_vhdx.layout import read_layout
from tap_vhdx.locator import LINKAGE, linkages, pack_locator, read_locator
from tap_vhdx.parentnames import names_to_record, recorded_names
from tapcore import (
    TD_RDONLY,
    DiskDriver,
    DiskId,
    ImageFormatError,
    OpenOptions,
    UsageError,
    open_image_file,
    printable,
)


def parent_name(image: Image) -> str | None:
    """The name to go by; None for an image that stands alone.

    Raises:
        ImageFormatError: it has a parent, and no name of it.
    """
    locator = image.layout.disk.locator
    if locator is None:
        return None
    names = recorded_names(read_locator(locator))
    if not names:
        raise ImageFormatError("has a parent, but does not say where it is")
    return names[0]


def check_parent(child: Image, parent: DiskDriver) -> None:
    """Compare a parent with what its child has recorded: the id of its last change.

    Raises:
        ImageFormatError: it is another image, or was changed.
    """
    image = parent.private
    if not isinstance(image, Image):
        raise ImageFormatError("has a parent that is not a VHDX")
    assert child.layout.disk.locator is not None
    wanted = linkages(read_locator(child.layout.disk.locator))
    found = image.layout.headers.current.data_write
    if found not in wanted:
        raise ImageFormatError(
            "its parent is another image, or was changed after it was made (the id of its last "
            f"change is {found}, and {wanted[0]} was recorded)"
        )
    logical = image.layout.disk.logical
    if logical != child.layout.disk.logical:
        raise ImageFormatError(f"has a parent with sectors of another size ({logical} bytes)")


@attrs.frozen
class NewParent:
    """What a new child says of its parent.

    Attributes:
        disk: the parent's.
        locator: bytes.
    """

    disk: Disk
    locator: bytes


def new_parent(name: str, parent: DiskId) -> NewParent:
    """Look at an image that is to be a parent.

    Args:
        name: of the child.
        parent: its name, relative to the child's folder, or absolute.

    Raises:
        UsageError: it is no VHDX, or has a name that cannot be recorded.
        OSError, TapError: it cannot be read.
    """
    if parent.drivertype not in ("", "vhdx"):
        raise UsageError("the parent of a VHDX must be a VHDX: it is known by its id")
    folder = os.path.dirname(os.path.realpath(name))
    names = names_to_record(parent.name, folder)
    file = open_image_file(os.path.join(folder, parent.name), TD_RDONLY, OpenOptions())
    try:
        layout = read_layout(file.read_metadata, file.size)
    except ImageFormatError as exc:
        text = f"the parent {printable(parent.name)} {exc.message}"
        raise UsageError(text) from None
    finally:
        file.close()
    linkage = f"{{{layout.headers.current.data_write}}}"
    return NewParent(layout.disk, pack_locator({LINKAGE: linkage, **names}))
