"""What a driver does is believed only as far as it can be true; errors name driver and hook."""

from __future__ import annotations

import errno
import logging
from typing import Any, Final

from tapcore.errors import DriverError
from tapcore.interface.models import DiskDriver

TRACEBACKS: Final = "tapcore.tracebacks"
"""The logger that has them, at the level of debugging; `--debug` lets these lines pass alone."""

_where = logging.getLogger(TRACEBACKS)


def untrue(handle: str, hook: str, text: str, image: str) -> DriverError:
    """The error of a hook that gives back what cannot be.

    Args:
        handle: of the driver.
        hook: its name.
        text: what it did, after "its td_...".
        image: concerned.
    """
    return DriverError(f"the driver {handle} is wrong: its {hook} {text}", image=image)


def named(value: object) -> str:
    """A value that a hook has returned, in words."""
    return "None" if value is None else f"a value of the type {type(value).__name__}"


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
    text = f"returned {named(returned)}, where None means that the image is open"
    raise untrue(dd.drv.disk_type, "td_open", text, dd.name)
