"""Files that an image is made of besides its own: the one way for a driver to open one.

The name comes from an image, and so from a stranger: it goes through the policy of the disk.
"""

from __future__ import annotations

import errno

import attrs

from tapcore.constants import TD_RDONLY
from tapcore.errors import (
    ImageOpenError,
    ReferencePolicyError,
    TapError,
    describe,
    open_error,
    printable,
)
from tapcore.files import ImageFile, open_image_file
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.identity import Identity, identity_of
from tapcore.interface.models import DiskDriver
from tapcore.interface.policy import Naming, ReferencePolicy
from tapcore.opening.binding import bind_named


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
    bound = find_named_file(dd, named, role=role)
    path = bound.real
    try:
        if bound.identity == identity_of_image(dd):
            text = f"names itself as its {role}"
            raise ImageOpenError(text, image=dd.name, errno=errno.EINVAL)
        options = attrs.evolve(dd.options, bound=bound)
        return open_image_file(path, flags | (dd.flags & TD_RDONLY), options)
    except (TapError, OSError) as exc:
        failed = open_error(exc, path)
        if failed.image != dd.name:
            failed.message = f"its {role} {path}: {failed.message}"
        failed.image = dd.name
        raise failed from None
    finally:
        bound.let_go()


def find_named_file(dd: DiskDriver, named: str, *, role: str) -> BoundFile:
    """Find a file that an image names, and judge it; it is not opened yet.

    Args:
        dd: the image that names it.
        named: the name as recorded; relative to the image's directory.
        role: what the file is to the image, a word for messages.

    Returns:
        The file, which is the one to be opened; the caller's to let go.

    Raises:
        ReferencePolicyError: the policy does not allow it; the text says what would.
        ImageOpenError: there is no such file, or it cannot be looked at.
    """
    policy = dd.options.references or ReferencePolicy()
    try:
        return bind_named(named, policy, image=naming_of(dd), home=dd.td_state.home)
    except ReferencePolicyError:
        raise
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            text = f"its {role} '{printable(named)}' does not exist"
            raise ImageOpenError(text, image=dd.name, errno=errno.ENOENT) from None
        text = f"its {role} '{printable(named)}': {describe(exc)}"
        raise ImageOpenError(text, image=dd.name, errno=exc.errno) from None


def naming_of(dd: DiskDriver) -> Naming:
    """Of an open image, what the names that it records are relative to."""
    bound = dd.options.bound
    if bound is not None:
        return Naming.of_file(dd.name, bound)
    return dd.options.named_by or Naming.of_path(dd.name)


def identity_of_image(dd: DiskDriver) -> Identity | None:
    """Which file an image's is; None where it is no file."""
    if dd.options.bound is not None:
        return dd.options.bound.identity
    return identity_of(dd.name)
