"""Files that an image is made of besides its own: the one way for a driver to open one.

The name comes from an image, and so from a stranger: it goes through the policy of the disk.
"""

from __future__ import annotations

import errno
import os

from tapcore.constants import TD_RDONLY
from tapcore.errors import ImageOpenError, TapError, open_error, printable
from tapcore.imagefile import ImageFile, open_image_file
from tapcore.imagefile.newfiles import host_file_exists
from tapcore.models import DiskDriver
from tapcore.references import ReferencePolicy


def open_named_file(dd: DiskDriver, named: str, *, role: str, flags: int) -> ImageFile:
    """Open a file that an image names (an external data file, an extent).

    Args:
        dd: the image that names it.
        named: the name as recorded; relative to the image's directory.
        role: what the file is to the image, a word for messages ("data file").
        flags: `TD_RDONLY` or 0; of a file that is only read, whatever the image is open for.

    Returns:
        The file, locked, asynchronous, in the disk's cache mode; the driver's to close.

    Raises:
        ReferencePolicyError: the policy does not allow it; the text says what would.
        TapError: it cannot be opened; the text names it.
    """
    policy = dd.options.references or ReferencePolicy()
    root = dd.td_state.image.name if dd.td_state is not None else dd.name
    path = policy.resolve(named, image=dd.name, root=root)
    if not host_file_exists(path):
        text = f"its {role} '{printable(named)}' does not exist"
        raise ImageOpenError(text, image=dd.name, errno=errno.ENOENT)
    if _same_file(path, dd.name):
        text = f"names itself as its {role}"
        raise ImageOpenError(text, image=dd.name, errno=errno.EINVAL)
    try:
        return open_image_file(path, flags | (dd.flags & TD_RDONLY), dd.options)
    except (TapError, OSError) as exc:
        failed = open_error(exc, path)
        failed.message = f"its {role} {path}: {failed.message}"
        failed.image = dd.name
        raise failed from None


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
