"""Files that are opened for this process by another, since it has confined itself.

Who lends knows by itself which files those are. What is asked for is only looked up there: a
process that was taken over gets no other by asking.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final, Protocol

from tapcore.files.noting import note
from tapcore.interface.identity import Identity, identity_of
from tapcore.interface.options import DiskId

_REFUSED: Final = (errno.EACCES, errno.EPERM)


class Lender(Protocol):
    """Who opens files for this process."""

    def open(self, file: Identity, flags: int) -> int:
        """A descriptor, with an open file description and so with locks of its own.

        Args:
            file: which one.
            flags: access mode, and perhaps O_DIRECT.

        Raises:
            OSError: as the system says there; EACCES, it does not lend that, or not so.
        """

    def parent_of(self, file: Identity) -> DiskId | None:
        """What an image says of its parent, to who may look into the directories around it."""


_lenders: Final[list[Lender]] = []


def borrow_from(lender: Lender) -> None:
    """Ask it for what this process may not open, from now on."""
    _lenders.append(lender)


def borrow_no_more(lender: Lender) -> None:
    """Ask it for nothing; what it has lent stays open. A second call does nothing."""
    with suppress(ValueError):
        _lenders.remove(lender)


def is_borrowing() -> bool:
    """Whether somebody can be asked."""
    return bool(_lenders)


def borrowed(refused: OSError, file: Identity | None, flags: int) -> int | None:
    """A file that the system has refused.

    Args:
        refused: what it said.
        file: which one; None: it cannot be told.
        flags: with which it was to be opened.

    Returns:
        A descriptor; None where nobody lends it.

    Raises:
        OSError: why a file that is lent could not be opened.
    """
    if file is None or refused.errno not in _REFUSED:
        return None
    kept = flags & (os.O_ACCMODE | os.O_DIRECT)
    for lender in tuple(_lenders):
        try:
            return lender.open(file, kept)
        except OSError as exc:
            if exc.errno not in _REFUSED:
                raise
    return None


def open_or_borrow(path: str, flags: int) -> int:
    """Open a file that is no image, such as one with a passphrase; for `open(opener=)`.

    Raises:
        OSError: as the system says.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as exc:
        lent = borrowed(exc, identity_of(path), flags)
        if lent is None:
            raise
        return lent
    note(fd)
    return fd


def parent_told(file: Identity | None) -> DiskId | None:
    """What an image says of its parent, where it can only be told by others; None: by nobody."""
    if file is None:
        return None
    told = (lender.parent_of(file) for lender in tuple(_lenders))
    return next((each for each in told if each is not None), None)
