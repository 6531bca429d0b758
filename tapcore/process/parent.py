"""An end with the process that started this one."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

from tapcore.process.libc import libc

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """From now on SIGTERM comes when the parent ends (prctl(2)), at once if it has ended already.

    Raises:
        OSError: the system does not do it.
    """
    parent = os.getppid()
    if libc().prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
