"""Giving an image another parent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import attrs

from tapcore.disk import Disk
from tapcore.errors import TapError, UsageError, open_error
from tapcore.interface.access import Access
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.identity import identity_of
from tapcore.interface.models import DiskDriver
from tapcore.interface.options import DiskId
from tapcore.interface.registry import Registry
from tapcore.opening.binding import bind
from tapcore.opening.names import ImageName, plain_name, recorded_name
from tapcore.opening.probe import probe
from tapcore.tools.givennames import files_below, given_image, given_parent
from tapcore.tools.imagefiles import files_of, warn_of_refused_files
from tapcore.tools.openimage import open_image
from tapcore.tools.plan import jobs_for_holes
from tapcore.tools.progress import Progress
from tapcore.tools.transfer import Transfer


@attrs.frozen
class Rebase:
    """What was done.

    Attributes:
        parent: as it is recorded now; None: the image stands alone.
        written: bytes of data that were copied into the image, so that it reads as before.
    """

    parent: DiskId | None
    written: int


def rebase_image(
    name: ImageName,
    parent: ImageName,
    *,
    unsafe: bool = False,
    access: Access | None = None,
    progress: Progress | None = None,
) -> Rebase:
    """Change an image's parent, keeping what the image reads as.

    Whatever would read differently is copied into the image before. On disk when it returns;
    stopped at any moment, the image still reads as before.

    Args:
        name: `[HANDLE:]PATH`.
        parent: `[HANDLE:]PATH` of the new one; a relative path counts from the image's directory,
            since it is recorded as it is given. Empty: the image is to stand alone.
        unsafe: only change what is recorded: the new parent is known to hold the same, or its name
            alone has changed. The old one need not exist.
        access: which files it may name, with which keys and drivers; None: the defaults.
        progress: told how far it is; what it raises stops the work.

    Raises:
        TapError: with the name of the image concerned; its parent is the one that it was.
    """
    access = access or Access()
    image = given_image(name, access.registry).name
    recorded, path = _new_parent(os.fsdecode(parent), image, access.registry, must_exist=not unsafe)
    if unsafe:
        if recorded is not None:
            _refuse_visible_loop(DiskId(path, recorded.drivertype), image, access)
        with _changeable(name, access, with_parents=False) as (disk, dd):
            _record(disk, recorded)
            _warn(dd, parent, access)
        return Rebase(recorded, 0)
    with contextlib.ExitStack() as stack:
        bound = _found(image)
        stack.callback(bound.let_go)
        other: Disk | None = None
        if recorded is not None:
            other = stack.enter_context(
                open_image(
                    DiskId(path, recorded.drivertype),
                    access=access.with_tree(bound.home),
                )
            )
            _refuse_own_ancestor(other, image)
        disk, dd = stack.enter_context(_changeable(name, access, with_parents=True, bound=bound))
        written = _keep_content(disk, other, progress)
        _record(disk, recorded)
        _warn(dd, parent, access)
        return Rebase(recorded, written)


def _warn(dd: DiskDriver, parent: ImageName, access: Access) -> None:
    files = files_below(os.fsdecode(parent), access.registry)
    info = access.registry.get(dd.drv.disk_type)
    warn_of_refused_files(dd.name, info, access.references, files)


def _keep_content(disk: Disk, parent: Disk | None, progress: Progress | None) -> int:
    """Copy what would read differently, onto the disk; returns the bytes of data."""
    transfer = Transfer(
        disk,
        disk,
        against=parent,
        fresh=parent is None,  # what stands alone reads as zeroes where it holds nothing
        hold_zeroes=parent is not None,
        progress=progress,
    )
    written = transfer.run(jobs_for_holes(disk, parent))
    disk.sync()
    return written


@contextlib.contextmanager
def _changeable(
    name: ImageName,
    access: Access,
    *,
    with_parents: bool,
    bound: BoundFile | None = None,
) -> Iterator[tuple[Disk, DiskDriver]]:
    with open_image(
        name,
        writing=True,
        access=access,
        with_parents=with_parents,
        parent_only=not with_parents,
        bound=bound,
    ) as disk:
        dd = disk.state.disks
        dd.drv.require("td_set_parent", dd.name)
        yield disk, dd


def _record(disk: Disk, parent: DiskId | None) -> None:
    with disk.driver() as dd:
        dd.drv.td_set_parent(dd, parent)


def _found(image: str) -> BoundFile:
    try:
        return bind(image)
    except OSError as exc:
        raise open_error(exc, image) from None


def _new_parent(
    parent: str, image: str, registry: Registry, *, must_exist: bool
) -> tuple[DiskId | None, str]:
    """The parent as it is to be recorded, and its path."""
    if not parent:
        return None, ""
    given, path = given_parent(parent, image, registry)
    if given.drivertype:
        return DiskId(recorded_name(given, registry), given.drivertype), path
    if not must_exist and not os.path.lexists(path):
        text = f"'{parent}' does not exist; write HANDLE:PATH, so that its format can be recorded"
        raise UsageError(text, image=image)
    return DiskId(plain_name(given.name), probe(path, registry)), path


def _refuse_own_ancestor(parent: Disk, image: str) -> None:
    if identity_of(image) in files_of(parent, ""):
        raise UsageError("would be its own ancestor", image=image)


def _refuse_visible_loop(parent: DiskId, image: str, access: Access) -> None:
    """As far as the new parent's chain can be opened, which it need not be."""
    with contextlib.ExitStack() as stack:
        try:
            other = open_image(
                parent, access=access.with_home_of(image), locking=False, metadata_only=True
            )
            stack.enter_context(other)
        except TapError:
            return
        _refuse_own_ancestor(other, image)
