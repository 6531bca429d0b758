"""Opening images by the names that people give: probing is allowed here, also for writing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from tapcore.disk import Disk
from tapcore.errors import TapError, UsageError
from tapcore.interface.access import Access
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.models import TdState
from tapcore.interface.options import DiskId
from tapcore.opening.chain import abandon_disk
from tapcore.opening.door import How, open_with
from tapcore.opening.names import ImageName, split_name
from tapcore.opening.probe import warn_of_broken

if TYPE_CHECKING:
    from tapcore.engine.salvage import Salvage


def open_image(
    name: ImageName | DiskId,
    *,
    writing: bool = False,
    access: Access | None = None,
    with_parents: bool = True,
    bound: BoundFile | None = None,
    salvage: Salvage | None = None,
    **how: Unpack[How],
) -> Disk:
    """Open a disk for a person at a prompt; as `open_chain`, for use as a file.

    With `salvage` its reads do not fail where it is damaged: what is lost is noted there.
    """
    if salvage is not None:
        _check_salvage(salvage)
    state = open_chain(
        name,
        writing=writing,
        access=access,
        with_parents=with_parents,
        bound=bound,
        salvage=salvage is not None,
        **how,
    )
    try:
        return Disk(state, salvage)
    except BaseException:  # Ctrl-C, while nobody has it yet
        abandon_disk(state)
        raise


def _check_salvage(salvage: object) -> None:
    """What it is not would be found out by the first lost range, in the middle of a copy."""
    from tapcore.engine.salvage import Salvage

    if not isinstance(salvage, Salvage):
        raise UsageError(f"salvage must be a tapcore.Salvage, not {salvage!r}")


def open_chain(
    name: ImageName | DiskId,
    *,
    writing: bool = False,
    access: Access | None = None,
    with_parents: bool = True,
    bound: BoundFile | None = None,
    salvage: bool = False,
    **how: Unpack[How],
) -> TdState:
    """Open an image and its parents; without a handle the format is guessed.

    Args:
        name: `[HANDLE:]PATH`, or its parts.
        writing: open for reading and writing.
        access: which files the image may name, with which keys and drivers; None: the defaults.
        with_parents: False opens the image alone (its holes read as zeroes).
        bound: the image's file, where it was found and judged before; let go here.
        salvage: open what is left of a damaged disk: of `OpenOptions`.
        how: more of `OpenOptions`.

    Returns:
        The disk with its engine; to be closed with `close_disk`.

    Raises:
        TapError: always with an image's name.
    """
    access = access or Access()
    registry = access.registry
    try:
        disk_id = name if isinstance(name, DiskId) else split_name(name, registry)
        state = open_with(
            access,
            disk_id,
            writing=writing,
            with_parents=with_parents,
            bound=bound,
            salvage=salvage,
            **how,
        )
    except TapError as exc:
        exc.image = exc.image or str(name)
        raise
    if not disk_id.drivertype:
        warn_of_broken(state.image, registry)
    return state
