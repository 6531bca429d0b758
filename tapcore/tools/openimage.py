"""Opening images by the names that people give: probing is allowed here, also for writing."""

from __future__ import annotations

import logging

from tapcore.constants import TD_RDONLY
from tapcore.disk import Disk
from tapcore.engine.salvage import Salvage
from tapcore.errors import TapError
from tapcore.interface.access import Access
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.models import TdState
from tapcore.interface.options import CacheMode, DiskId, Missing, OpenOptions
from tapcore.interface.registry import Registry
from tapcore.opening.chain import open_disk
from tapcore.opening.names import RAW_HANDLES, ImageName, split_name

log = logging.getLogger(__name__)


def open_image(
    name: ImageName | DiskId,
    *,
    writing: bool = False,
    access: Access | None = None,
    cache: CacheMode = "writeback",
    lock: bool = True,
    snapshot: str = "",
    with_parents: bool = True,
    metadata_only: bool = False,
    parent_only: bool = False,
    durable: bool = True,
    probed: bool = False,
    bound: BoundFile | None = None,
    salvage: Salvage | None = None,
) -> Disk:
    """Open a disk for a person at a prompt; as `open_chain`, for use as a file.

    With `salvage` its reads do not fail where it is damaged: what is lost is noted there.
    """
    return Disk(
        open_chain(
            name,
            writing=writing,
            access=access,
            cache=cache,
            lock=lock,
            snapshot=snapshot,
            with_parents=with_parents,
            metadata_only=metadata_only,
            parent_only=parent_only,
            durable=durable,
            probed=probed,
            bound=bound,
            salvage=salvage is not None,
        ),
        salvage,
    )


def open_chain(
    name: ImageName | DiskId,
    *,
    writing: bool = False,
    access: Access | None = None,
    cache: CacheMode = "writeback",
    lock: bool = True,
    snapshot: str = "",
    with_parents: bool = True,
    metadata_only: bool = False,
    parent_only: bool = False,
    durable: bool = True,
    probed: bool = False,
    bound: BoundFile | None = None,
    missing: Missing = "error",
    salvage: bool = False,
) -> TdState:
    """Open an image and its parents; without a handle the format is guessed.

    Args:
        name: `[HANDLE:]PATH`, or its parts.
        writing: open for reading and writing.
        access: which files the image may name, with which keys and drivers; None: the defaults.
        cache: "writeback" or "none".
        lock: take QEMU-compatible locks; False only looks.
        snapshot: open this internal snapshot of the image, read-only.
        with_parents: False opens the image alone (its holes read as zeroes).
        metadata_only: no content will be read or written.
        parent_only: nothing but the record of the parent will be changed.
        durable: flushes wait for the disk; False for a new image that is not finished.
        probed: the handle was found by probing before: a raw disk is guarded.
        bound: the image's file, where it was found and judged before; let go here.
        missing: what a read answers where content is missing: of `OpenOptions`.
        salvage: open what is left of a damaged disk: of `OpenOptions`.

    Returns:
        The disk with its engine; to be closed with `close_disk`.

    Raises:
        TapError: always with an image's name.
    """
    access = access or Access()
    registry = access.registry
    options = OpenOptions(
        cache=cache,
        references=access.references,
        locking=lock,
        snapshot=snapshot,
        keys=access.keys,
        metadata_cache=access.metadata_cache,
        metadata_only=metadata_only,
        parent_only=parent_only,
        durable=durable,
        missing=missing,
        salvage=salvage,
        probed=probed,
    )
    try:
        disk_id = name if isinstance(name, DiskId) else split_name(name, registry)
        state = open_disk(
            disk_id,
            registry,
            flags=0 if writing else TD_RDONLY,
            options=options,
            with_parents=with_parents,
            bound=bound,
        )
    except TapError as exc:
        exc.image = exc.image or str(name)
        raise
    if not disk_id.drivertype and state.image.drivertype in RAW_HANDLES:
        _warn_of_broken(registry, disk_id.name)
    return state


def _warn_of_broken(registry: Registry, image: str) -> None:
    """A format that nobody recognises is raw, or one whose driver could not be asked."""
    for info in registry.broken():
        log.warning(
            "%s: taken as raw, but the driver '%s' could not be asked: %s",
            image,
            info.handle,
            info.error,
        )
