"""Work in a forked child, which goes on to its end whatever becomes of this process."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import warnings
from collections.abc import Callable
from typing import Final

_DONE: Final = b"0"


def in_a_child(work: Callable[[], None]) -> None:
    """Do what takes several steps where the end of this process cannot come between them.

    Raises:
        OSError: what the work raised.
    """
    read, write = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        child = _fork()
        if child == 0:
            _work_and_end(work, write)
        os.close(write)
        answer = _read_all(read) if child else b""
        os.close(read)
        if child:
            with contextlib.suppress(ChildProcessError):  # somebody else may collect our children
                os.waitpid(child, 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if not child:
        work()
    elif answer != _DONE:
        code = int(answer or errno.EIO)
        raise OSError(code, os.strerror(code))


def _fork() -> int | None:
    """As os.fork; None where there can be no more processes."""
    try:
        with warnings.catch_warnings():  # of threads, which the child does without
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    except OSError:
        return None


def _work_and_end(work: Callable[[], None], write: int) -> None:
    """The child: in a session of its own, out of reach of what ends a group."""
    answer = b"%d" % errno.EIO
    try:
        os.setsid()
        work()
        answer = _DONE
    except OSError as exc:
        answer = b"%d" % (exc.errno or errno.EIO)
    finally:
        os.write(write, answer)
        os._exit(0)


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 4096):
        parts.append(part)
    return b"".join(parts)
