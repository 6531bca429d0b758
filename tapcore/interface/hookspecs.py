"""The hooks of a driver: blktap's eight operations, and what makes a format complete.

A driver is any object (most simply a module) with functions marked `@hookimpl` and an attribute
`disk_info`, registered under its handle in the entry-point group `tapcore.drivers`.

`td_open`, `td_queue_read`, `td_submit` and `td_do_callbacks` (where `io_fd` is used) are a
driver's own affair; all others have a default in `tapcore.interface.defaults`.

Calls come from one thread only. Sectors are 512 bytes. A hook may raise OSError or TapError; the
core turns it into the errno of the requests concerned.
"""

# A specification has no body.
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pluggy

from tapcore.interface.models import DiskDriver, DiskId, TdCallback
from tapcore.interface.results import Bitmap, CheckResult, Extent, Inspection, Measurement, Snapshot

PROJECT = "tapcore"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# ---- blktap's eight ------------------------------------------------------------------------


@hookspec(firstresult=True)
def td_open(dd: DiskDriver, name: str, flags: int) -> None:
    """Open an image.

    Set `dd.private`, `dd.io_fd` (what is to be polled), `dd.size` (sectors), `dd.sector_size`
    (bytes) and `dd.info`.

    Args:
        dd: the new image; `dd.options` says how.
        name: path, already resolved and allowed; or what stands behind `HANDLE:`.
        flags: `TD_RDONLY` or 0.

    Raises:
        OSError, TapError: the image cannot be opened; everything taken was given back.
    """


