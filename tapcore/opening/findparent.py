"""Which file, or other disk, is what an image records as its parent."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from tapcore.errors import ImageOpenError, ReferencePolicyError, TapError, printable
from tapcore.formats.foreign import SIGNATURES
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.models import DiskDriver
from tapcore.interface.options import DiskId
from tapcore.interface.policy import ReferencePolicy
from tapcore.interface.registry import Registry
from tapcore.opening.namedfiles import find_named_file
from tapcore.opening.names import as_handles
from tapcore.opening.probe import probe


class FoundParent(NamedTuple):
    """A parent that is there, and may be opened.

    Attributes:
        id: its real path, and its driver's handle.
        bound: its file, which is the one to be opened: to be let go by who asked; None: it is no
            file, and lies on one perhaps.
        probed: the handle is guessed from the content: none is recorded.
    """

    id: DiskId
    bound: BoundFile | None
    probed: bool


def find_parent(recorded: DiskId, child: DiskDriver, registry: Registry) -> FoundParent:
    """Find what an image records as its parent; it is not opened yet.

    Args:
        recorded: as it is recorded.
        child: the image that records it, open.
        registry: the drivers.

    Raises:
        TapError: there is no such file, no driver for it, or it is not allowed; where the parent
            may have moved, with how its new place can be recorded.
    """
    recorded = as_handles(recorded, registry)
    try:
        parent, bound = _resolve(recorded, child, registry)
    except TapError as exc:
        _say_how_to_move(exc, child, recorded)
        raise
    return FoundParent(parent, bound, probed=not recorded.drivertype)


def _resolve(
    recorded: DiskId, child: DiskDriver, registry: Registry
) -> tuple[DiskId, BoundFile | None]:
    """From what a child records, in the registry's handles, to a real path and a handle."""
    if recorded.drivertype and recorded.drivertype not in registry:
        raise ImageOpenError(
            f"its parent is of the format '{printable(recorded.drivertype)}', "
            f"for which no driver is installed{_remedy(recorded.drivertype)}",
            image=child.name,
        )
    if recorded.drivertype and not registry.get(recorded.drivertype).file_backed:
        allow_without_file(recorded, child, registry, role="parent")
        return recorded, None
    bound = find_named_file(child, recorded.name, role="parent")
    try:
        handle = recorded.drivertype or _probe_parent(bound, child, registry)
    except BaseException:
        bound.let_go()
        raise
    return DiskId(bound.real, handle), bound


def allow_without_file(
    recorded: DiskId, by: DiskDriver, registry: Registry, *, role: str = "image below"
) -> None:
    """Whether a disk may be opened that an image records, and that is no file itself.

    One that lies on another image may: that is judged when it is opened. Others only where the
    policy names their handle.

    Raises:
        ReferencePolicyError: it may not.
    """
    policy = by.options.references or ReferencePolicy()
    handle = recorded.drivertype
    if policy.none:
        text = f"its {role} is a '{handle}' disk, and --parents none forbids all"
        raise ReferencePolicyError(text, image=by.name)
    if registry.get(handle).words_before_image is None and handle not in policy.handles:
        text = f"its {role} is a '{handle}' disk, which is not a file"
        raise ReferencePolicyError(f"{text}; --parents {handle}: would allow it", image=by.name)


def _say_how_to_move(exc: TapError, child: DiskDriver, recorded: DiskId) -> None:
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
