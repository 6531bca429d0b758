"""The hooks of VDI images; what they do is in the other modules, and in `tapcore.clusters`.

These are loaded when they are first needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tapcore import (
    TD_NO_PARENT,
    DiskDriver,
    DiskId,
    DiskInfo,
    FormatOption,
    Hooks,
    Magic,
    implements,
)
from tapcore.clusters import (  # noqa: F401 -- the hooks that are the same for all maps
    td_close,
    td_do_callbacks,
    td_extents,
    td_places,
    td_queue_discard,
    td_queue_flush,
    td_queue_read,
    td_queue_write,
    td_queue_write_zeroes,
    td_submit,
)

if TYPE_CHECKING:
    from tap_vdi.image import Image
    from tapcore import CheckResult, Inspection, Measurement

disk_info = DiskInfo(
    handle="vdi",
    name="VirtualBox disk image (VDI)",
    api=1,
    suffixes=(".vdi",),
    magic=(Magic(b"\x7f\x10\xda\xbe", 64),),
    create_options=(
        FormatOption("subformat", "how it is stored", ("dynamic", "fixed"), "dynamic"),
        FormatOption(
            "block_size",
            "bytes of a block: 4K to 256M (VirtualBox 128K to 128M, QEMU 1M)",
            default="1M",
        ),
    ),
)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """All requests are the core's affair from here on."""
    from tap_vdi.opening import open_image

    open_image(dd, name, flags)


@implements(Hooks.td_get_parent_id)
def td_get_parent_id(dd: DiskDriver[Image], id: DiskId) -> int:
    """A VDI knows its parent by its UUID, which only a VDI has."""
    from tap_vdi.parents import parent_name

    name = parent_name(dd.private)
    if name is None:
        return TD_NO_PARENT
    id.name, id.drivertype = name, disk_info.handle
    return 0


@implements(Hooks.td_validate_parent)
def td_validate_parent(dd: DiskDriver[Image], p: DiskDriver, flags: int) -> int:
    """By its UUID, and by that of its last change."""
    from tap_vdi.parents import check_parent

    check_parent(dd.private, p)
    return 0


@implements(Hooks.td_set_parent)
def td_set_parent(dd: DiskDriver[Image], parent: DiskId | None) -> None:
    """Both UUIDs."""
    from tap_vdi.parents import set_parent

    set_parent(dd, parent)


@implements(Hooks.td_before_commit)
def td_before_commit(dd: DiskDriver[Image], p: DiskDriver) -> None:
    """The parent gets another UUID of its last change."""
    from tap_vdi.parents import before_commit

    before_commit(dd.private, p)


@implements(Hooks.td_create)
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """With a parent: a differencing image."""
    from tap_vdi.create import create

    create(name, size, parent, options)


@implements(Hooks.td_measure)
def td_measure(
    size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    """Header and map, and a block for each that holds data."""
    from tap_vdi.create import measure

    return measure(size, options, data)


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[Image]) -> dict[str, Any]:
    """What the header says."""
    from tap_vdi.inspection import format_facts

    return format_facts(dd.private)


@implements(Hooks.td_inspect)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """Header and block map."""
    from tap_vdi.inspection import inspect

    return inspect(fd, size)


@implements(Hooks.td_check)
def td_check(dd: DiskDriver[Image], repair: str) -> CheckResult:
    """The block map; repair moves blocks, and drops those that hold nothing."""
    from tap_vdi.check import check

    return check(dd.private, repair)


@implements(Hooks.td_resize)
def td_resize(dd: DiskDriver[Image], size: int) -> None:
    """Map and header; blocks move where the map needs room, and into gaps."""
    from tap_vdi.resize import resize

    resize(dd, size)


@implements(Hooks.td_make_empty)
def td_make_empty(dd: DiskDriver[Image]) -> None:
    """Every block is a hole again, and the file as short as a new one."""
    from tap_vdi.emptying import make_empty

    make_empty(dd.private)
