"""System calls that no library has a function for."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Final

from tapcore.process.libc import libc

_PR_SET_NO_NEW_PRIVS: Final = 38


def system_call(number: int, *arguments: object) -> int:
    """syscall(2).

    Args:
        number: of the call, on this machine.
        arguments: numbers, and ctypes objects whose addresses are meant.

    Raises:
        OSError: as the kernel says; ENOSYS where it does not have the call.
    """
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    function: Callable[..., int] = libc().syscall
    return _checked(function(ctypes.c_long(number), *words))


def give_up_new_privileges() -> None:
    """From now on no program that this thread starts has more rights than it has (prctl(2))."""
    one, nothing = ctypes.c_ulong(1), ctypes.c_ulong(0)
    _checked(libc().prctl(_PR_SET_NO_NEW_PRIVS, one, nothing, nothing, nothing))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
