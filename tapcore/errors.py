"""Exceptions that mean something: each carries an image's name and an errno.

The text of an error is one line for a person: what is wrong and, where that is known, what to do.

Each is an OSError too, since a disk is a file to whoever uses it, and so of Python's own class for
its errno: a missing image is a FileNotFoundError. `except OSError` therefore catches them, also
where only the system's own errors are meant: there `except TapError: raise` has to stand before it.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

_MOST_TEXT = 2000
_MOST_NAME = 1000

_PYTHONS_OWN: Final[dict[int, type[OSError]]] = {
    errno.ENOENT: FileNotFoundError,
    errno.EEXIST: FileExistsError,
    errno.EACCES: PermissionError,
    errno.EPERM: PermissionError,
    errno.EISDIR: IsADirectoryError,
    errno.ENOTDIR: NotADirectoryError,
}
"""What OSError itself becomes with these; not those of calls that are to be repeated."""

AnyError = TypeVar("AnyError", bound="TapError")

_made: dict[tuple[type[TapError], type[OSError]], Any] = {}
"""Classes of both kinds, each made once."""


class TapError(OSError):
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
        strerror: the message, where an OSError has the system's words.
        filename: the image, or None.
    """

    default_errno = errno.EIO
    errno: int

    def __new__(cls: type[AnyError], *args: Any, **kwargs: Any) -> AnyError:
        code = kwargs.get("errno") or cls.default_errno
        new: AnyError = OSError.__new__(_with_pythons_own(cls, code))
        return new

    def __init__(self, message: str, *, image: str = "", errno: int | None = None) -> None:
        super().__init__()
        self.message = message
        self.image = image
        self.errno = self.default_errno if errno is None else errno
        self.args = (self.errno, self.message)

    @property
    def message(self) -> str:
        return self._message

    @message.setter
    def message(self, text: str) -> None:
        short = shortened(str(text), _MOST_TEXT)
        self._message = printable(short, len(short))

    @property
    def strerror(self) -> str:  # type: ignore[override]  # it follows the message, which may grow
        return self._message

    @property
    def filename(self) -> str | None:
        return self.image or None

    def __str__(self) -> str:
        name = shortened(self.image, _MOST_NAME)
        image = printable(name, len(name))
        return f"{image}: {self.message}" if image else self.message

    def __reduce__(self) -> tuple[Callable[..., TapError], tuple[Any, ...]]:
        return _rebuilt, (_declared(type(self)), self.errno, self.args, self.__dict__)


def _rebuilt(
    kind: type[TapError], code: int, args: tuple[Any, ...], state: dict[str, Any]
) -> TapError:
    """From a pickle: a class may have an `__init__` of its own."""
    new = kind.__new__(kind, errno=code)
    new.errno, new.args = code, args
    new.__dict__.update(state)
    return new


def _with_pythons_own(cls: type[AnyError], code: int) -> type[AnyError]:
    """The class, which is Python's own for the errno too."""
    own = _PYTHONS_OWN.get(code)
    if own is None or issubclass(cls, own):
        return cls
    both = _made.get((cls, own))
    if both is None:
        inside = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        both = _made[cls, own] = type(cls.__name__, (cls, own), inside)
    return both


def _declared(cls: type[TapError]) -> type[TapError]:
    """The class that stands in the source, of one that `_both` made."""
    own = next((kind for kind in set(_PYTHONS_OWN.values()) if kind in cls.__bases__), None)
    return cls if own is None else next(base for base in cls.__bases__ if base is not own)


class UsageError(TapError, ValueError):
    """The caller asked for something that cannot be meant: a bad size, name or option."""

    default_errno = errno.EINVAL


class ClosedError(UsageError):
    """A call to a disk that is closed: ValueError, as with every file."""

    default_errno = errno.EBADF


class ForkedError(TapError):
    """A call to a disk that another process opened: it was forked away from it."""

    default_errno = errno.EBADF


class BrokenOffError(TapError):
    """A call was left in the middle (Ctrl-C): the disk can only be closed, and saves nothing."""

    default_errno = errno.EIO


class UnknownHandleError(UsageError):
    """No installed driver has the handle."""


class ImageOpenError(TapError):
    """An image could not be opened."""


class NotWritableError(ImageOpenError):
    """An image could not be opened for writing; for reading it can."""

    default_errno = errno.EROFS


class ReadOnlyDeviceError(ImageOpenError):
    """A block device that cannot be written was to be opened for writing."""

    default_errno = errno.EROFS


class ImageFormatError(TapError):
    """What the image says of itself is not possible."""

    default_errno = errno.EINVAL


class ImageLockedError(TapError, BlockingIOError):
    """Another process uses the image in a way that forbids this use.

    Python's own locks (`fcntl.flock`) say the same with a BlockingIOError.
    """

    default_errno = errno.EAGAIN


class ReferencePolicyError(TapError):
    """The image names a file that the policy does not allow to be opened."""

    default_errno = errno.EPERM


class ReadOnlyError(TapError, io.UnsupportedOperation):
    """A write to a disk that was opened read-only."""

    default_errno = errno.EROFS


class OutOfRangeError(TapError):
    """A request past the end of the disk."""

    default_errno = errno.EINVAL


class NotSupportedError(TapError, io.UnsupportedOperation):
    """The format, or the host's file system, does not have the operation."""

    default_errno = errno.EOPNOTSUPP


class DriverError(TapError):
    """A driver broke its contract, or raised something that is not an error of I/O."""


class IOFailedError(TapError):
    """A read, write or flush failed with the errno given."""


class LostContentError(IOFailedError):
    """A read failed because the image is damaged; the text says where. The rest can be salvaged."""


def shortened(text: str, most: int) -> str:
    """With its middle left out where it has more characters than that: the end is the reason."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}…{text[1 - half :]}"


def printable(text: str, limit: int = 200) -> str:
    """Text from an image, safe to print: control characters escaped, length bounded.

    A byte of a name that is not UTF-8 is shown as what it is, `\\xff`.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return cut if cut.isprintable() else "".join(map(_shown, cut))


def _shown(character: str) -> str:
    code = ord(character)
    if character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps such a byte
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


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
    if isinstance(exc, OSError) and exc.errno:
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