@hookspec(firstresult=True)
def td_queue_read(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Start, or do, a read.

    Args:
        dd: the image.
        sector: first sector, inside the image.
        nb_sectors: how many; the range lies inside the image.
        buf: exactly `nb_sectors * 512` writable bytes, the driver's until all is answered.
        cb: to be called with disjoint sub-ranges that cover the range, in any order, during the
            call or later, each sector exactly once.
        id: number of the request.
        prv: to be handed back to `cb`.

    Returns:
        0: taken. > 0: that many requests were finished inside the call (what `cb` returned).
        -EBUSY: nothing was taken, and nothing answered; the core tries again later.
        Another negative errno: what was not answered yet has failed with it.
    """


@hookspec(firstresult=True)
def td_queue_write(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Start, or do, a write; arguments and results as `td_queue_read`.

    Only the child of a chain is written. `buf` must not be changed.
    """


@hookspec(firstresult=True)
def td_submit(dd: DiskDriver) -> int:
    """The batch is complete: hand what is queued to the kernel, in one call where possible.

    Returns:
        Requests finished inside the call; 0 is always right.

    Raises:
        OSError, TapError: nothing that was queued since the last submit and not answered yet
            will be answered; the core fails all of it.
    """


@hookspec(firstresult=True)
def td_do_callbacks(dd: DiskDriver, sid: int) -> int:
    """`dd.io_fd[sid]` is readable: reap what has finished and call the callbacks.

    Returns:
        The sum of what the callbacks returned.

    Raises:
        InterruptedError, BlockingIOError: try again.
        OSError, TapError: nothing that was submitted and not answered yet will be answered; the
            core fails all of it. `io_fd[sid]` must not stay readable for the same reason.
    """


@hookspec(firstresult=True)
def td_close(dd: DiskDriver) -> None:
    """Finish what is in flight, flush, release. Called once for each successful `td_open`.

    Raises:
        OSError, TapError: the flush failed; what was taken is released all the same.
    """


@hookspec(firstresult=True)
def td_get_parent_id(dd: DiskDriver, id: DiskId) -> int:
    """Which image holds what this one does not.

    Args:
        dd: the open image.
        id: to be filled in: `name` as recorded, `drivertype` as recorded (empty: none was).

    Returns:
        0 with `id` filled in, `TD_NO_PARENT`, or a negative errno.
    """


@hookspec(firstresult=True)
def td_validate_parent(dd: DiskDriver, p: DiskDriver, flags: int) -> int:
    """Is `p` still the parent that `dd` was made on?

    Args:
        dd: the child.
        p: the parent, open read-only.
        flags: 0.

    Returns:
        0, or a negative errno; a TapError raised instead can say why.
    """


# ---- what makes a format complete ----------------------------------------------------------


@hookspec(firstresult=True)
def td_probe(name: str, head: bytes) -> bool:
    """Does this file hold the driver's format?

    Args:
        name: path of the file, for its suffix; not to be opened.
        head: its first bytes, up to 64 KiB.
    """


@hookspec(firstresult=True)
def td_create(
    name: str, size: int | None, parent: DiskId | None, options: Mapping[str, str]
) -> None:
    """Make a new image, replacing what is at `name`.

    Args:
        name: path of the new file.
        size: virtual size in bytes, a multiple of 512; None: the parent's.
        parent: the parent to be recorded, or None.
        options: from `-o`, only names that the driver's `create_options` has.

    Raises:
        OSError, TapError: nothing is left behind.
    """


@hookspec(firstresult=True)
def td_queue_flush(dd: DiskDriver, cb: TdCallback, id: int, prv: Any) -> int:
    """Make every write that was answered before this call safe on disk, data and metadata.

    Answered by one `cb(dd, res, 0, 0, id, prv)`. Results as `td_queue_read`.
    """


@hookspec(firstresult=True)
def td_queue_discard(
    dd: DiskDriver, sector: int, nb_sectors: int, cb: TdCallback, id: int, prv: Any
) -> int:
    """The content of these sectors is no longer needed; answers and results as a write."""


@hookspec(firstresult=True)
def td_queue_write_zeroes(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    may_unmap: bool,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Make these sectors read as zeroes, quicker than by writing them.

    Answer (or return, or raise) `-EOPNOTSUPP` where that is not possible, for whole units of
    `dd.sector_size`: the core then writes zeroes, or tells a client that asked for speed. Answers
    and results as a write.

    Args:
        dd: the image.
        sector: first sector.
        nb_sectors: how many.
        may_unmap: space may be given back; otherwise it must stay, or become, reserved.
        cb: as for a write.
        id: as for a write.
        prv: as for a write.
    """


@hookspec(firstresult=True)
def td_extents(dd: DiskDriver, sector: int, nb_sectors: int) -> Iterable[Extent]:
    """What lies where, without reading the data.

    Yields:
        Extents in order, without gaps, that cover exactly the range asked for.
    """


@hookspec(firstresult=True)
def td_info(dd: DiskDriver) -> dict[str, Any]:
    """What is worth knowing of the open image: the `format` object of `info --json`."""


@hookspec(firstresult=True)
def td_other_files(dd: DiskDriver) -> Sequence[str]:
    """The files that hold the image besides the one that it is named by (extents, a data file; no
    parents): names as it records them, in order. Opens nothing."""


@hookspec(firstresult=True)
def td_inspect(name: str, fd: int, size: int) -> Inspection:
    """What the file says of itself, for an image from a stranger.

    Opens nothing, reads only `fd`, in bounded memory and time.

    Args:
        name: the file's name, for messages.
        fd: the file, open for reading.
        size: its size in bytes.

    Raises:
        ImageFormatError: not an image of this format.
    """


@hookspec(firstresult=True)
def td_resize(dd: DiskDriver, size: int) -> None:
    """Change the virtual size; new sectors read as zeroes.

    Args:
        dd: the image, open for writing, with nothing in flight.
        size: new size in bytes, a multiple of 512. The hook sets `dd.size`.
    """


@hookspec(firstresult=True)
def td_check(dd: DiskDriver, repair: str) -> CheckResult:
    """Check the consistency of the format's metadata.

    Args:
        dd: the image; open for writing where `repair` is not empty.
        repair: "", "leaks" or "all".
    """


@hookspec(firstresult=True)
def td_queue_write_compressed(
    dd: DiskDriver,
    sector: int,
    nb_sectors: int,
    buf: memoryview,
    cb: TdCallback,
    id: int,
    prv: Any,
) -> int:
    """Store whole clusters compressed; arguments, answers and results as `td_queue_write`.

    What does not become smaller is stored plain. A cluster that is stored already may be refused.

    Args:
        dd: the image.
        sector: first sector of a cluster (`dd.cluster_size`).
        nb_sectors: whole clusters; the disk's last one may be cut by its end. At most 1 MiB, or
            one cluster where that is larger.
        buf: the content, not to be changed; the driver's until all is answered.
        cb: as for a write.
        id: as for a write.
        prv: as for a write.
    """


@hookspec(firstresult=True)
def td_snapshots(dd: DiskDriver) -> list[Snapshot]:
    """The internal snapshots of the image, in its own order."""


@hookspec(firstresult=True)
def td_snapshot_create(dd: DiskDriver, name: str) -> Snapshot:
    """Keep the present content as a snapshot; it is on disk when this returns.

    Args:
        dd: the image, open for writing, with nothing in flight.
        name: for people, not empty; no snapshot of the image has it as its name or id.

    Raises:
        OSError, TapError: no snapshot was made.
    """


@hookspec(firstresult=True)
def td_snapshot_apply(dd: DiskDriver, name: str) -> None:
    """Make the disk's content that of a snapshot, which stays; sets `dd.size` if that differs.

    Args:
        dd: the image, open for writing, with nothing in flight.
        name: of one of `td_snapshots`: its id, or where no id is so, its name.
    """


@hookspec(firstresult=True)
def td_snapshot_delete(dd: DiskDriver, name: str) -> None:
    """Forget a snapshot, and give back what only it used; arguments as `td_snapshot_apply`."""


@hookspec(firstresult=True)
def td_amend(dd: DiskDriver, options: Mapping[str, str]) -> None:
    """Change options of an image that exists, in place; the content stays.

    Args:
        dd: the image, open for writing, with nothing in flight.
        options: from `-o`, only names that the driver's `amend_options` has.

    Raises:
        OSError, TapError: the image is as it was, or changed in part and consistent.
    """


@hookspec(firstresult=True)
def td_set_parent(dd: DiskDriver, parent: DiskId | None) -> None:
    """Change what is recorded of the parent, on disk when this returns. Moves no content.

    Args:
        dd: the image, open for writing, with nothing in flight; `dd.next` is the parent that was
            recorded until now, where it was opened.
        parent: what is to be recorded, exactly so; None: the image stands alone.
    """


@hookspec(firstresult=True)
def td_before_commit(dd: DiskDriver, p: DiskDriver) -> None:
    """The content of an image is about to be written into its parent, and stays in it meanwhile.

    For a format that tells a changed parent by something recorded in the child: from now on, and at
    every moment of this call, the child takes the parent for its own, whatever is written to it;
    other children of the parent do not. On disk when this returns.

    Args:
        dd: the child, open for writing, alone.
        p: its parent, open for writing, and not changed yet.

    Raises:
        OSError, TapError: nothing is committed; both are right.
    """


@hookspec(firstresult=True)
def td_make_empty(dd: DiskDriver) -> None:
    """Forget all content: every sector becomes a hole, and shows the parent. Size and parent stay.

    Args:
        dd: the image, open for writing, with nothing in flight.
    """


@hookspec(firstresult=True)
def td_bitmaps(dd: DiskDriver) -> list[Bitmap]:
    """The persistent bitmaps of the image."""


@hookspec(firstresult=True)
def td_bitmap_ranges(dd: DiskDriver, name: str) -> Iterable[tuple[int, int]]:
    """What a bitmap calls changed: (start, length) in bytes, in order, neighbours joined.

    Args:
        dd: the image.
        name: of one of `td_bitmaps` that is not inconsistent.
    """


@hookspec(firstresult=True)
def td_measure(
    size: int, options: Mapping[str, str], data: Iterable[tuple[int, int]]
) -> Measurement:
    """How large a new image would be; makes nothing.

    Args:
        size: virtual size in bytes, a multiple of 512.
        options: as for `td_create`.
        data: (start, length) in bytes of the ranges that hold data, in order, not overlapping,
            inside the disk; neighbours need not be joined. To be taken once.
    """


@hookspec(firstresult=True)
def td_stream(
    out: Callable[[Any], object],
    size: int,
    options: Mapping[str, str],
    pieces: Iterable[tuple[int, memoryview]],
) -> None:
    """Write a whole new image strictly from front to back, so that it can go into a pipe.

    Args:
        out: takes the next bytes of the image (any buffer, which may be used again afterwards);
            raises what writing raises.
        size: virtual size in bytes, a multiple of 512.
        options: as for `td_create`.
        pieces: (offset, content) in order, not overlapping, inside the disk; what lies between
            them is zeroes. Pieces begin and end at multiples of 64 KiB, but for the disk's end.
            A piece's memory is valid until the next one is taken.
    """
