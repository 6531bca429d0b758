"""Opening an image and its parents, closing them: the chain that one disk consists of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import attrs

from tapcore.engine import Engine
from tapcore.errors import BrokenOffError
from tapcore.files.beingmade import is_being_made
from tapcore.interface.models import TdState
from tapcore.interface.options import DiskId, Opener, OpenOptions
from tapcore.interface.registry import Registry
from tapcore.opening.guard import guard_of
from tapcore.opening.images import abandon_files, close_images, open_images
from tapcore.opening.names import RAW_HANDLES, ImageName, names_disk, split_name
from tapcore.opening.opening import Opening
from tapcore.process.workers import Lane

if TYPE_CHECKING:
    from typing import Unpack

    from tapcore.interface.below import Below
    from tapcore.interface.models import DiskDriver
    from tapcore.opening.images import HowToOpen


def open_disk(
    name: ImageName | DiskId,
    registry: Registry,
    *,
    options: OpenOptions | None = None,
    **how: Unpack[HowToOpen],
) -> TdState:
    """Open an image with all its parents, and an engine for it.

    Args:
        name: `[HANDLE:]PATH`, or its parts.
        registry: the drivers.
        options: how to open.
        how: the rest of it, as for `open_images`.

    Returns:
        The disk; `disk.blkif` is its engine. Close it with `close_disk`.

    Raises:
        TapError: with the image's name and what is wrong; everything opened was closed again.
    """
    disk_id = name if isinstance(name, DiskId) else split_name(name, registry)
    options = attrs.evolve(
        options or OpenOptions(),
        opened=WeakSet(),
        workers=Lane(),
        opener=below_opener(registry),
        file_opener=file_opener(registry, disk_id.name) if how.get("bound") is None else None,
    )
    try:
        disk = open_images(disk_id, registry, options=options, **how)
        child = disk.disks
        guarded = child.options.probed and not child.read_only
        guarded = guarded and disk.image.drivertype in RAW_HANDLES
        Engine(disk, guard=guard_of(disk.image.name, registry) if guarded else None)
    except BaseException:
        abandon_files(options)
        raise
    return disk


def below_opener(registry: Registry) -> Opener:
    """What opens images below one, with engines of their own: of `OpenOptions`."""

    def opener(dd: DiskDriver, name: str, expected: str) -> Below:
        from tapcore.opening.below import open_below  # most images lie in files

        return open_below(_OPENING, registry, dd, name, expected)

    return opener


def file_opener(registry: Registry, name: str) -> Callable[[str, int, OpenOptions], Any]:
    """What opens an image's file where its name is that of another disk: of `OpenOptions`.

    Args:
        registry: the drivers.
        name: of the image, as the user gave it, without its handle.
    """

    def open_on_disk(path: str, flags: int, options: OpenOptions) -> Any:
        if path != name or is_being_made(path) or not names_disk(name, registry):
            return None
        from tapcore.opening.ondisk import open_file_on_disk

        return open_file_on_disk(_OPENING, registry, name, flags, options)

    return open_on_disk


def close_disk(disk: TdState) -> None:
    """Close every image of a disk once, child first; nothing may be in flight.

    Raises:
        BrokenOffError: its engine was broken off, so nothing was saved: as `abandon_disk`.
        TapError: the first error; everything is closed all the same.
    """
    broken_off = isinstance(disk.blkif, Engine) and disk.blkif.broken_off
    error = abandon_disk(disk) if broken_off else close_images(disk)
    if error is not None:
        raise error


def abandon_disk(disk: TdState) -> BrokenOffError | None:
    """Release the files of a disk, when threads and the kernel have done what they have in hand.

    Its drivers are not asked: they would save what is half done in memory. So the images are as
    after a crash: what was flushed is safe.

    Returns:
        That content may be lost; None where it cannot be, and where the disk is closed already.
    """
    if disk.closed:
        return None
    disk.closed = True
    disk.blkif = None
    abandon_files(disk.disks.options)
    if disk.disks.read_only:
        return None
    text = "a call was broken off: what was not flushed may be lost"
    return BrokenOffError(text, image=str(disk.image))


_OPENING: Final = Opening(open_disk, close_disk, abandon_disk)
