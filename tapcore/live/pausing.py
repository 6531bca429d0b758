"""Pause a disk, go on, and another image in the place of the one served."""

from __future__ import annotations

import logging
from typing import Any

from tapcore.errors import TapError, UsageError
from tapcore.interface.options import DiskId
from tapcore.live.absent import is_absent
from tapcore.live.serveddisk import ServedDisk, check_place
from tapcore.live.tasks import Steps, Until
from tapcore.opening.chain import close_disk

log = logging.getLogger(__name__)


def pause(disk: ServedDisk) -> Steps[dict[str, Any]]:
    """Bring a disk to rest, and close its images, which others may use then.

    A disk that exists only while it is open (`ram:`) keeps it open.

    Raises:
        TapError: it goes on as before; but where only the closing failed, it is paused.
    """
    disk.must_run()
    yield from disk.come_to_rest()
    disk.state = "paused"
    if disk.registry.get(disk.image.drivertype).lasts:
        yield from disk.close(disk.detach())
    return told_of(disk)


def resume(disk: ServedDisk) -> Steps[dict[str, Any]]:
    """Open its images again, and answer what has waited.

    Raises:
        TapError: they cannot be opened; requests fail from now on, until this is tried again.
    """
    if disk.state == "running":
        raise UsageError("is not paused", image=disk.name)
    yield from _stop_failing(disk)
    if not is_absent(disk.engine.disk.disks):
        disk.go_on()
        return told_of(disk)
    try:
        yield from _open_instead(disk, disk.image, same_size=False)
    except TapError:
        disk.fail()
        raise
    disk.go_on()
    return told_of(disk)


def swap(disk: ServedDisk, image: DiskId) -> Steps[dict[str, Any]]:
    """Serve another image in the place of this one; a paused disk goes on with it.

    Args:
        disk: running, or paused.
        image: of the same size and sector size, with its handle, or without.

    Raises:
        TapError: the disk goes on as it was, or is paused as it was.
    """
    disk.must_last()
    state, old = disk.state, disk.image
    if state == "running":
        yield from disk.come_to_rest()
        yield from close_old(disk)
    else:
        yield from _stop_failing(disk)
    try:
        yield from _open_instead(disk, image, same_size=True)
    except Exception:
        if state == "running":
            yield from disk.open_again(old)
        elif state == "failed":
            disk.fail()
        raise
    disk.go_on()
    return told_of(disk)


def close_old(disk: ServedDisk) -> Steps[None]:
    """Close the images of a disk at rest, for others to take their place.

    Raises:
        TapError: something could not be saved; then they are open again.
    """
    image = disk.image
    try:
        yield from disk.close(disk.detach())
    except Exception:
        yield from disk.open_again(image)
        raise


def told_of(disk: ServedDisk) -> dict[str, Any]:
    """What a change answers."""
    return {
        "name": disk.name,
        "state": disk.state,
        "image": str(disk.image),
        "size": disk.engine.size,
    }


def _open_instead(disk: ServedDisk, image: DiskId, *, same_size: bool) -> Steps[None]:
    """Where nothing is open; it stays so where that fails."""
    new = yield from disk.open(image)
    try:
        check_place(disk.engine, new, size=same_size)
        if new.image != disk.image:
            yield from disk.announce(new.image)
    except BaseException:
        close_disk(new)
        raise
    disk.attach(new)


def _stop_failing(disk: ServedDisk) -> Steps[None]:
    disk.engine.hold()
    yield Until(lambda: disk.engine.idle)
