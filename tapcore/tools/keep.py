"""Making an image of a view: what is in it outlives it."""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final, TypeAlias
from urllib.parse import quote

from tapcore.disk import Disk
from tapcore.errors import TapError, UsageError, open_error
from tapcore.interface.access import Access
from tapcore.interface.models import TdState
from tapcore.interface.options import DiskId
from tapcore.interface.registry import Registry
from tapcore.opening.names import ImageName, split_name
from tapcore.tools.create import NewImage, new_image, new_image_target
from tapcore.tools.openimage import open_image
from tapcore.tools.plan import Job, jobs_for_fresh, jobs_for_own
from tapcore.tools.transfer import Transfer

log = logging.getLogger(__name__)

_UNNAMED: Final = "view"
"""What the file of a view is called whose export has no name."""

_Task: TypeAlias = tuple[TdState, str, Callable[[], None]]


def check_keeping(base: DiskId, target: ImageName, registry: Registry) -> None:
    """Whether an image of a view of a disk can be made.

    Args:
        base: the disk.
        target: `[HANDLE:]PATH` of the image, which need not be the last one's name.
        registry: the drivers.

    Raises:
        TapError: no driver can make it, or there is no file that the image could be based on.
    """
    if not registry.get(base.drivertype).file_backed:
        raise UsageError("a view of a disk that is no file cannot be kept", image=str(base))
    new_image_target(target, registry)


class _Own(Disk):
    """What a view has of its own: closed by who has the view."""

    def _release(self) -> None:
        """It stays open."""


def keep_view(own: TdState, base: DiskId, target: ImageName, access: Access) -> DiskId:
    """Make a new image that reads as a view does.

    Where its format has such parents it is a child of the view's base and holds what the view has
    of its own, else it is a whole copy. On disk when this returns.

    Args:
        own: what the view has of its own (`View.own`).
        base: the disk that it is a view of.
        target: `[HANDLE:]PATH`; must not exist.
        access: with what the base is opened.

    Returns:
        The new image.

    Raises:
        TapError: with the name of the image concerned; there is no new one.
    """
    check_keeping(base, target, access.registry)
    base = DiskId(os.path.realpath(base.name), base.drivertype)
    access = access.with_tree(os.path.dirname(base.name))
    _, info = new_image_target(target, access.registry)
    drv = access.registry.operations(info.handle)
    with _Own(own) as content:
        if "td_get_parent_id" in drv.implemented:
            with suppress(UsageError):  # some formats have parents of their own kind alone
                return _make(target, content, str(base), "", access)
        return _make(target, content, "", str(base), access)


def _make(target: ImageName, own: Disk, parent: str, below: str, access: Access) -> DiskId:
    with new_image(target, own.size, parent=parent, options={}, force=False, access=access) as made:
        _fill(made, own, below, access)
        made.files.publish(durable=True)
        return made.target


def _fill(made: NewImage, own: Disk, below: str, access: Access) -> None:
    with open_image(made.working, writing=True, access=access) as new:
        if below:
            with open_image(below, access=access) as base:
                Transfer(base, new, fresh=True).run(_inside(jobs_for_fresh(base, 1), new.size))
        Transfer(own, new, hold_zeroes=True).run(jobs_for_own(own))
        new.sync()


def _inside(jobs: Iterator[Job], size: int) -> Iterator[Job]:
    """What of them lies before the end of a disk of `size` bytes."""
    for job in jobs:
        if job.start >= size:
            return
        yield job if job.end <= size else Job(job.start, size, job.how)


class Keeper:
    """Makes an image of each view that ends, in a thread: whoever serves others does not wait.

    Args:
        bases: the disks that there are views of, by the names of their exports.
        handle: of the images' driver.
        directory: where they go.
        access: with what the bases are opened.

    Raises:
        TapError: that cannot be.
    """

    def __init__(
        self, bases: Mapping[str, DiskId], handle: str, directory: str, access: Access
    ) -> None:
        if not os.path.isdir(directory):
            raise UsageError("is no directory", image=directory, errno=errno.ENOTDIR)
        self._handle = split_name(f"{handle}:x", access.registry).drivertype
        suffixes = access.registry.get(self._handle).suffixes
        self._suffix = suffixes[0] if suffixes else ".img"
        self._bases, self._access = bases, access
        self._directory = os.path.abspath(directory)
        for base in bases.values():
            check_keeping(base, self._place(_UNNAMED), access.registry)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._errors: list[TapError] = []
        self._thread: threading.Thread | None = None

    def keep(self, own: TdState, name: str, done: Callable[[], None]) -> None:
        """See `tapcore.nbd.views.Keeper`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tapcore-keep", daemon=True)
            self._thread.start()
        self._tasks.put((own, name, done))

    def finish(self) -> list[TapError]:
        """Wait until all is kept; returns what went wrong."""
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()
        return self._errors

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            own, name, done = task
            try:
                self._make(own, name)
            except Exception as exc:
                error = open_error(exc, self._place(_file_name(name)))
                log.error("a view is lost: %s", error)
                self._errors.append(error)
            finally:
                done()

    def _make(self, own: TdState, name: str) -> None:
        base = self._bases[name] if name in self._bases else self._bases[name.partition("@")[0]]
        made = keep_view(own, base, self._free_place(_file_name(name)), self._access)
        log.info("kept a view: %s", made)

    def _free_place(self, name: str) -> str:
        number, place = 1, self._place(name)
        while os.path.lexists(place.partition(":")[2]):
            number += 1
            place = self._place(f"{name}-{number}")
        return place

    def _place(self, name: str) -> str:
        return f"{self._handle}:{self._directory}/{name}{self._suffix}"


def _file_name(export: str) -> str:
    """A client has chosen it: nothing in it may lead anywhere, or hide the file."""
    return quote(export, safe="@").replace(".", "%2E") if export else _UNNAMED
