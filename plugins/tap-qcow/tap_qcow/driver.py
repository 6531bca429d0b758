"""The hooks of QEMU copy-on-write images of version 1; what they do is in the other modules.

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
from tapcore.clusters import (  # noqa: F401 -- the hooks of requests
    td_do_callbacks,
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
    from tap_qcow.image import Image
    from tapcore import Inspection, Measurement

disk_info = DiskInfo(
    handle="qcow",
    name="QEMU copy-on-write, version 1",
    api=1,
    makes_unnamed=True,
    suffixes=(".qcow",),
    magic=(Magic(b"QFI\xfb\0\0\0\1"),),
    create_options=(
        FormatOption("encrypt.format", "encrypt the content: aes (weak, for old programs)"),
        FormatOption("encrypt.key-file", "file that holds the passphrase"),
    ),
)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """Requests are the core's affair; the map is in `mapping`."""
    from tap_qcow.image import open_image

    dd.private = open_image(dd, name, flags)
    dd.private.clusters.attach()


@implements(Hooks.td_close)
def td_close(dd: DiskDriver[Image]) -> None:
    """As a flush; then blktap's checksum, where the image has one."""
    dd.private.close()


@implements(Hooks.td_get_parent_id)
def td_get_parent_id(dd: DiskDriver[Image], id: DiskId) -> int:
    """The name alone: the format has no place for the parent's format."""
    name = dd.private.map.header.backing_file
    if not name:
        return TD_NO_PARENT
    id.name, id.drivertype = name, ""
    return 0


@implements(Hooks.td_validate_parent)
def td_validate_parent(dd: DiskDriver[Image], p: DiskDriver[Any], flags: int) -> int:
    """Nothing is recorded by which a changed parent could be told."""
    return 0


@implements(Hooks.td_create)
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """Laid out as QEMU does, byte for byte."""
    from tap_qcow import create

    method = create.encryption(options)
    named = parent.name if parent is not None else ""
    new = create.new_header(create.check_size(size), named, method)
    create.write_image(name, new, create.l1_end(new))


@implements(Hooks.td_measure)
def td_measure(
    size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    """The header, the L1 table, and what the data takes of tables and clusters."""
    from tap_qcow import create

    create.encryption(options)
    return create.measure(create.check_size(size), data)


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[Image]) -> dict[str, Any]:
    """The header's facts."""
    from tap_qcow.inspection import format_facts

    map = dd.private.map
    return format_facts(map.header, little=map.little)


@implements(Hooks.td_inspect)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """The header alone."""
    from tap_qcow.inspection import inspect

    return inspect(fd, size)


@implements(Hooks.td_resize)
def td_resize(dd: DiskDriver[Image], size: int) -> None:
    """Grow; QEMU cannot, but reads the result."""
    from tap_qcow import change

    change.grow(dd.private, dd, size)


@implements(Hooks.td_set_parent)
def td_set_parent(dd: DiskDriver[Image], parent: DiskId | None) -> None:
    """Record the parent's name."""
    from tap_qcow import change

    change.set_parent(dd.private, parent)


@implements(Hooks.td_make_empty)
def td_make_empty(dd: DiskDriver[Image]) -> None:
    """Empty the L1 table, and cut the file off behind it."""
    from tap_qcow import change

    change.make_empty(dd.private)
