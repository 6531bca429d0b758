"""Parents in VirtualBox's way: a child knows one by its UUID, and does not say where it lies.

VirtualBox keeps that in the machine's settings. The parent is the VMDK of that UUID in the child's
own folder, or in the one above, since children lie in a folder `Snapshots` beside the first image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final
from uuid import UUID

import attrs

from tap_vmdk.descriptor.ids import IMAGE_UUID, MODIFIED, PARENT_MODIFIED, uuid_of
from tap_vmdk.descriptor.text import MAX_DESCRIPTOR, PARENT_UUID, Descriptor
from tap_vmdk.signature import HEAD_BYTES, kind_of
from tap_vmdk.sparse.header import SparseHeader
from tapcore import ImageFormatError, TapError, printable

MOST_FILES: Final = 10_000
"""Files of a folder that are looked at."""
MOST_BYTES: Final = 64 << 20
"""Of descriptors of a folder that are read."""


@attrs.frozen
class Found:
    """A file that may be the parent.

    Attributes:
        name: relative to the child's folder.
        descriptor: of it.
    """

    name: str
    descriptor: Descriptor


def find(folder: str, child: Descriptor) -> str | None:
    """The name of the parent that a child knows by its UUID, relative to the child's folder.

    Args:
        folder: of the child.
        child: its descriptor, which records a UUID.

    Returns:
        None where there is no such file.

    Raises:
        ImageFormatError: there are several.
    """
    wanted, modified = uuid_of(child, PARENT_UUID), uuid_of(child, PARENT_MODIFIED)
    if wanted is None:
        return None
    for prefix in ("", ".."):
        found = list(_images(folder, prefix, wanted))
        if len(found) > 1 and modified is not None:
            same = [each for each in found if uuid_of(each.descriptor, MODIFIED) == modified]
            found = same or found
        if len(found) > 1:
            names = " and ".join(printable(each.name) for each in found[:2])
            raise ImageFormatError(f"does not say which of {names} its parent is: both have its id")
        if found:
            return found[0].name
    return None


def _images(folder: str, prefix: str, wanted: UUID) -> Iterator[Found]:
    """The VMDKs of a folder that have a UUID, by name."""
    try:
        with os.scandir(os.path.join(folder, prefix)) as entries:
            names = sorted(entry.name for entry, _ in zip(entries, range(MOST_FILES), strict=False))
    except OSError:
        return
    left = MOST_BYTES
    for name in names:
        raw = _descriptor_text(os.path.join(folder, prefix, name), left)
        left -= len(raw)
        if str(wanted).encode() not in raw.lower():
            continue
        try:
            descriptor = Descriptor.parse(raw)
        except TapError:
            continue
        if uuid_of(descriptor, IMAGE_UUID) == wanted:
            yield Found(os.path.join(prefix, name), descriptor)


def _descriptor_text(path: str, most: int) -> bytes:
    """The descriptor in a file, or that is one, of so many bytes at most; empty where none is."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b""
        head = os.pread(fd, HEAD_BYTES, 0)
        kind = kind_of(head)
        at, size = 0, status.st_size
        if kind == "hosted":
            header = SparseHeader.unpack(head)
            at, size = header.descriptor_offset * 512, header.descriptor_size * 512
        elif kind != "descriptor":
            return b""
        if size > min(MAX_DESCRIPTOR, most) or at + size > status.st_size:
            return b""
        return os.pread(fd, size, at).split(b"\0", 1)[0]
    except (OSError, TapError):
        return b""
    finally:
        os.close(fd)


def check_ids(child: Descriptor, parent: Descriptor) -> None:
    """Compare a parent with what its child has recorded of it in VirtualBox's way.

    Raises:
        ImageFormatError: it is another disk, or was changed.
    """
    wanted, found = uuid_of(child, PARENT_UUID), uuid_of(parent, IMAGE_UUID)
    if wanted is None or found is None:
        return
    if found != wanted:
        raise ImageFormatError(f"its parent is another disk (its id is {found}, not {wanted})")
    recorded, now = uuid_of(child, PARENT_MODIFIED), uuid_of(parent, MODIFIED)
    if recorded is not None and now is not None and recorded != now:
        raise ImageFormatError(
            "its parent was changed after it was made (the id of its last change is "
            f"{now}, and {recorded} was recorded)"
        )
