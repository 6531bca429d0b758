"""The hooks of the handle `vmdk`; what they do is in the other modules.

These are loaded when they are first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tap_vmdk.options import CREATE_OPTIONS
from tap_vmdk.signature import MAGIC, kind_of
from tapcore import (
    TD_NO_PARENT,
    DiskDriver,
    DiskId,
    DiskInfo,
    Hooks,
    implements,
)
from tapcore.clusters import (  # noqa: F401 -- the hooks of what has tables, and of flat parts too
    td_extents,
    td_places,
    td_queue_discard,
    td_queue_flush,
    td_queue_read,
    td_queue_write,
    td_queue_write_compressed,
    td_queue_write_zeroes,
    td_submit,
)

if TYPE_CHECKING:
    from tap_vmdk.facts import Facts
    from tap_vmdk.image import Image
    from tapcore import CheckResult, Inspection, Measurement

disk_info = DiskInfo(
    handle="vmdk",
    name="vmware image (vmdk)",
    api=1,
    makes_unnamed=True,
    single_handler=True,
    suffixes=(".vmdk",),
    magic=MAGIC,
    create_options=CREATE_OPTIONS,
)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver, name: str, flags: int) -> None:
    """Open the descriptor and all extents; where that tells all that is wanted, a file's head."""
    if dd.options.facts_only:
        from tap_vmdk.looking import look

        if look(dd, name):
            return
    from tap_vmdk.openimage import open_image
    from tapcore.clusters import or_through_page_cache

    image = or_through_page_cache(dd, name, lambda: open_image(dd, name, flags))
    dd.private = image
    dd.size = image.sectors
    dd.io_fd[0] = image.pollable()
    dd.sector_size = max((part.unit for part in image.parts), default=512)
    dd.cluster_size = max((part.cluster for part in image.parts), default=0)


@implements(Hooks.td_close)
def td_close(dd: DiskDriver) -> None:
    """Flush as `td_queue_flush` does, and close every file."""
    dd.private.close()


@implements(Hooks.td_do_callbacks)
def td_do_callbacks(dd: DiskDriver, sid: int) -> int:
    """Answer what has finished."""
    image: Image = dd.private
    return image.reap()


@implements(Hooks.td_get_parent_id)
def td_get_parent_id(dd: DiskDriver, id: DiskId) -> int:
    """What the descriptor says."""
    facts: Facts = dd.private
    if facts.descriptor is None or not facts.descriptor.has_parent:  # as mostly
        return TD_NO_PARENT
    from tap_vmdk.change.parent import recorded_parent

    parent = recorded_parent(dd.private)
    if parent is None:
        return TD_NO_PARENT
    id.name, id.drivertype = parent, "vmdk"
    return 0


@implements(Hooks.td_validate_parent)
def td_validate_parent(dd: DiskDriver, p: DiskDriver, flags: int) -> int:
    """By its content id."""
    from tap_vmdk.change.parent import check_parent

    check_parent(dd.private, p.private)
    return 0


@implements(Hooks.td_set_parent)
def td_set_parent(dd: DiskDriver, parent: DiskId | None) -> None:
    """Rewrite the descriptor."""
    from tap_vmdk.change.parent import record_parent

    record_parent(dd, parent)


@implements(Hooks.td_before_commit)
def td_before_commit(dd: DiskDriver, p: DiskDriver) -> None:
    """Agree on the content id that the parent is about to get."""
    from tap_vmdk.change.commit import before_commit

    before_commit(dd.private, p.private)


@implements(Hooks.td_make_empty)
def td_make_empty(dd: DiskDriver) -> None:
    """Rewrite all tables, and give the space back."""
    from tap_vmdk.change.parent import make_empty

    make_empty(dd)


@implements(Hooks.td_probe)
def td_probe(name: str, head: bytes, tail: bytes) -> bool:
    """By the first bytes, where `MAGIC` does not tell."""
    return kind_of(head) != ""


@implements(Hooks.td_create)
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """Make the descriptor and all extents."""
    from tap_vmdk.create.image import create_image

    create_image(name, size, parent, options)


@implements(Hooks.td_info)
def td_info(dd: DiskDriver) -> dict[str, Any]:
    """What the descriptor and the headers say."""
    from tap_vmdk.information import describe

    return describe(dd)


@implements(Hooks.td_other_files)
def td_other_files(dd: DiskDriver) -> Sequence[str]:
    """The extents."""
    from tap_vmdk.information import other_files

    return other_files(dd.private)


@implements(Hooks.td_inspect)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """The header and the descriptor alone."""
    from tap_vmdk.inspection import inspect

    return inspect(name, fd, size)


@implements(Hooks.td_resize)
def td_resize(dd: DiskDriver, size: int) -> None:
    """Flat and sparse disks of a single extent can grow."""
    from tap_vmdk.change.resize import resize

    resize(dd, size)


@implements(Hooks.td_check)
def td_check(dd: DiskDriver, repair: str) -> CheckResult:
    """The tables of every sparse extent, and the descriptor against the extents."""
    from tap_vmdk.check.image import check

    return check(dd, repair)


@implements(Hooks.td_measure)
def td_measure(
    size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    """From the number of grains."""
    from tap_vmdk.create.measure import measure

    return measure(size, options, data)


@implements(Hooks.td_stream)
def td_stream(
    out: Callable[[Any], object],
    size: int,
    options: Mapping[str, str],
    pieces: Iterable[tuple[int, memoryview]],
) -> None:
    """A streamOptimized disk, whatever else is asked for is refused."""
    from tap_vmdk.create.stream import write_stream

    write_stream(out, size, options, pieces)
