"""Growing and shrinking disks."""

from __future__ import annotations

import os

from tapcore.errors import UsageError
from tapcore.interface.access import Access
from tapcore.interface.registry import Registry
from tapcore.opening.names import ImageName
from tapcore.sizes import changed_size, format_size, parse_size
from tapcore.tools.givennames import given_image
from tapcore.tools.openimage import open_image


def resize_image(
    name: ImageName,
    size: str,
    *,
    shrink: bool = False,
    access: Access | None = None,
) -> tuple[int, int]:
    """Change a disk's virtual size; new space reads as zeroes.

    Args:
        name: `[HANDLE:]PATH`.
        size: `SIZE`, `+N` or `-N`, rounded up to whole sectors.
        shrink: making it smaller, which cuts its end off, is meant.
        access: which files it may name, with which keys and drivers; None: the defaults.

    Returns:
        The old and the new size in bytes.

    Raises:
        TapError: with the image's name; the size is as it was.
    """
    access = access or Access()
    _refuse_what_does_not_last(name, access.registry)
    with open_image(name, writing=True, access=access) as disk:
        path = disk.state.image.name
        disk.state.disks.drv.require("td_resize", path)
        old = disk.size
        if size.startswith("-") and parse_size(size[1:]) > old:
            raise UsageError(f"has only {old} bytes", image=path)
        new = changed_size(size, old)
        if not new:
            raise UsageError("a disk needs at least one sector (512 bytes)", image=path)
        if new < old and not shrink:
            raise UsageError(
                f"this would cut {format_size(old - new)} off its end; --shrink allows it",
                image=path,
            )
        disk.resize(new)
        return old, new


def _refuse_what_does_not_last(name: ImageName, registry: Registry) -> None:
    handle = given_image(name, registry).drivertype
    if handle and not registry.get(handle).lasts:
        raise UsageError(f"a '{handle}' disk exists only while it is open", image=os.fsdecode(name))
