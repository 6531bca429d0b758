"""A new child under a disk that is served: what it held until now is kept in the old image."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from typing import Any, Protocol

import attrs

from tapcore.constants import TD_RDONLY
from tapcore.errors import UsageError
from tapcore.files import remove_host_file
from tapcore.interface.access import Access
from tapcore.interface.models import TdState
from tapcore.interface.options import DiskId, OpenOptions
from tapcore.interface.policy import ReferencePolicy
from tapcore.interface.registry import Registry
from tapcore.live.pausing import close_old, told_of
from tapcore.live.serveddisk import ServedDisk, check_place
from tapcore.live.tasks import Steps
from tapcore.opening.chain import close_disk, open_disk
from tapcore.tools.create import new_image, new_image_target


class Maker(Protocol):
    """Who makes the new image; for threads."""

    def make(self) -> DiskId:
        """Make it: it is there, and can be opened as the disk was.

        Raises:
            TapError: there is no new image.
        """

    def unmake(self) -> None:
        """It is not needed after all."""


@attrs.define(eq=False)
class _MakerHere:
    """This process."""

    old: DiskId
    child: str
    options: Mapping[str, str]
    how: OpenOptions
    home: str
    registry: Registry
    made: str = ""

    def make(self) -> DiskId:
        target = make_child(self.old, self.child, self.options, self.how, self.home, self.registry)
        self.made = target.name
        return target

    def unmake(self) -> None:
        remove_host_file(self.made)


def snapshot(
    disk: ServedDisk,
    child: str,
    options: Mapping[str, str] | None = None,
    maker: Maker | None = None,
) -> Steps[dict[str, Any]]:
    """Make a new child of what is served, and serve that: the old image is only read from now on.

    Whatever moment the process dies: the old image holds what was flushed before, and the child,
    once it is there, what was flushed afterwards.

    Args:
        disk: running, open for writing.
        child: `[HANDLE:]PATH` of an image that is not there.
        options: of its format.
        maker: makes the child; None: this process.

    Raises:
        TapError: the disk goes on as before, and there is no new image.
    """
    disk.must_run()
    disk.must_last()
    disk.must_be_writable()
    old = disk.image
    target, info = new_image_target(child, disk.registry)
    disk.registry.operations(info.handle).require("td_get_parent_id", target.name, option="-b")
    if os.path.lexists(target.name):
        text = "exists already, and a snapshot of a served disk replaces nothing"
        raise UsageError(text, image=target.name, errno=errno.EEXIST)
    how = disk.engine.disk.disks.options
    home = disk.engine.disk.home or ""
    here = _MakerHere(old, child, dict(options or {}), how, home, disk.registry)
    maker = maker or here
    yield from disk.come_to_rest()
    yield from close_old(disk)
    made = False
    try:
        target = yield from disk.tasks.in_thread(maker.make)
        made = True
        new = yield from disk.open(target)
        yield from _take(disk, new)
    except Exception:
        if made:
            with contextlib.suppress(OSError):
                yield from disk.tasks.in_thread(maker.unmake)
        yield from disk.open_again(old)
        raise
    disk.go_on()
    return told_of(disk) | {"parent": str(old)}


def _take(disk: ServedDisk, new: TdState) -> Steps[None]:
    try:
        check_place(disk.engine, new)
        yield from disk.announce(new.image)
    except BaseException:
        close_disk(new)
        raise
    disk.attach(new)


def _as_parent(old: DiskId, child: str, registry: Registry) -> str:
    """As it is to be recorded: by its place beside the child where it lies there, or below."""
    if not registry.get(old.drivertype).file_backed:
        return str(old)
    home = os.path.dirname(os.path.realpath(child))
    path = os.path.realpath(old.name)
    near = os.path.relpath(path, home)
    return str(DiskId(path if near.startswith("../") else near, old.drivertype))


def make_child(
    old: DiskId,
    child: str,
    options: Mapping[str, str],
    how: OpenOptions,
    home: str,
    registry: Registry,
) -> DiskId:
    """Make a child of an image that nobody writes; only if it can be opened as a disk was.

    Args:
        old: the image.
        child: `[HANDLE:]PATH` of one that is not there.
        options: of its format.
        how: the disk was opened.
        home: directory in whose tree files may lie that the images name.
        registry: the drivers.

    Raises:
        TapError: there is no new image.
    """
    target, _ = new_image_target(child, registry)
    parent = _as_parent(old, target.name, registry)
    policy = (how.references or ReferencePolicy()).and_tree(home)
    access = Access(policy, how.keys, how.metadata_cache, registry)
    with new_image(child, None, parent=parent, options=options, force=False, access=access) as made:
        trial = attrs.evolve(how, bound=None, named_by=None, probed=False)
        close_disk(open_disk(made.working, registry, flags=TD_RDONLY, options=trial))
        made.files.publish()
        return made.target
