"""Parents that a child knows by an id alone: VirtualBox's way.

VirtualBox keeps where a parent lies in the machine's settings. The parent is the image of that id
in the child's own folder, or in the one above, since children lie in a folder `Snapshots` beside
the first image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, TypeVar
from uuid import UUID

import attrs

from tapcore.errors import ImageFormatError, TapError, printable

MOST_FILES: Final = 10_000
"""Files of a folder that are looked at."""

T = TypeVar("T")


def _known(id: UUID | None) -> UUID | None:
    return id if id is not None and id.int else None


@attrs.frozen
class ImageIds:
    """By what an image is known; an id of zeroes says nothing, as None does.

    Attributes:
        image: the id that it keeps.
        modified: another one, which it gets when its content has changed.
    """

    image: UUID | None = attrs.field(converter=_known)
    modified: UUID | None = attrs.field(converter=_known, default=None)


def find_by_ids(
    folder: str, wanted: ImageIds, ids_in: Callable[[int], ImageIds | None]
) -> str | None:
    """The image that a child knows by its id, as a name relative to the child's folder.

    Args:
        folder: of the child.
        wanted: what it has recorded; the last change decides where several have the id.
        ids_in: what a file, open with this descriptor, says of itself; None, or an error: it is no
            image of this kind.

    Returns:
        None where there is no such image.

    Raises:
        ImageFormatError: it is not known which it is.
    """
    if wanted.image is None:
        return None
    for prefix in ("", ".."):
        found = [each for each in _images(folder, prefix, ids_in) if each[1].image == wanted.image]
        if len(found) > 1 and wanted.modified is not None:
            found = [each for each in found if each[1].modified == wanted.modified] or found
        if len(found) > 1:
            names = " and ".join(printable(name) for name, _ in found[:2])
            raise ImageFormatError(f"does not say which of {names} its parent is: both have its id")
        if found:
            return found[0][0]
    return None


def _images(
    folder: str, prefix: str, ids_in: Callable[[int], ImageIds | None]
) -> Iterator[tuple[str, ImageIds]]:
    """The images of a folder, by name."""
    try:
        with os.scandir(os.path.join(folder, prefix)) as entries:
            names = sorted(entry.name for entry, _ in zip(entries, range(MOST_FILES), strict=False))
    except OSError:
        return
    for name in names:
        ids = look_at_file(os.path.join(folder, prefix, name), ids_in)
        if ids is not None:
            yield os.path.join(prefix, name), ids


def look_at_file(path: str, look: Callable[[int], T | None]) -> T | None:
    """What somebody sees in a file that may be anything, or not be there.

    Args:
        path: of it; what is no regular file is left alone.
        look: is given a descriptor, open for reading.

    Returns:
        None: nothing, as where `look` raises OSError or TapError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return look(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except (OSError, TapError):
        return None
    finally:
        os.close(fd)


def check_ids(recorded: ImageIds, found: ImageIds) -> None:
    """Compare a parent with what its child has recorded.

    Args:
        recorded: what is None of it is not compared; without an image's id, nothing is.
        found: of the parent.

    Raises:
        ImageFormatError: it is another image, or was changed.
    """
    if recorded.image is None:
        return
    if recorded.image != found.image:
        text = f"its parent is another image (its id is {found.image}, not {recorded.image})"
        raise ImageFormatError(text)
    if recorded.modified is not None and recorded.modified != found.modified:
        raise ImageFormatError(
            "its parent was changed after it was made (the id of its last change is "
            f"{found.modified}, and {recorded.modified} was recorded)"
        )
