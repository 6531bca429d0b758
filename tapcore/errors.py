"""Exceptions that mean something: each carries an image's name and an errno.

The text of an error is one line for a person: what is wrong and, where that is known, what to do.
"""

from __future__ import annotations

import errno
import os

_MOST_TEXT = 2000


class TapError(Exception):
    """Anything that tapcore refuses or fails at.

    Args:
        message: one line, without the image's name; may hold names that come from an image, and so
            from anybody.
        image: the image as the user named it; empty where no image is concerned.
        errno: the positive errno that a client of the disk is answered with.

    Attributes:
        message: as given, of bounded length and safe to print and to log.
        image: as given.
        errno: as given, or what the class stands for.
    """

    default_errno = errno.EIO

    def __init__(self, message: str, *, image: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.image = image
        self.errno = self.default_errno if errno is None else errno

    @property
    def message(self) -> str:
        return self._message

    @message.setter
    def message(self, text: str) -> None:
        short = _shortened(str(text))
        self._message = printable(short, len(short))

    def __str__(self) -> str:
        image = printable(self.image, len(self.image))
        return f"{image}: {self.message}" if image else self.message


class UsageError(TapError):
    """The caller asked for something that cannot be meant: a bad size, name or option."""

    default_errno = errno.EINVAL


class UnknownHandleError(UsageError):
    """No installed driver has the handle."""


class ImageOpenError(TapError):
    """An image could not be opened."""


class ImageFormatError(TapError):
    """What the image says of itself is not possible."""

    default_errno = errno.EINVAL


class ImageLockedError(TapError):
    """Another process uses the image in a way that forbids this use."""

    default_errno = errno.EAGAIN


class ReferencePolicyError(TapError):
    """The image names a file that the policy does not allow to be opened."""

    default_errno = errno.EPERM


class ReadOnlyError(TapError):
    """A write to a disk that was opened read-only."""

    default_errno = errno.EROFS


class OutOfRangeError(TapError):
    """A request past the end of the disk."""

    default_errno = errno.EINVAL


class NotSupportedError(TapError):
    """The format, or the host's file system, does not have the operation."""

    default_errno = errno.EOPNOTSUPP


class DriverError(TapError):
    """A driver broke its contract, or raised something that is not an error of I/O."""


class IOFailedError(TapError):
    """A read, write or flush failed with the errno given."""


def _shortened(text: str) -> str:
    """With its middle left out where it is too long: the reason stands at the end."""
    if len(text) <= _MOST_TEXT:
        return text
    half = _MOST_TEXT // 2
    return f"{text[:half]}…{text[1 - half :]}"


def printable(text: str, limit: int = 200) -> str:
    """Text from an image, safe to print: control characters escaped, length bounded."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut)


def describe(exc: BaseException) -> str:
    """One line for a person about any exception.

    Args:
        exc: what was raised.

    Returns:
        The text without a final full stop; for an OSError the system's own words for its errno.
    """
    if isinstance(exc, TapError):
        return exc.message
    if isinstance(exc, OSError) and exc.errno is not None:
        return os.strerror(exc.errno)
    text = str(exc).strip().splitlines()
    name = type(exc).__name__
    return f"{name}: {printable(text[0], _MOST_TEXT)}" if text else name


def errno_of(exc: BaseException) -> int:
    """The positive errno that a failed request is answered with.

    Args:
        exc: what a hook raised.

    Returns:
        The errno of an OSError or TapError, whatever its sign; EIO for anything else: never 0.
    """
    if isinstance(exc, MemoryError):
        return errno.ENOMEM
    if isinstance(exc, TapError | OSError) and exc.errno:
        return abs(exc.errno)
    return errno.EIO


def open_error(exc: BaseException, image: str) -> TapError:
    """Turn whatever opening an image raised into a TapError that names the image.

    Args:
        exc: what was raised; a TapError that already names an image is returned as it is.
        image: the image as the user named it.
    """
    if isinstance(exc, TapError):
        if not exc.image:
            exc.image = image
        return exc
    return ImageOpenError(describe(exc), image=image, errno=errno_of(exc))
