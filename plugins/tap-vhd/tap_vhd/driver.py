"""The hooks of VHD images; what they do is in the other modules, and in `tapcore.clusters`.

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
    from tap_vhd.image import Image
    from tapcore import CheckResult, Inspection, Measurement

disk_info = DiskInfo(
    handle="vhd",
    name="Virtual Hard Disk (VHD)",
    api=1,
    makes_unnamed=True,
    suffixes=(".vhd",),
    magic=(  # the copy of the footer at the front; the footer, which old ones have a byte shorter
        Magic(b"conectix"),
        Magic(b"conectix", -512, named=True),
        Magic(b"conectix", -511, named=True),
    ),
    create_options=(
        FormatOption("subformat", "how it is stored", ("dynamic", "fixed"), "dynamic"),
        FormatOption("azure", "what Azure takes: fixed, of whole MiB", ("on", "off"), "off"),
        FormatOption("block_size", "bytes of a block: 512K to 256M", default="2M"),
    ),
)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """All requests are the core's affair from here on."""
    from tap_vhd.image import open_image

    open_image(dd, name, flags)


@implements(Hooks.td_get_parent_id)
def td_get_parent_id(dd: DiskDriver[Image], id: DiskId) -> int:
    """The relative name first. A VHD knows its parent by what only a VHD has, or by nothing."""
    from tap_vhd.parents import recorded_parent

    parent = recorded_parent(dd.private)
    if parent is None:
        return TD_NO_PARENT
    id.name, id.drivertype = parent.name, parent.drivertype
    return 0


@implements(Hooks.td_validate_parent)
def td_validate_parent(dd: DiskDriver[Image], p: DiskDriver, flags: int) -> int:
    """By the parent's unique id; another time stamp is said."""
    from tap_vhd.parents import check_parent

    check_parent(dd.private, p)
    return 0


@implements(Hooks.td_create)
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """With a parent: a differencing image."""
    from tap_vhd.create import create

    create(name, size, parent, options)


@implements(Hooks.td_measure)
def td_measure(
    size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    """The structures at the front, and a block for each that holds data."""
    from tap_vhd.create import measure

    return measure(size, options, data)


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[Image]) -> dict[str, Any]:
    """What footer and header say."""
    from tap_vhd.inspection import format_facts

    return format_facts(dd.private)


@implements(Hooks.td_inspect)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """Footers, header, block table and names of the parent."""
    from tap_vhd.inspection import inspect

    return inspect(fd, size)


@implements(Hooks.td_check)
def td_check(dd: DiskDriver[Image], repair: str) -> CheckResult:
    """Footers, and the block table."""
    from tap_vhd.check import check

    return check(dd.private, repair)


@implements(Hooks.td_set_parent)
def td_set_parent(dd: DiskDriver[Image], parent: DiskId | None) -> None:
    """Another header, with the names, id and time stamp of the parent."""
    from tap_vhd.changing import set_parent

    set_parent(dd.private, parent)


@implements(Hooks.td_make_empty)
def td_make_empty(dd: DiskDriver[Image]) -> None:
    """No block is stored any more."""
    from tap_vhd.changing import make_empty

    make_empty(dd.private)


@implements(Hooks.td_resize)
def td_resize(dd: DiskDriver[Image], size: int) -> None:
    """Another footer, and a block table of another length."""
    from tap_vhd.resize import resize

    resize(dd, size)
