"""Opening an image and its parents, closing them: the chain that one disk consists of."""

from __future__ import annotations

import contextlib
import errno
import os

import attrs

from tapcore.constants import (
    MAX_CHAIN_DEPTH,
    MAX_CLUSTER_SIZE,
    MAX_DISK_SECTORS,
    TD_NO_PARENT,
    TD_RDONLY,
    VDISK_READONLY,
)
from tapcore.engine import Engine
from tapcore.errors import (
    DriverError,
    ImageFormatError,
    ImageOpenError,
    IOFailedError,
    NotWritableError,
    ReferencePolicyError,
    TapError,
    UsageError,
    describe,
    errno_of,
    open_error,
    printable,
)
from tapcore.files.newfiles import is_being_made
from tapcore.formats.foreign import SIGNATURES
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.models import DiskDriver, TdState
from tapcore.interface.options import DiskId, OpenOptions
from tapcore.interface.registry import Registry
from tapcore.opening.binding import bind
from tapcore.opening.namedfiles import find_named_file, identity_of_image
from tapcore.opening.names import RAW_HANDLES, ImageName, as_handles, split_name
from tapcore.opening.ownopening import OpenedByItself
from tapcore.opening.probe import guard_of, probe


def open_disk(
    name: ImageName | DiskId,
    registry: Registry,
    *,
    flags: int = 0,
    options: OpenOptions | None = None,
    may_probe: bool = True,
    with_parents: bool = True,
    bound: BoundFile | None = None,
) -> TdState:
    """Open an image with all its parents, and an engine for it.

    Args:
        name: `[HANDLE:]PATH`, or its parts.
        registry: the drivers.
        flags: `TD_RDONLY` or 0; parents, and snapshots, are always opened read-only.
        options: how to open.
        may_probe: without a handle, ask the drivers to recognise the file.
        with_parents: False opens the child alone (its holes read as zeroes).
        bound: the child's file, where it was found and judged before; let go here.

    Returns:
        The disk; `disk.blkif` is its engine. Close it with `close_disk`.

    Raises:
        TapError: with the image's name and what is wrong; everything opened was closed again.
    """
    disk_id = name if isinstance(name, DiskId) else split_name(name, registry)
    options = options or OpenOptions()
    if options.snapshot:
        flags |= TD_RDONLY
    if not disk_id.drivertype and not may_probe:
        raise UsageError(
            "the format is not guessed for writing; write HANDLE:PATH", image=disk_id.name
        )
    bound = bound or _bound(disk_id, registry)
    try:
        if not disk_id.drivertype:
            disk_id = DiskId(disk_id.name, probe(disk_id.name, registry, bound))
            options = attrs.evolve(options, probed=True)
        disk = TdState(image=disk_id, home=_home(disk_id, bound, registry))
        disk.disks = _open_image(disk_id, disk, registry, flags, attrs.evolve(options, bound=bound))
    finally:
        if bound is not None:
            bound.let_go()
    try:
        if with_parents:
            _open_parents(disk.disks, disk, registry, attrs.evolve(options, snapshot=""))
    except BaseException:
        _close_images(disk)
        raise
    disk.info = disk.disks.info | (VDISK_READONLY if flags & TD_RDONLY else 0)
    guarded = options.probed and not flags & TD_RDONLY and disk_id.drivertype in RAW_HANDLES
    Engine(disk, guard=guard_of(disk_id.name, registry) if guarded else None)
    return disk


def _bound(disk_id: DiskId, registry: Registry) -> BoundFile | None:
    """The file of the image that the user named; None where it is none, or cannot be found.

    Who opens it then says what is wrong.
    """
    if disk_id.drivertype and not registry.get(disk_id.drivertype).file_backed:
        return None
    if is_being_made(disk_id.name):
        return None
    try:
        return bind(disk_id.name)
    except OSError:
        return None


def _home(disk_id: DiskId, bound: BoundFile | None, registry: Registry) -> str:
    if bound is not None:
        return bound.home
    if registry.get(disk_id.drivertype).file_backed and not is_being_made(disk_id.name):
        return ""  # there was none; one that appears now could lie anywhere
    return os.path.dirname(os.path.realpath(disk_id.name))


