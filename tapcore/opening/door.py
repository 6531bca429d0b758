"""The one door to a disk for whoever has an `Access`: programs, commands, servers, checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from tapcore.constants import TD_RDONLY
from tapcore.interface.access import Access
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.models import TdState
from tapcore.interface.options import CacheMode, DiskId, Missing, OpenOptions
from tapcore.opening.chain import open_disk
from tapcore.opening.names import ImageName


class How(TypedDict, total=False):
    """How a disk is opened, apart from what an access gives: as in `OpenOptions`, all optional."""

    cache: CacheMode
    locking: bool
    probed: bool
    snapshot: str
    durable: bool
    metadata_only: bool
    parent_only: bool
    missing: Missing
    private: Mapping[str, Any]


def open_with(
    access: Access,
    name: ImageName | DiskId,
    *,
    writing: bool = False,
    may_probe: bool = True,
    with_parents: bool = True,
    bound: BoundFile | None = None,
    salvage: bool = False,
    **how: Unpack[How],
) -> TdState:
    """Open an image with its parents, and an engine for it.

    Args:
        access: which files the image may name, with which keys and drivers.
        name: `[HANDLE:]PATH`, or its parts.
        writing: open for reading and writing.
        may_probe: without a handle, ask the drivers to recognise the file.
        with_parents: False opens the image alone (its holes read as zeroes).
        bound: the image's file, where it was found and judged before; let go here.
        salvage: open what is left of a damaged disk: of `OpenOptions`.
        how: more of `OpenOptions`.

    Returns:
        The disk with its engine; to be closed with `close_disk`.

    Raises:
        TapError: as `open_disk`.
    """
    options = OpenOptions(
        references=access.references,
        keys=access.keys,
        metadata_cache=access.metadata_cache,
        filters=access.filters,
        salvage=salvage,
        **how,
    )
    return open_disk(
        name,
        access.registry,
        flags=0 if writing else TD_RDONLY,
        options=options,
        may_probe=may_probe,
        with_parents=with_parents,
        bound=bound,
    )
