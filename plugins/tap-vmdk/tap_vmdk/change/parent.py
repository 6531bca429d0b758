"""Parents: which one a disk records, whether it is still that one, and recording another."""

from __future__ import annotations

import os
from typing import Any, Final

import attrs

from tap_vmdk.change.commit import NEXT_PARENT, accepted_cids, settle
from tap_vmdk.descriptor.disktypes import SPARSE_KINDS
from tap_vmdk.descriptor.ids import ids_of, parent_ids, record_parent_ids
from tap_vmdk.descriptor.place import descriptor_in
from tap_vmdk.descriptor.text import NO_PARENT, PARENT_HINT, PARENT_UUID, Descriptor
from tap_vmdk.facts import Facts
from tap_vmdk.identity import extent_lines, identify, name_on_disk, parent_at
from tap_vmdk.image import Image
from tap_vmdk.signature import HEAD_BYTES
from tap_vmdk.sparse.writable import WritableGrainMap
from tapcore import (
    DiskDriver,
    DiskId,
    ImageFormatError,
    ImageIds,
    NotSupportedError,
    UsageError,
    check_ids,
    find_by_ids,
)

MOST_BYTES: Final = 64 << 20
"""Of descriptors that are read to find a parent."""


def recorded_parent(image: Facts) -> str | None:
    """The name of the parent as it is recorded; None for a disk that stands alone.

    Raises:
        ImageFormatError: there is one, but it is not said where.
    """
    descriptor = image.descriptor
    if descriptor is None or not descriptor.has_parent:
        return None
    if descriptor.parent_hint and descriptor.parent_cid != NO_PARENT:
        return name_on_disk(image, descriptor.parent_hint)
    found = _find(os.path.dirname(os.path.realpath(image.file.path)), parent_ids(descriptor))
    if found is None:
        raise ImageFormatError(
            "has a parent, but does not say where it is, and none of its id lies in its folder or "
            "in the one above: `tapdisk rebase --unsafe -b PARENT` records where it is"
        )
    return found


def _find(folder: str, wanted: ImageIds) -> str | None:
    """The parent that a child knows by its UUID, as VirtualBox does."""
    left = MOST_BYTES

    def ids_in(fd: int) -> ImageIds | None:
        def read(offset: int, count: int) -> bytes:
            nonlocal left
            left -= count
            return os.pread(fd, count, offset) if left >= 0 else b""

        head, size = os.pread(fd, HEAD_BYTES, 0), os.fstat(fd).st_size
        return ids_of(descriptor_in(head, size, read))

    return find_by_ids(folder, wanted, ids_in)


def check_parent(child: Facts, parent: Any) -> None:
    """Raise where a parent is not the one that the child was made on.

    Args:
        child: its image.
        parent: what the parent's driver has as `private`.

    Raises:
        ImageFormatError: it was changed since, or is of another format.
    """
    if not isinstance(parent, Facts):
        raise ImageFormatError("has a parent that is not a VMDK")
    if child.descriptor is None or parent.descriptor is None:
        return
    recorded, found_ids = parent_ids(child.descriptor), ids_of(parent.descriptor)
    if found_ids.image is not None:  # other programs keep no id of the last change
        modified = found_ids.modified or recorded.modified
        check_ids(recorded, attrs.evolve(found_ids, modified=modified))
    wanted, found = child.descriptor.parent_cid, parent.descriptor.cid
    by_id = wanted == NO_PARENT and found_ids.image is not None
    if not by_id and found not in accepted_cids(child):
        raise ImageFormatError(
            "its parent was changed after it was made "
            f"(its content id is {found:08x}, and {wanted:08x} was recorded)"
        )
    settle(child, parent)


def record_parent(dd: DiskDriver, parent: DiskId | None) -> None:
    """As `td_set_parent`."""
    image: Image = dd.private
    if image.descriptor is None or image.place is None:
        raise NotSupportedError("has no descriptor that could name a parent")
    descriptor = image.descriptor.copy()
    descriptor.remove(NEXT_PARENT)
    if parent is None:
        record_parent_ids(descriptor, None)
        descriptor.set("parentCID", f"{NO_PARENT:08x}", after="CID")
        descriptor.remove(PARENT_HINT)
    else:
        if parent.drivertype not in ("", "vmdk"):
            raise UsageError("the parent of a VMDK must be a VMDK")
        if any(c in parent.name for c in '"\r\n\0'):
            raise UsageError("the parent's name must not have quotes or line ends")
        if not _has_holes(image):
            raise NotSupportedError(f"a {image.subformat} disk cannot have a parent")
        path = os.path.join(os.path.dirname(os.path.realpath(dd.name)), parent.name)
        below = parent_at(path)
        record_parent_ids(descriptor, below.descriptor)
        descriptor.set("parentCID", f"{below.descriptor.cid:08x}", after="CID")
        descriptor.set_name(PARENT_HINT, parent.name, after="createType")
    _rewrite(image, descriptor)


def _has_holes(image: Image) -> bool:
    """Whether a parent can show through: all of the disk lies in sparse files of the kinds that
    children have. Where its extents are not open their lines tell."""
    if not image.parts:
        return all(line.kind in SPARSE_KINDS for line in extent_lines(image))
    return all(part.map is not None and part.map.layout.whole for part in image.parts)


def _rewrite(image: Image, descriptor: Descriptor) -> None:
    """Put another descriptor in the place of the present one, on disk when this returns."""
    assert image.place is not None
    image.clusters.save()
    image.place.write(descriptor)
    image.descriptor = descriptor
    image.clusters.save()


def make_empty(dd: DiskDriver) -> None:
    """As `td_make_empty`."""
    image: Image = dd.private
    maps = [part.map for part in image.parts if isinstance(part.map, WritableGrainMap)]
    if len(maps) != len(image.parts):
        raise NotSupportedError(f"a {image.subformat} disk cannot be emptied")
    image.begin_writing()
    image.clusters.save()
    for map in maps:
        map.make_empty()
    parent = dd.next.private if dd.next is not None else None
    if image.descriptor is None or not isinstance(parent, Image):
        return
    # what it held may just have been written to the parent, which has another id then
    current, mine = identify(parent.file).descriptor, image.descriptor
    if current is None:
        return
    changed = mine.get(PARENT_UUID) is not None and record_parent_ids(mine, current)
    if mine.parent_cid not in (NO_PARENT, current.cid):
        mine.set("parentCID", f"{current.cid:08x}", after="CID")
        changed = True
    if changed:
        _rewrite(image, mine)
