"""The UUIDs of a descriptor: what VirtualBox knows a disk by, its last change, and its parent.

Source: what VirtualBox 7.2 writes. Other programs keep these entries as they are.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid4

from tap_vmdk.descriptor.text import PARENT_UUID, Descriptor
from tapcore import ImageIds

IMAGE_UUID: Final = "ddb.uuid.image"
MODIFIED: Final = "ddb.uuid.modification"
PARENT_MODIFIED: Final = "ddb.uuid.parentmodification"
_NOTHING: Final = UUID(int=0)


def uuid_of(descriptor: Descriptor, key: str) -> UUID | None:
    """The value of an entry; None where it is not there, says nothing, or is no UUID."""
    try:
        found = UUID((descriptor.get(key) or "").strip("{} "))
    except ValueError:
        return None
    return None if found == _NOTHING else found


def quoted(value: UUID | None) -> str:
    """A value as it is written; None: nothing."""
    return f'"{value or _NOTHING}"'


def new_ids(parent: Descriptor | None) -> list[str]:
    """The entries of a new disk.

    Args:
        parent: the parent's descriptor; None: it has none.
    """
    above = ids_of(parent)
    values = (uuid4(), uuid4(), above.image, above.modified)
    keys = (IMAGE_UUID, MODIFIED, PARENT_UUID, PARENT_MODIFIED)
    return [f"{key}={quoted(value)}" for key, value in zip(keys, values, strict=True)]


def ids_of(descriptor: Descriptor | None) -> ImageIds:
    """By what a disk is known, as it says; nothing where it has no descriptor."""
    if descriptor is None:
        return ImageIds(None)
    own = uuid_of(descriptor, IMAGE_UUID)
    return ImageIds(own, None if own is None else uuid_of(descriptor, MODIFIED))


def parent_ids(child: Descriptor) -> ImageIds:
    """What a child has recorded of its parent."""
    return ImageIds(uuid_of(child, PARENT_UUID), uuid_of(child, PARENT_MODIFIED))


def changed_now(descriptor: Descriptor) -> None:
    """Say that the disk's content is another one, where it has said so before."""
    if uuid_of(descriptor, MODIFIED) is not None:
        descriptor.set(MODIFIED, quoted(uuid4()))


def record_parent_ids(child: Descriptor, parent: Descriptor | None) -> bool:
    """Let a child that has such entries, or whose parent has, say which one its parent is.

    Args:
        child: changed in place.
        parent: the parent's; None: there is none any more.

    Returns:
        Whether anything has changed.
    """
    ids, before = ids_of(parent), list(child.lines)
    if ids.image is not None or child.get(PARENT_UUID) is not None:
        child.set(PARENT_UUID, quoted(ids.image))
        child.set(PARENT_MODIFIED, quoted(ids.modified))
    return child.lines != before