def _open_image(
    disk_id: DiskId, disk: TdState, registry: Registry, flags: int, options: OpenOptions
) -> DiskDriver:
    registry.get(disk_id.drivertype)
    drv = registry.operations(disk_id.drivertype, options.filters)
    if not flags & TD_RDONLY and "td_queue_write" not in drv.implemented:
        text = f"the format {disk_id.drivertype} can only be read"
        raise NotWritableError(text, image=disk_id.name)
    if options.snapshot:
        drv.require("td_snapshots", disk_id.name, option="--snapshot")
    dd = DiskDriver(name=disk_id.name, drv=drv, flags=flags, td_state=disk, options=options)
    watch = OpenedByItself(options.bound)
    try:
        drv.td_open(dd, disk_id.name, flags)
    except Exception as exc:
        raise open_error(exc, disk_id.name) from exc
    if watch.another_file():
        with contextlib.suppress(Exception):
            drv.td_close(dd)
        text = "was replaced while it was being opened"
        raise ImageOpenError(text, image=disk_id.name, errno=errno.ESTALE)
    problem = _impossible(dd)
    if problem:
        with contextlib.suppress(Exception):  # what is wrong with the driver is said already
            drv.td_close(dd)
        raise DriverError(f"the driver {drv.disk_type} {problem}", image=disk_id.name)
    return dd


def _impossible(dd: DiskDriver) -> str:
    """What a driver may have set wrong in `td_open`."""
    if not 0 <= dd.size <= MAX_DISK_SECTORS:
        return f"reports an impossible size of {dd.size} sectors"
    unit = dd.sector_size
    if unit < 512 or unit & (unit - 1) or unit > 1 << 20:
        return f"reports an impossible sector size of {unit} bytes"
    cluster = dd.cluster_size
    if cluster % 512 or not 0 <= cluster <= MAX_CLUSTER_SIZE:
        return f"reports an impossible cluster size of {cluster} bytes"
    return ""


def _open_parents(
    child: DiskDriver, disk: TdState, registry: Registry, options: OpenOptions
) -> None:
    """Open parent after parent; each is linked to its child as soon as it is open."""
    seen = {identity_of_image(child)}
    depth = 1
    child_was_probed = False
    while (recorded := recorded_parent(child)) is not None:
        if depth >= MAX_CHAIN_DEPTH:
            raise ImageOpenError(
                f"has more than {MAX_CHAIN_DEPTH} images in its chain", image=disk.image.name
            )
        if child_was_probed:
            raise guessed_parent_error(child.name)
        recorded = as_handles(recorded, registry)
        child_was_probed = not recorded.drivertype
        try:
            parent_id, bound = resolve_parent(recorded, child, registry)
        except TapError as exc:
            say_how_to_move(exc, child, recorded)
            raise
        try:
            if bound.identity in seen:
                raise ImageFormatError(
                    "is its own ancestor", image=parent_id.name, errno=errno.ELOOP
                )
            seen.add(bound.identity)
            parent_options = attrs.evolve(options, bound=bound)
            child.next = parent = _open_parent(parent_id, child, disk, registry, parent_options)
        finally:
            bound.let_go()
        _validate(child, parent)
        child = parent
        depth += 1


def guessed_parent_error(image: str) -> ImageOpenError:
    """For an image that was probed as a parent, and names a parent of its own."""
    return ImageOpenError(
        "names a parent, but its own format was only guessed: "
        "record the parent's format in its child (rebase)",
        image=image,
    )


def recorded_parent(dd: DiskDriver) -> DiskId | None:
    """The parent as an open image records it, not resolved; None where it stands alone.

    Raises:
        TapError: it cannot be told.
    """
    found = DiskId("")
    try:
        res = dd.drv.td_get_parent_id(dd, found)
    except Exception as exc:
        raise open_error(exc, dd.name) from exc
    if res == TD_NO_PARENT:
        return None
    if res:
        raise ImageOpenError(
            f"its parent cannot be told: {os.strerror(abs(res))}", image=dd.name, errno=abs(res)
        )
    return found


