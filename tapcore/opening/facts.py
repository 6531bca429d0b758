"""An image opened for what it says of itself: no lock, no content, nothing that could move any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tapcore.constants import TD_RDONLY
from tapcore.errors import TapError
from tapcore.interface.access import Access
from tapcore.interface.models import DiskDriver, TdState
from tapcore.interface.options import DiskId, OpenOptions
from tapcore.opening.images import abandon_files, close_images, open_images
from tapcore.opening.names import ImageName, split_name
from tapcore.opening.probe import warn_of_broken


@contextmanager
def opened_for_facts(
    name: ImageName, access: Access, *, with_parents: bool = False
) -> Iterator[TdState]:
    """While this is active the image is open, read-only; it has no engine, and takes no request.

    Args:
        name: `[HANDLE:]PATH`; without a handle the format is guessed.
        access: which files the image may name, with which keys and drivers.
        with_parents: open its parents too.

    Raises:
        TapError: always with an image's name.
    """
    try:
        disk_id = split_name(name, access.registry)
        with _opened(disk_id, access, with_parents) as disk:
            if not disk_id.drivertype:
                warn_of_broken(disk.image, access.registry)
            yield disk
    except TapError as exc:
        exc.image = exc.image or str(name)
        raise


@contextmanager
def _opened(disk_id: DiskId, access: Access, with_parents: bool) -> Iterator[TdState]:
    options = _options(access, disk_id.name)
    try:
        disk = open_images(
            disk_id, access.registry, flags=TD_RDONLY, options=options, with_parents=with_parents
        )
        try:
            yield disk
        except Exception:
            close_images(disk)
            raise
        error = close_images(disk)
    except BaseException:  # Ctrl-C in the middle of a driver: it is not asked any more
        abandon_files(options)
        raise
    if error is not None:
        raise error


def _options(access: Access, name: str) -> OpenOptions:
    registry = access.registry

    # An image below has an engine, which is loaded when there is one.
    def open_below(dd: DiskDriver, below: str, expected: str) -> Any:
        from tapcore.opening.chain import below_opener

        return below_opener(registry)(dd, below, expected)

    def open_on_disk(path: str, flags: int, options: OpenOptions) -> Any:
        from tapcore.opening.chain import file_opener

        return file_opener(registry, name)(path, flags, options)

    return OpenOptions(
        references=access.references,
        keys=access.keys,
        metadata_cache=access.metadata_cache,
        filters=access.filters,
        locking=False,
        metadata_only=True,
        facts_only=True,
        opener=open_below,
        file_opener=open_on_disk,
    )
