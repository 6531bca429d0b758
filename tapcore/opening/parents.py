"""What an open image records of its parent, and whether that fits."""

from __future__ import annotations

import os

from tapcore.constants import TD_NO_PARENT
from tapcore.errors import ImageOpenError, open_error
from tapcore.files.lent import parent_told
from tapcore.interface.models import DiskDriver
from tapcore.interface.options import DiskId
from tapcore.opening.namedfiles import identity_of_image


def recorded_parent(dd: DiskDriver) -> DiskId | None:
    """The parent as an open image records it, not resolved; None where it stands alone.

    Raises:
        TapError: it cannot be told.
    """
    found = DiskId("")
    try:
        res = dd.drv.td_get_parent_id(dd, found)
    except Exception as exc:
        told = parent_told(identity_of_image(dd))
        if told is not None:
            return told
        raise open_error(exc, dd.name) from exc
    if res == TD_NO_PARENT:
        return None
    if res:
        raise ImageOpenError(
            f"its parent cannot be told: {os.strerror(abs(res))}", image=dd.name, errno=abs(res)
        )
    return found


def guessed_parent_error(image: str) -> ImageOpenError:
    """For an image that was probed as a parent, and names a parent of its own."""
    return ImageOpenError(
        "names a parent, but its own format was only guessed: "
        "record the parent's format in its child (rebase)",
        image=image,
    )


def check_fit(child: DiskDriver, parent: DiskDriver) -> None:
    """Whether a parent is still the one that its child was made on.

    Raises:
        TapError: it is not, or it cannot be told.
    """
    try:
        res = child.drv.td_validate_parent(child, parent, 0)
    except Exception as exc:
        raise open_error(exc, child.name) from exc
    if res:
        raise ImageOpenError(
            f"its parent {parent.name} does not fit: {os.strerror(abs(res))}",
            image=child.name,
            errno=abs(res),
        )
