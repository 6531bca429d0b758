"""What a driver's hooks give back is looked at before it is used; errors name driver and hook."""

from __future__ import annotations

import errno
import logging
from typing import Any, Final, TypeVar

from tapcore.errors import DriverError
from tapcore.interface.models import DiskDriver, TapDisk

T = TypeVar("T")

TRACEBACKS: Final = "tapcore.tracebacks"
"""The logger that has them, at the level of debugging; `--debug` lets these lines pass alone."""

_where = logging.getLogger(TRACEBACKS)


def untrue(drv: TapDisk, hook: str, text: str, image: str) -> DriverError:
    """The error of a hook that gives back what cannot be.

    Args:
        drv: the driver's operations.
        hook: its name.
        text: what it did, after "its td_...".
        image: concerned.
    """
    return DriverError(f"the driver {drv.disk_type} is wrong: its {hook} {text}", image=image)


def expected(drv: TapDisk, hook: str, value: object, kind: type[T], image: str) -> T:
    """What a hook has returned, if it is of the right kind.

    Raises:
        DriverError: it is not.
    """
    if isinstance(value, kind):
        return value
    text = f"returned {_named(value)}, which is no {kind.__name__}"
    raise untrue(drv, hook, text, image)


def show_where(exc: BaseException) -> None:
    """Let `--debug` show where in a driver something was raised that is told in one line."""
    _where.debug("where that was: %s: %s", type(exc).__name__, exc, exc_info=exc)


def check_opened(dd: DiskDriver[Any], returned: object) -> None:
    """Whether `td_open` has opened the image, whatever it returned.

    Raises:
        OSError: it returned a negative errno, as blktap's do.
        DriverError: something else than None or 0.
    """
    if returned is None or (isinstance(returned, int) and returned == 0):
        return
    if isinstance(returned, int) and returned < 0:
        raise OSError(-returned, errno.errorcode.get(-returned, "unknown error"))
    text = f"returned {_named(returned)}, where None means that the image is open"
    raise untrue(dd.drv, "td_open", text, dd.name)


def format_info(dd: DiskDriver[Any]) -> dict[str, Any]:
    """What the format says of an open image, by `td_info`.

    Raises:
        DriverError: it is no dict.
    """
    return dict(expected(dd.drv, "td_info", dd.drv.td_info(dd), dict, dd.name))


def _named(value: object) -> str:
    return "None" if value is None else f"a value of the type {type(value).__name__}"
