"""Another parent, none, or no content any more."""

from __future__ import annotations

import contextlib
import os

import attrs

from tap_vhd.blocks import BlockImage
from tap_vhd.check import scan
from tap_vhd.create import as_ours
from tap_vhd.footer import DIFFERENCING, DYNAMIC, TAPDISK
from tap_vhd.header import UNUSED
from tap_vhd.image import Image
from tap_vhd.moving import put_footer
from tap_vhd.parentnames import names_to_record
from tap_vhd.parents import identity_of, time_stamp
from tap_vhd.restructure import restructure
from tapcore import DiskId, NotSupportedError, UsageError


def _folder(image: BlockImage) -> str:
    return os.path.dirname(os.path.realpath(image.file.path))


def set_parent(image: Image, parent: DiskId | None) -> None:
    """As `td_set_parent`.

    Raises:
        NotSupportedError: a fixed image cannot have a parent.
        UsageError: it cannot be this one.
        OSError, TapError: it is as it was.
    """
    if not isinstance(image, BlockImage):
        raise NotSupportedError("is a fixed VHD, which cannot have a parent")
    footer, header = image.footers.footer, image.header
    if parent is None:
        alone = attrs.evolve(header, parent_id=bytes(16), parent_time=0, parent_name=b"")
        restructure(image, attrs.evolve(footer, disk_type=DYNAMIC), alone, names=())
        return
    if parent.drivertype not in ("", "vhd"):
        raise UsageError("the parent of a VHD must be a VHD: it is known by its id")
    below, changed = identity_of(os.path.join(_folder(image), parent.name))
    names, in_header = names_to_record(parent.name, _folder(image))
    child = attrs.evolve(
        header, parent_id=below.unique_id, parent_time=changed, parent_name=in_header
    )
    restructure(image, attrs.evolve(footer, disk_type=DIFFERENCING), child, names)


def make_empty(image: Image) -> None:
    """As `td_make_empty`. What has just been written to the parent is no later change of it.

    Raises:
        NotSupportedError: it has no parent.
        OSError, TapError: as the system says.
    """
    if not isinstance(image, BlockImage) or image.footers.footer.disk_type != DIFFERENCING:
        raise NotSupportedError("is a VHD without a parent, which cannot be emptied")
    image.clusters.begin_writing()
    image.clusters.save()
    image.blocks.set(0, [UNUSED] * len(image.blocks.entries))
    for offset, content in image.blocks.changes():
        image.file.write_metadata(offset, content)
    image.blocks.dirty.clear()
    image.tables.forget()
    image.file.make_safe()
    put_footer(image, scan(image).end)
    image.clusters.stop_writing()
    footer, header = image.footers.footer, image.header
    with contextlib.suppress(OSError):  # its other name may be the one that leads there
        changed = time_stamp(os.path.join(_folder(image), image.parents[0]))
        header = attrs.evolve(header, parent_time=changed)
    restructure(image, as_ours(footer) if footer.creator == TAPDISK else footer, header)
