"""Going on in the background once all is ready, and the file that says as which process."""

from __future__ import annotations

import logging
import logging.handlers
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tapcore.errors import UsageError, describe

_LOG: Final = "/dev/log"


def in_background() -> Callable[[], None]:
    """Fork, before anything is open: returns in the child; the caller's process waits for it.

    Returns:
        What the child calls when it is ready: the process that was started ends with 0 then, and
        nothing of the terminal is used any more; what there is to tell goes to syslog. Where the
        child ends before that, so does that process, with the same status.

    Raises:
        OSError: there can be no more processes.
    """
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        os._exit(_wait(child, read))
    os.close(read)
    os.setsid()

    def ready() -> None:
        _let_go_of_the_terminal()
        os.write(write, b"1")
        os.close(write)

    return ready


def _wait(child: int, ready: int) -> int:
    try:
        if os.read(ready, 1):
            return 0
        _, status = os.waitpid(child, 0)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        return 128 + signal.SIGINT
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _let_go_of_the_terminal() -> None:
    with suppress(OSError):  # where there is no syslog
        logging.getLogger().addHandler(logging.handlers.SysLogHandler(_LOG))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


class PidFile:
    """A file with the number of this process.

    Args:
        path: where; what is there is replaced.

    Attributes:
        path: absolute.

    Raises:
        UsageError: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._content = f"{os.getpid()}\n"
        beside = f"{self.path}.{os.getpid()}"
        try:
            with open(beside, "x", encoding="ascii") as file:
                file.write(self._content)
            os.replace(beside, self.path)  # never half of a number
        except OSError as exc:
            with suppress(OSError):
                os.unlink(beside)
            raise UsageError(describe(exc), image=path, errno=exc.errno) from None

    def remove(self) -> None:
        """At the end, unless another has its own there by now."""
        with suppress(OSError, ValueError):
            with open(self.path, encoding="ascii") as file:
                ours = file.read() == self._content
            if ours:
                os.unlink(self.path)
