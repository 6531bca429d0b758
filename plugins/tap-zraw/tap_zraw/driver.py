"""The hooks of compressed raw disks; what they do is in the other modules.

These are loaded when they are first needed, since every `tapdisk` command loads every driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tapcore import (
    Answer,
    DiskDriver,
    DiskId,
    DiskInfo,
    Extent,
    FormatOption,
    Hooks,
    Magic,
    TdCallback,
    implements,
)

if TYPE_CHECKING:
    from tap_zraw.image import Image
    from tapcore import CheckResult, Inspection, Measurement

disk_info = DiskInfo(
    handle="zraw",
    name="compressed raw disk (zraw)",
    api=1,
    suffixes=(".raw.zst", ".img.zst"),
    magic=(
        Magic(b"\x28\xb5\x2f\xfd", sure=False),
        Magic(b"\x2a\x4d\x18", 1, sure=False),  # a skippable frame
        Magic(b"\xfd7zXZ\0", sure=False),
        Magic(b"\x1f\x8b\x08", sure=False),
    ),
    makes_unnamed=True,
    create_options=(
        FormatOption(
            "frame", "bytes that are compressed at a time: 4K to 32M; 128K, or more for large disks"
        ),
        FormatOption("level", "of compression: 1 to 19", default="3"),
    ),
)


@implements(Hooks.td_open)
def td_open(dd: DiskDriver[Image], name: str, flags: int) -> None:
    """Finds the pieces that can be unpacked on their own."""
    from tap_zraw.opening import open_image

    open_image(dd, name, flags)


@implements(Hooks.td_queue_read)
def td_queue_read(
    dd: DiskDriver[Image],
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """From what is kept, or by threads."""
    return dd.private.read(sector, buf, Answer(cb, dd, id, prv))


@implements(Hooks.td_do_callbacks)
def td_do_callbacks(dd: DiskDriver[Image], sid: int) -> int:
    """What the threads have unpacked."""
    return dd.private.file.reap()


@implements(Hooks.td_close)
def td_close(dd: DiskDriver[Image]) -> None:
    """Nothing was changed."""
    dd.private.close()


@implements(Hooks.td_extents)
def td_extents(dd: DiskDriver[Image], sector: int, nb_sectors: int) -> Iterable[Extent]:
    """Zeroes, and what is compressed."""
    return dd.private.extents(sector, nb_sectors)


@implements(Hooks.td_probe)
def td_probe(name: str, head: bytes, tail: bytes) -> bool:
    """By its magic and its name: what is only compressed may hold anything."""
    from tap_zraw.archives import is_named_disk, kind_of

    kind = kind_of(head)
    return kind is not None and is_named_disk(name, kind)


@implements(Hooks.td_info)
def td_info(dd: DiskDriver[Image]) -> dict[str, Any]:
    """How it can be read."""
    return dd.private.facts


@implements(Hooks.td_inspect)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """Its index; nothing is unpacked."""
    from tap_zraw.inspection import inspect

    return inspect(fd, size)


@implements(Hooks.td_check)
def td_check(dd: DiskDriver[Image], repair: str) -> CheckResult:
    """Whether all of it can be unpacked."""
    from tap_zraw.check import check

    return check(dd.private)


@implements(Hooks.td_create)
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """A disk of zeroes, which stays one: it can only be read."""
    from tap_zraw.writing import create

    create(name, size, parent, options)


@implements(Hooks.td_measure)
def td_measure(
    size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    """How large it is at most: how well content is compressed, nobody knows beforehand."""
    from tap_zraw.writing import measure

    return measure(size, options, data)


@implements(Hooks.td_stream)
def td_stream(
    out: Callable[[Any], object],
    size: int,
    options: Mapping[str, str],
    pieces: Iterable[tuple[int, memoryview]],
) -> None:
    """In zstd's seekable format, by as many threads as there are processors."""
    from tap_zraw.writing import stream

    stream(out, size, options, pieces)
