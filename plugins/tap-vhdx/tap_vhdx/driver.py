"""The hooks of VHDX images; what they do is in the other modules, and in `tapcore.clusters`.

These are loaded when they are first needed, since every `tapdisk` command loads every driver.
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
    from tap_vhdx.image import Image
    from tapcore import CheckResult, Inspection, Measurement

disk_info = DiskInfo(
    handle="vhdx",
    name="Hyper-V hard disk (VHDX)",
    api=1,
    makes_unnamed=True,
    suffixes=(".vhdx", ".avhdx"),
    magic=(Magic(b"vhdxfile"),),
    create_options=(
        FormatOption("subformat", "how it is stored", ("dynamic", "fixed"), "dynamic"),
        FormatOption("block_size", "bytes of a block: 1M to 256M", default="2M"),
        FormatOption("logical_sector", "bytes of a sector, for guests", ("512", "4096"), "512"),
    ),
)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """All requests are the core's affair from here on."""
    from tap_vhdx.opening import open_image

    open_image(dd, name, flags)


@implements(Hooks.td_close)
def td_close(dd: DiskDriver[Image]) -> None:
    """As a flush; then the log is empty, and all is released."""
    dd.private.close()


@implements(Hooks.td_get_parent_id)
def td_get_parent_id(dd: DiskDriver[Image], id: DiskId) -> int:
    """The relative name first. A VHDX knows its parent by what only a VHDX has."""
    from tap_vhdx.parents import parent_name

    name = parent_name(dd.private)
    if name is None:
        return TD_NO_PARENT
    id.name, id.drivertype = name, disk_info.handle
    return 0


@implements(Hooks.td_validate_parent)
def td_validate_parent(dd: DiskDriver[Image], p: DiskDriver, flags: int) -> int:
    """By the id of its last change."""
    from tap_vhdx.parents import check_parent

    check_parent(dd.private, p)
    return 0


@implements(Hooks.td_set_parent)
def td_set_parent(dd: DiskDriver[Image], parent: DiskId | None) -> None:
    """Another locator; or none, which makes it a dynamic image."""
    from tap_vhdx.changing import set_parent

    set_parent(dd.private, parent)


@implements(Hooks.td_before_commit)
def td_before_commit(dd: DiskDriver[Image], p: DiskDriver) -> None:
    """The parent gets another id of its last change."""
    from tap_vhdx.changing import before_commit

    before_commit(dd.private, p)


@implements(Hooks.td_make_empty)
def td_make_empty(dd: DiskDriver[Image]) -> None:
    """Nothing is stored any more, and the file is as short as a new one."""
    from tap_vhdx.changing import make_empty

    make_empty(dd.private)


@implements(Hooks.td_create)
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """With a parent: a differencing image."""
    from tap_vhdx.create import create

    create(name, size, parent, options)


@implements(Hooks.td_measure)
def td_measure(
    size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    """The structures, and a block for each that holds data."""
    from tap_vhdx.create import measure

    return measure(size, options, data)


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[Image]) -> dict[str, Any]:
    """What headers and metadata say."""
    from tap_vhdx.inspection import format_facts

    return format_facts(dd.private)


@implements(Hooks.td_inspect)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """All structures, but for the block table."""
    from tap_vhdx.inspection import inspect

    return inspect(fd, size)


@implements(Hooks.td_check)
def td_check(dd: DiskDriver[Image], repair: str) -> CheckResult:
    """Headers, region tables and block table; repair moves blocks."""
    from tap_vhdx.check import check

    return check(dd.private, repair)


@implements(Hooks.td_resize)
def td_resize(dd: DiskDriver[Image], size: int) -> None:
    """Larger, as far as the block table has room, or smaller."""
    from tap_vhdx.resize import resize

    resize(dd, size)
