"""Copying a disk's content into an image that exists, or a device: nothing is made anew."""

from __future__ import annotations

import logging

from tapcore.disk import Disk
from tapcore.engine.salvage import Salvage
from tapcore.errors import UsageError
from tapcore.interface.access import Access
from tapcore.interface.identity import identity_of
from tapcore.interface.options import DiskId
from tapcore.opening.names import ImageName
from tapcore.sizes import format_size
from tapcore.tools.imagefiles import files_of, own_file_names_of
from tapcore.tools.openimage import open_image
from tapcore.tools.plan import jobs_for_fresh, jobs_for_used
from tapcore.tools.progress import Progress
from tapcore.tools.transfer import Transfer, write_unit

log = logging.getLogger(__name__)


def convert_into(
    source: ImageName,
    target: ImageName,
    *,
    target_is_zero: bool = False,
    snapshot: str = "",
    access: Access | None = None,
    progress: Progress | None = None,
    salvage: Salvage | None = None,
) -> tuple[DiskId, int]:
    """Write what one disk holds into another that exists, and is as large at least.

    What the target has past the source's end stays as it is. On disk when it returns. Stopped on
    the way, the target holds a part of the source, and a warning says so.

    Args:
        source: `[HANDLE:]PATH`.
        target: `[HANDLE:]PATH`; without a handle its format is recognised.
        target_is_zero: it reads as zeroes, on the caller's word: none are written.
        snapshot: copy this internal snapshot of the source.
        access: which files both may name, with which keys and drivers; None: the defaults. Its
            filters are around the source.
        progress: told how far it is; what it raises stops the work.
        salvage: go on where the source is damaged, as of `convert_image`.

    Returns:
        The target, and the bytes of data written to it.

    Raises:
        TapError: with the name of the image concerned.
    """
    access = access or Access()
    with open_image(source, access=access, snapshot=snapshot, salvage=salvage) as disk:
        access = access.without_filters()
        _refuse_own_files(disk, target, access)
        with open_image(target, writing=True, access=access) as goal:
            _check_sizes(disk, goal)
            plan = jobs_for_fresh if target_is_zero else jobs_for_used
            transfer = Transfer(disk, goal, fresh=target_is_zero, progress=progress)
            try:
                written = transfer.run(plan(disk, write_unit(goal)))
                goal.sync()
            except BaseException:
                log.warning("%s: holds a part of %s, and is not whole", goal.name, disk.name)
                raise
            return goal.state.image, written


def _refuse_own_files(disk: Disk, target: ImageName, access: Access) -> None:
    """The source, or one of its parents, must not be written while it is read."""
    untouchable = files_of(disk, "is the source, or one of its parents")
    with open_image(
        target, access=access, with_parents=False, metadata_only=True, locking=False
    ) as goal:
        for name in own_file_names_of(goal.state.disks):
            what = untouchable.get(identity_of(name) or (-1, -1))
            if what:
                raise UsageError(what, image=goal.name)


def _check_sizes(disk: Disk, goal: Disk) -> None:
    if goal.size < disk.size:
        raise UsageError(
            f"is smaller ({format_size(goal.size)}) than what is to be written into it "
            f"({format_size(disk.size)}); 'tapdisk resize' makes it larger",
            image=goal.name,
        )
    if goal.size > disk.size:
        log.warning(
            "%s: is larger than %s: what it holds from %s on stays",
            goal.name,
            disk.name,
            format_size(disk.size),
        )
