"""The UUIDs of a descriptor: what VirtualBox knows a disk by, its last change, and its parent.

Source: what VirtualBox 7.2 writes. Other programs keep these entries as they are.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid4

from tap_vmdk.descriptor.text import PARENT_UUID, Descriptor

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
    above = (None, None) if parent is None else ids_of(parent)
    values = (uuid4(), uuid4(), *above)
    keys = (IMAGE_UUID, MODIFIED, PARENT_UUID, PARENT_MODIFIED)
    return [f"{key}={quoted(value)}" for key, value in zip(keys, values, strict=True)]


def ids_of(parent: Descriptor) -> tuple[UUID | None, UUID | None]:
    """What a child records of its parent: its UUID, and that of its last change."""
    own = uuid_of(parent, IMAGE_UUID)
    return own, None if own is None else uuid_of(parent, MODIFIED)


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
    own, modified = (None, None) if parent is None else ids_of(parent)
    before = list(child.lines)
    if own is not None or child.get(PARENT_UUID) is not None:
        child.set(PARENT_UUID, quoted(own))
        child.set(PARENT_MODIFIED, quoted(modified))
    return child.lines != before
