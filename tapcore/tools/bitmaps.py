"""Persistent bitmaps of an image: which parts of its disk changed since some moment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import attrs

from tapcore.disk import Disk
from tapcore.errors import UsageError
from tapcore.interface.access import Access
from tapcore.interface.models import DiskDriver
from tapcore.interface.results import Bitmap
from tapcore.opening.names import ImageName
from tapcore.sizes import format_size
from tapcore.tools.openimage import open_image


def list_bitmaps(name: ImageName, *, access: Access | None = None) -> list[Bitmap]:
    """The bitmaps of an image, in its own order. Takes no lock.

    Args:
        name: `[HANDLE:]PATH`.
        access: which files it may name, with which keys and drivers; None: the defaults.

    Raises:
        TapError: the image cannot be opened, or its format has no bitmaps.
    """
    with _reading(name, access, locking=False) as disk:
        return disk.bitmaps()


def add_bitmap(
    name: ImageName,
    bitmap: str,
    *,
    granularity: int = 0,
    enabled: bool = True,
    access: Access | None = None,
) -> Bitmap:
    """A new bitmap, which calls nothing changed.

    Args:
        name: as of `list_bitmaps`, and so on.
        bitmap: its name.
        granularity: bytes that one bit stands for, a power of two; 0: the format's own choice.
        enabled: what is written from now on is recorded in it.
        access: as of `list_bitmaps`.
    """
    if not bitmap or "\0" in bitmap:
        raise UsageError(f"'{bitmap}' cannot be a bitmap's name", image=os.fsdecode(name))
    with _changing(name, "td_bitmap_add", access) as dd:
        if any(found.name == bitmap for found in dd.drv.td_bitmaps(dd)):
            raise UsageError(f"has a bitmap '{bitmap}' already")
        dd.drv.td_bitmap_add(dd, bitmap, granularity, enabled)
        return find_bitmap(dd, bitmap)


def remove_bitmap(name: ImageName, bitmap: str, *, access: Access | None = None) -> Bitmap:
    """Forget a bitmap, also one that is inconsistent; arguments as `add_bitmap`."""
    with _changing(name, "td_bitmap_remove", access) as dd:
        found = find_bitmap(dd, bitmap, usable=False)
        dd.drv.td_bitmap_remove(dd, bitmap)
        return found


def clear_bitmap(name: ImageName, bitmap: str, *, access: Access | None = None) -> Bitmap:
    """Let a bitmap call nothing changed any more; arguments as `add_bitmap`."""
    with _changing(name, "td_bitmap_clear", access) as dd:
        found = find_bitmap(dd, bitmap)
        dd.drv.td_bitmap_clear(dd, bitmap)
        return found


def enable_bitmap(
    name: ImageName, bitmap: str, *, enabled: bool = True, access: Access | None = None
) -> Bitmap:
    """Record in a bitmap what is written, or no more; arguments as `add_bitmap`."""
    with _changing(name, "td_bitmap_enable", access) as dd:
        find_bitmap(dd, bitmap)
        dd.drv.td_bitmap_enable(dd, bitmap, enabled)
        return find_bitmap(dd, bitmap)


def merge_bitmap(
    name: ImageName,
    bitmap: str,
    source: str,
    *,
    source_image: ImageName = "",
    access: Access | None = None,
) -> Bitmap:
    """Let a bitmap call changed what another one does.

    Args:
        name: as of `add_bitmap`, and so on.
        bitmap: which is changed.
        source: the other bitmap.
        source_image: that has it; empty: the same image. Their disks have the same size.
        access: as of `list_bitmaps`.
    """
    with _reading(source_image or name, access) as disk:
        size, ranges = disk.size, disk.bitmap_ranges(source)
    with _changing(name, "td_bitmap_merge", access) as dd:
        find_bitmap(dd, bitmap)
        _check_same_size(dd.size << 9, size)
        dd.drv.td_bitmap_merge(dd, bitmap, ranges)
        return find_bitmap(dd, bitmap)


def copy_bitmaps(source: Disk, target: Disk) -> list[str]:
    """Give a copy of a disk its bitmaps; one that is inconsistent says nothing, and is left out.

    Args:
        source: open.
        target: open for writing, with nothing in flight.

    Returns:
        The names of those that were left out.
    """
    left_out = []
    for found in source.bitmaps():
        if found.inconsistent:
            left_out.append(found.name)
            continue
        ranges = source.bitmap_ranges(found.name)
        with target.driver() as dd:
            dd.drv.td_bitmap_add(dd, found.name, found.granularity, found.enabled)
            dd.drv.td_bitmap_merge(dd, found.name, ranges)
    return left_out


def find_bitmap(dd: DiskDriver, name: str, *, usable: bool = True) -> Bitmap:
    """The bitmap of that name.

    Raises:
        UsageError: there is none, or with `usable` it says nothing.
    """
    for bitmap in dd.drv.td_bitmaps(dd):
        if bitmap.name != name:
            continue
        if usable and bitmap.inconsistent:
            text = f"has a bitmap '{name}' that is inconsistent: it can only be removed"
            raise UsageError(text)
        return bitmap
    raise UsageError(f"has no bitmap '{name}'")


def bitmap_as_dict(bitmap: Bitmap) -> dict[str, Any]:
    """The item of `bitmap list --json`."""
    return attrs.asdict(bitmap)


def _check_same_size(size: int, other: int) -> None:
    if size != other:
        sizes = f"{format_size(size)} and {format_size(other)}"
        raise UsageError(f"the two disks have different sizes: {sizes}")


@contextlib.contextmanager
def _reading(name: ImageName, access: Access | None, *, locking: bool = True) -> Iterator[Disk]:
    with open_image(
        name, access=access, locking=locking, with_parents=False, metadata_only=True
    ) as disk:
        disk.state.disks.drv.require("td_bitmap_ranges", disk.state.image.name)
        yield disk


@contextlib.contextmanager
def _changing(name: ImageName, hook: str, access: Access | None) -> Iterator[DiskDriver]:
    with open_image(name, writing=True, access=access, with_parents=False) as disk:
        disk.state.disks.drv.require(hook, disk.state.image.name)
        with disk.driver() as dd:
            yield dd
