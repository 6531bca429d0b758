"""Folding the data of a child into its parent."""

from __future__ import annotations

import attrs

from tapcore.disk import Disk
from tapcore.errors import NotSupportedError, TapError, UsageError
from tapcore.interface.access import Access
from tapcore.interface.hooks import lack_of
from tapcore.interface.models import DiskDriver
from tapcore.interface.options import DiskId
from tapcore.opening.findparent import find_parent
from tapcore.opening.names import ImageName
from tapcore.opening.parents import check_fit, guessed_parent_error, recorded_parent
from tapcore.sizes import format_size
from tapcore.tools.losses import refuse_missing
from tapcore.tools.openimage import open_image
from tapcore.tools.plan import jobs_for_own
from tapcore.tools.progress import Progress
from tapcore.tools.transfer import Transfer


@attrs.frozen
class Commit:
    """What was done.

    Attributes:
        parent: the image that holds the data now.
        written: bytes of data that were written into it.
        emptied: the child holds no data of its own any more; not every format can be emptied.
    """

    parent: DiskId
    written: int
    emptied: bool


def commit_image(
    name: ImageName,
    *,
    access: Access | None = None,
    progress: Progress | None = None,
) -> Commit:
    """Write what an image holds itself into its parent, then empty it. It reads as before.

    The parent may be of any format; it grows where the child is larger. Other children of the same
    parent are spoilt by that. On disk when it returns; stopped at any moment, both are still right.

    Args:
        name: `[HANDLE:]PATH` of the child.
        access: which files it may name, with which keys and drivers; None: the defaults.
        progress: told how far it is; what it raises stops the work.

    Raises:
        LostContentError: content of the child is missing; the parent is as it was.
        TapError: with the name of the image concerned.
    """
    access = access or Access()
    # alone: its parent is to be written, which a chain of its own would forbid
    with open_image(
        name,
        writing=True,
        access=access,
        with_parents=False,
    ) as child:
        dd = child.state.disks
        recorded = recorded_parent(dd)
        if recorded is None:
            raise UsageError("has no parent", image=dd.name)
        refuse_missing(child, "committed")
        parent, written, fits = _fold(child, dd, recorded, access, progress)
        with child.driver():
            if not fits and "td_set_parent" in dd.drv.implemented:
                dd.drv.td_set_parent(dd, recorded)  # what tells a changed parent is recorded anew
            emptied = "td_make_empty" in dd.drv.implemented
            if emptied:
                dd.drv.td_make_empty(dd)
        child.sync()
    return Commit(parent, written, emptied)


def _fold(
    child: Disk,
    dd: DiskDriver,
    recorded: DiskId,
    access: Access,
    progress: Progress | None,
) -> tuple[DiskId, int, bool]:
    """Into the parent, and that onto the disk; the last: the child still takes it for its own."""
    found = find_parent(recorded, dd, access.registry)
    if found.bound is None:
        text = f"its parent is a '{found.id.drivertype}' disk: only a file can be committed into"
        raise NotSupportedError(text, image=dd.name)
    with open_image(
        found.id,
        writing=True,
        probed=found.probed,
        access=access.with_tree(child.state.home or ""),
        bound=found.bound,
    ) as parent:
        leaf = parent.state.disks
        if found.probed and leaf.next is not None:
            raise guessed_parent_error(leaf.name)
        check_fit(dd, leaf)
        with child.driver():  # let it go on to take the parent for its own, when that is written
            dd.drv.td_before_commit(dd, leaf)
        if child.size > parent.size:
            grow(parent, leaf, child.size)
        written = Transfer(child, parent, progress=progress).run(jobs_for_own(child))
        parent.sync()
        return found.id, written, _fits(dd, leaf)


def _fits(child: DiskDriver, parent: DiskDriver) -> bool:
    try:
        check_fit(child, parent)
    except TapError:
        return False
    return True


def grow(parent: Disk, leaf: DiskDriver, size: int) -> None:
    if "td_resize" not in leaf.drv.implemented:
        raise NotSupportedError(
            f"is smaller than its child by {format_size(size - parent.size)}, "
            f"and {lack_of('td_resize', parent.handle)}",
            image=leaf.name,
        )
    old = parent.size
    parent.resize(size)
    for run in list(parent.extents(old)):  # a longer parent of its own must not show
        if run.kind != "zero":
            parent.zero(run.start, length=run.length)