def resolve_parent(
    recorded: DiskId, child: DiskDriver, registry: Registry
) -> tuple[DiskId, BoundFile]:
    """From what a child records to a real path and a handle.

    Args:
        recorded: in this registry's handles (`as_handles`).
        child: the image that records it, open.
        registry: the drivers.

    Returns:
        The parent, and its file, which is the one to be opened: the caller's to let go.

    Raises:
        TapError: there is no such file, no driver for it, or it is not allowed.
    """
    if recorded.drivertype and recorded.drivertype not in registry:
        raise ImageOpenError(
            f"its parent is of the format '{printable(recorded.drivertype)}', "
            f"for which no driver is installed{_remedy(recorded.drivertype)}",
            image=child.name,
        )
    if recorded.drivertype and not registry.get(recorded.drivertype).file_backed:
        raise ImageOpenError(
            f"its parent is a '{recorded.drivertype}' disk, which is not a file", image=child.name
        )
    bound = find_named_file(child, recorded.name, role="parent")
    try:
        handle = recorded.drivertype or _probe_parent(bound, child, registry)
    except BaseException:
        bound.let_go()
        raise
    return DiskId(bound.real, handle), bound


def say_how_to_move(exc: TapError, child: DiskDriver, recorded: DiskId) -> None:
    """Add to an error of finding a parent how its place can be recorded, where it can.

    A parent that lies where it is said to has not moved.
    """
    if "td_set_parent" not in child.drv.implemented:
        return
    if not isinstance(exc, ReferencePolicyError) and exc.errno != errno.ENOENT:
        return
    if isinstance(exc, ReferencePolicyError):
        place = os.path.join(os.path.dirname(child.name), recorded.name)
        if "\0" in place or os.path.lexists(place):
            return
    way = "`tapdisk rebase --unsafe -b PARENT` records its new place"
    exc.message += f"; where the parent has moved, {way}"


def _remedy(handle: str) -> str:
    """Where it is certain which package brings a driver: the handle is a stranger's word."""
    known = any(handle == signature.handle for signature in SIGNATURES)
    return f": pip install tap-{handle}" if known else ""


def _probe_parent(bound: BoundFile, child: DiskDriver, registry: Registry) -> str:
    try:
        return probe(bound.real, registry, bound)
    except TapError as exc:
        exc.message = f"its parent {bound.real}: {exc.message}"
        exc.image = child.name
        raise


def _open_parent(
    parent_id: DiskId, child: DiskDriver, disk: TdState, registry: Registry, options: OpenOptions
) -> DiskDriver:
    try:
        return _open_image(parent_id, disk, registry, child.flags | TD_RDONLY, options)
    except TapError as exc:
        exc.message = f"its parent {parent_id.name}: {exc.message}"
        exc.image = child.name
        raise


def _validate(child: DiskDriver, parent: DiskDriver) -> None:
    try:
        res = child.drv.td_validate_parent(child, parent, 0)
    except Exception as exc:
        raise open_error(exc, child.name) from exc
    if res:
        raise ImageOpenError(
            f"its parent {parent.name} does not fit: {os.strerror(abs(res))}",
            image=child.name,
            errno=abs(res),
        )


def close_disk(disk: TdState) -> None:
    """Close every image of a disk once, child first; nothing may be in flight.

    Raises:
        TapError: the first error; everything is closed all the same.
    """
    error = _close_images(disk)
    if error is not None:
        raise error


def _close_error(exc: Exception, image: str) -> TapError:
    """What is closed was open: the system's errors are those of a last write or flush."""
    if isinstance(exc, OSError) and not isinstance(exc, TapError):
        return IOFailedError(describe(exc), image=image, errno=errno_of(exc))
    return open_error(exc, image)


def _close_images(disk: TdState) -> TapError | None:
    first: TapError | None = None
    for dd in disk.disks.chain() if not disk.closed else ():
        try:
            dd.drv.td_close(dd)
        except Exception as exc:
            first = first or _close_error(exc, dd.name)
    disk.closed = True
    disk.blkif = None
    return first
