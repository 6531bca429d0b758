"""The hooks of QEMU copy-on-write images of version 1; what they do is in the other modules.

These are loaded when they are first needed, since every `tapdisk` command loads every driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tapcore import (
    DEFAULT_SECTOR_SIZE,
    HOOKS_VERSION,
    TD_NO_PARENT,
    DiskDriver,
    DiskId,
    DiskInfo,
    FormatOption,
    Hooks,
    TdCallback,
    implements,
)

if TYPE_CHECKING:
    from tap_qcow.image import Image
    from tapcore import Extent, Inspection, Measurement

disk_info = DiskInfo(
    handle="qcow",
    name="QEMU copy-on-write, version 1",
    api=HOOKS_VERSION,
    makes_unnamed=True,
    suffixes=(".qcow",),
    create_options=(
        FormatOption("encrypt.format", "encrypt the content: aes (weak, for old programs)"),
        FormatOption("encrypt.key-file", "file that holds the passphrase"),
    ),
)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver, name: str, flags: int) -> None:
    """Clusters are allocated and filled up by the driver itself, so small units will do."""
    from tap_qcow.image import open_image

    image = open_image(dd, name, flags)
    dd.private = image
    dd.io_fd[0] = image.file.io_fd
    dd.size = image.map.sectors
    dd.sector_size = image.file.sector_size if image.file.direct else DEFAULT_SECTOR_SIZE
    dd.cluster_size = image.map.geometry.cluster_size


@implements(Hooks.td_close)
def td_close(dd: DiskDriver) -> None:
    """As a flush; then blktap's checksum, where the image has one."""
    dd.private.close()


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """Holes are the core's affair."""
    image: Image = dd.private
    return image.reader.read(dd, sector, nb_sectors, buf, cb, id, prv)


@implements(Hooks.td_queue_write)
def td_queue_write(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """In place, or at the end of the file."""
    image: Image = dd.private
    return image.writer.write(dd, sector, nb_sectors, buf, cb, id, prv)


@implements(Hooks.td_queue_write_compressed)
def td_queue_write_compressed(
    dd: DiskDriver, sector: int, nb_sectors: int, buf: memoryview, cb: TdCallback, id: int, prv: Any
) -> int:
    """At the end of the file."""
    image: Image = dd.private
    return image.deflater.write(dd, sector, nb_sectors, buf, cb, id, prv)


@implements(Hooks.td_queue_write_zeroes)
def td_queue_write_zeroes(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    may_unmap: bool,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Where the host file can do it."""
    image: Image = dd.private
    return image.zeroer.write_zeroes(dd, sector, nb_sectors, may_unmap, cb, id, prv)


@implements(Hooks.td_queue_discard)
def td_queue_discard(
    dd: DiskDriver, sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """Punch holes into clusters, which stay where they are."""
    image: Image = dd.private
    return image.zeroer.discard(dd, sector, nb_sectors, cb, id, prv)


@implements(Hooks.td_queue_flush)
def td_queue_flush(dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> int:
    """Data, then the tables that point to it, in a thread."""
    image: Image = dd.private
    return image.writeback.flush(lambda res: cb(dd, res, 0, 0, id, prv))


@implements(Hooks.td_submit)
def td_submit(dd: DiskDriver) -> int:
    """One call to the kernel for the batch."""
    dd.private.file.submit()
    return 0


@implements(Hooks.td_do_callbacks)
def td_do_callbacks(dd: DiskDriver, sid: int) -> int:
    """Answer what has finished, and start what had to wait for it."""
    image: Image = dd.private
    finished = image.file.reap()
    image.file.submit()
    return finished


@implements(Hooks.td_get_parent_id)
def td_get_parent_id(dd: DiskDriver, id: DiskId) -> int:
    """The name alone: the format has no place for the parent's format."""
    image: Image = dd.private
    name = image.map.header.backing_file
    if not name:
        return TD_NO_PARENT
    id.name, id.drivertype = name, ""
    return 0


@implements(Hooks.td_validate_parent)
def td_validate_parent(dd: DiskDriver, p: DiskDriver, flags: int) -> int:
    """Nothing is recorded by which a changed parent could be told."""
    return 0


@implements(Hooks.td_probe)
def td_probe(name: str, head: bytes) -> bool:
    """By magic and version."""
    return head.startswith(b"QFI\xfb\0\0\0\1")


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


@implements(Hooks.td_extents)
def td_extents(dd: DiskDriver, sector: int, nb_sectors: int) -> Iterable[Extent]:
    """Straight from the tables."""
    from tap_qcow.runs import extents

    image: Image = dd.private
    return extents(image.map, sector, nb_sectors)


@implements(Hooks.td_info)
def td_info(dd: DiskDriver) -> dict[str, Any]:
    """The header's facts."""
    from tap_qcow.inspection import format_facts

    image: Image = dd.private
    return format_facts(image.map.header, little=image.map.little)


@implements(Hooks.td_inspect)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """The header alone."""
    from tap_qcow.inspection import inspect

    return inspect(fd, size)


@implements(Hooks.td_resize)
def td_resize(dd: DiskDriver, size: int) -> None:
    """Grow; QEMU cannot, but reads the result."""
    from tap_qcow import change

    change.grow(dd.private, dd, size)


@implements(Hooks.td_set_parent)
def td_set_parent(dd: DiskDriver, parent: DiskId | None) -> None:
    """Record the parent's name."""
    from tap_qcow import change

    change.set_parent(dd.private, parent)


@implements(Hooks.td_make_empty)
def td_make_empty(dd: DiskDriver) -> None:
    """Empty the L1 table, and cut the file off behind it."""
    from tap_qcow import change

    change.make_empty(dd.private)
