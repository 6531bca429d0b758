"""Images by the names that people give them, before they are opened."""

from __future__ import annotations

import os

from tapcore.errors import TapError, UsageError
from tapcore.interface.identity import same_file
from tapcore.interface.options import DiskId
from tapcore.interface.registry import Registry
from tapcore.opening.names import ImageName, beside, split_below, split_name


def given_image(name: ImageName, registry: Registry) -> DiskId:
    """As `split_name`; its errors always have an image's name."""
    try:
        return split_name(name, registry)
    except TapError as exc:
        exc.image = exc.image or os.fsdecode(name)
        raise


def given_parent(parent: str, image: str, registry: Registry) -> tuple[DiskId, str]:
    """A parent that an image is to get, and its path.

    Args:
        parent: `[HANDLE:]PATH`; a relative path counts from the image's directory.
        image: path of the image; it need not exist.
        registry: the drivers.

    Raises:
        TapError: it can be no image's parent, or not this one's.
    """
    given = split_name(parent, registry)
    path = beside(image, given, registry)
    if same_file(path, image):
        raise UsageError("cannot be its own parent", image=image)
    if given.drivertype and not registry.get(given.drivertype).lasts:
        raise UsageError(f"a '{given.drivertype}' disk cannot be a parent", image=image)
    return given, path


def files_below(parent: str, registry: Registry) -> dict[str, str]:
    """Of a parent that lies on another image: its name without a handle, and its file's; or {}."""
    if not parent:
        return {}
    given = below = split_name(parent, registry)
    while inner := split_below(below, registry):
        below = split_name(inner[1], registry)
    return {} if below is given else {given.name: below.name}
