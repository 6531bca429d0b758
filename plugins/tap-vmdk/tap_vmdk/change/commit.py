"""The order in which a commit changes two content ids, so that both disks are right all the time.

A parent that is written gets another content id, and a child takes only a parent with the id that
it has recorded. So the child first records, besides, the id that its parent is about to get; then
the parent gets it, which all its other children notice; then the child records that one alone. All
of it is on disk before the first of the child's sectors goes into the parent.
"""

from __future__ import annotations

from typing import Any, Final

from tap_vmdk.descriptor.ids import MODIFIED, PARENT_MODIFIED, quoted, uuid_of
from tap_vmdk.descriptor.text import NO_PARENT
from tap_vmdk.facts import Facts
from tap_vmdk.image import Image

NEXT_PARENT: Final = "ddb.tapcore.nextParentCID"
"""Entry of a child whose parent is about to get this content id, or has it already."""


def accepted_cids(child: Facts) -> set[int]:
    """The content ids of which a child's parent may have any.

    Args:
        child: with a descriptor.
    """
    assert child.descriptor is not None
    found = {child.descriptor.parent_cid}
    if (following := child.descriptor.hex_or_none(NEXT_PARENT)) is not None:
        found.add(following)
    return found - {NO_PARENT}


def before_commit(child: Image, parent: Any) -> None:
    """As `td_before_commit`.

    Raises:
        NotSupportedError: the child's descriptor has no room for another line.
        OSError: as the system says; both are as they were, or right together.
    """
    if not isinstance(parent, Image) or parent.changed:
        return
    mine, place = child.descriptor, child.place
    if mine is None or place is None or parent.descriptor is None or parent.place is None:
        return
    settle(child, parent)
    by_id = uuid_of(mine, PARENT_MODIFIED) is not None
    if by_id:  # for a moment any last change of its parent will do
        mine.set(PARENT_MODIFIED, quoted(None))
        place.write_uuid(mine, PARENT_MODIFIED)
    if mine.parent_cid == NO_PARENT:
        parent.begin_writing()
        parent.clusters.save()
    else:
        cid = parent.place.next_cid(parent.descriptor.cid)
        place.add_line(f'{NEXT_PARENT} = "{cid:08x}"'.encode())
        mine.set(NEXT_PARENT, f'"{cid:08x}"')
        parent.begin_writing(cid)
        parent.clusters.save()
        _record(child, cid)
    if by_id:
        mine.set(PARENT_MODIFIED, quoted(uuid_of(parent.descriptor, MODIFIED)))
        place.write_uuid(mine, PARENT_MODIFIED)


def settle(child: Facts, parent: Facts) -> None:
    """Finish what a commit that was stopped has left in a child that is open for writing.

    Raises:
        OSError: as the system says; the child takes its parent as before.
    """
    if child.descriptor is None or child.place is None or parent.descriptor is None:
        return
    if child.file.read_only or child.descriptor.get(NEXT_PARENT) is None:
        return
    if parent.descriptor.cid in accepted_cids(child):
        _record(child, parent.descriptor.cid)


def _record(child: Facts, cid: int) -> None:
    """Let the child know its parent by one content id alone, on disk when this returns."""
    mine, place = child.descriptor, child.place
    assert mine is not None
    assert place is not None
    mine.set("parentCID", f"{cid:08x}", after="CID")
    place.write_parent_cid(mine)
    if res := place.file.flush_blocking():
        raise OSError(-res, "the content id could not be made safe")
    mine.remove(NEXT_PARENT)
    if place.text().rstrip(b"\n").rpartition(b"\n")[2].startswith(NEXT_PARENT.encode()):
        place.remove_last_line()
    else:
        place.write(mine)
