"""The images of a disk, child first: opened, and closed, without anything that moves content.

That is all that is needed to say what an image is; `chain` adds the engine.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, Final

import attrs

from tapcore.constants import (
    MAX_CHAIN_DEPTH,
    MAX_CLUSTER_SIZE,
    MAX_DISK_SECTORS,
    TD_RDONLY,
    VDISK_READONLY,
)
from tapcore.errors import (
    DriverError,
    ImageFormatError,
    ImageOpenError,
    IOFailedError,
    NotWritableError,
    TapError,
    UsageError,
    describe,
    errno_of,
    open_error,
)
from tapcore.files.beingmade import is_being_made
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.distrust import check_opened, show_where
from tapcore.interface.models import DiskDriver, TdState
from tapcore.interface.options import DiskId, OpenOptions
from tapcore.interface.registry import Registry
from tapcore.opening.binding import bind
from tapcore.opening.namedfiles import identity_of_image, naming_of
from tapcore.opening.ownopening import OpenedByItself
from tapcore.opening.parents import check_fit, guessed_parent_error, recorded_parent
from tapcore.opening.probe import probe

if TYPE_CHECKING:
    from typing import TypedDict

    class HowToOpen(TypedDict, total=False):
        """What can be said of how a disk is opened, by keyword; see `open_images`."""

        flags: int
        may_probe: bool
        with_parents: bool
        bound: BoundFile | None
        home: str | None


_NO_SIZE: Final = -1
"""What an image has until its driver says how large it is; sectors."""


def open_images(
    disk_id: DiskId,
    registry: Registry,
    *,
    options: OpenOptions,
    flags: int = 0,
    may_probe: bool = True,
    with_parents: bool = True,
    bound: BoundFile | None = None,
    home: str | None = None,
) -> TdState:
    """Open an image, and its parents.

    Args:
        disk_id: the image, as the user named it.
        registry: the drivers.
        options: how to open; with what opens images below, for drivers that have some.
        flags: `TD_RDONLY` or 0; parents, and snapshots, are always opened read-only.
        may_probe: without a handle, ask the drivers to recognise the file.
        with_parents: False opens the child alone (its holes read as zeroes).
        bound: the child's file, where it was found and judged before; let go here.
        home: directory in whose tree files may lie that the images name; None: the child's.

    Returns:
        The disk, without an engine. Close it with `close_images`.

    Raises:
        TapError: with the image's name and what is wrong; everything opened was closed again.
            After anything else (Ctrl-C, whose moment no driver chooses) `abandon_files` is needed.
    """
    if options.filters:
        options = attrs.evolve(options, filters=registry.make_filters(options.filters))
    if options.snapshot:
        flags |= TD_RDONLY
    if not disk_id.drivertype and not may_probe:
        raise UsageError(
            "the format is not guessed for writing; write HANDLE:PATH", image=disk_id.name
        )
    bound = bound or _bound(disk_id, registry)
    disk = _open_child(disk_id, registry, flags, options, bound, home)
    try:
        if with_parents:
            _open_parents(disk, registry)
    except BaseException:
        close_images(disk)
        raise
    disk.info = disk.disks.info | (VDISK_READONLY if flags & TD_RDONLY else 0)
    return disk


def _open_child(
    disk_id: DiskId,
    registry: Registry,
    flags: int,
    options: OpenOptions,
    bound: BoundFile | None,
    home: str | None,
) -> TdState:
    try:
        if not disk_id.drivertype:
            disk_id = DiskId(disk_id.name, probe(disk_id.name, registry, bound))
            options = attrs.evolve(options, probed=True)
        home = _home(disk_id, bound, registry) if home is None else home
        disk = TdState(image=disk_id, home=home)
        disk.disks = _open_image(disk_id, disk, registry, flags, attrs.evolve(options, bound=bound))
    finally:
        if bound is not None:
            bound.let_go()
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
    if options.facts_only and options.bound is None:  # what is no file is asked for its extents
        options = attrs.evolve(options, facts_only=False)
    drv = registry.operations(disk_id.drivertype, options.filters)
    if not flags & TD_RDONLY and "td_queue_write" not in drv.implemented:
        text = f"the format {disk_id.drivertype} can only be read"
        raise NotWritableError(text, image=disk_id.name)
    if options.snapshot:
        drv.require("td_snapshots", disk_id.name, option="--snapshot")
    dd = DiskDriver(
        name=disk_id.name, drv=drv, flags=flags, td_state=disk, options=options, size=_NO_SIZE
    )
    watch = OpenedByItself(options.bound)
    try:
        check_opened(dd, drv.td_open(dd, disk_id.name, flags))
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
    for name in ("size", "sector_size", "cluster_size"):
        if not isinstance(getattr(dd, name), int):
            return f"has set a {name} that is no whole number"
    polled: list[Any] = dd.io_fd
    if not all(fd is None or (isinstance(fd, int) and fd >= 0) for fd in polled):
        return "has set an io_fd that is no descriptor"
    if dd.size == _NO_SIZE:
        return "has opened the image and set no size"
    if not 0 <= dd.size <= MAX_DISK_SECTORS:
        return f"reports an impossible size of {dd.size} sectors"
    unit = dd.sector_size
    if unit < 512 or unit & (unit - 1) or unit > 1 << 20:
        return f"reports an impossible sector size of {unit} bytes"
    cluster = dd.cluster_size
    if cluster % 512 or not 0 <= cluster <= MAX_CLUSTER_SIZE:
        return f"reports an impossible cluster size of {cluster} bytes"
    return ""


def _open_parents(disk: TdState, registry: Registry) -> None:
    """Open parent after parent; each is linked to its child as soon as it is open."""
    child = disk.disks
    options = attrs.evolve(child.options, snapshot="")
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
        from tapcore.opening.findparent import find_parent  # most images stand alone

        found = find_parent(recorded, child, registry)
        child_was_probed = found.probed
        try:
            if found.bound is not None:
                if found.bound.identity in seen:
                    raise ImageFormatError(
                        "is its own ancestor", image=found.id.name, errno=errno.ELOOP
                    )
                seen.add(found.bound.identity)
            named_by = naming_of(child) if found.bound is None else None
            parent_options = attrs.evolve(
                options, bound=found.bound, named_by=named_by, rehearsal=False
            )
            child.next = parent = _open_parent(found.id, child, disk, registry, parent_options)
        finally:
            if found.bound is not None:
                found.bound.let_go()
        check_fit(child, parent)
        child = parent
        depth += 1


def _open_parent(
    parent_id: DiskId, child: DiskDriver, disk: TdState, registry: Registry, options: OpenOptions
) -> DiskDriver:
    try:
        return _open_image(parent_id, disk, registry, child.flags | TD_RDONLY, options)
    except TapError as exc:
        exc.message = f"its parent {parent_id.name}: {exc.message}"
        exc.image = child.name
        raise


def abandon_files(options: OpenOptions) -> None:
    """Release what was opened so, without asking its drivers."""
    for file in list(options.opened):
        with contextlib.suppress(OSError):
            file.abandon()


def _close_error(exc: Exception, image: str) -> TapError:
    """What is closed was open: the system's errors are those of a last write or flush."""
    if isinstance(exc, OSError) and not isinstance(exc, TapError):
        return IOFailedError(describe(exc), image=image, errno=errno_of(exc))
    return open_error(exc, image)


def close_images(disk: TdState) -> TapError | None:
    """Close every image once, child first.

    Returns:
        The first error; everything is closed all the same.
    """
    first: TapError | None = None
    for dd in disk.disks.chain() if not disk.closed else ():
        try:
            dd.drv.td_close(dd)
        except Exception as exc:
            show_where(exc)
            first = first or _close_error(exc, dd.name)
    disk.closed = True
    disk.blkif = None
    return first
