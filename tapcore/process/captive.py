"""A command that runs as long as a server does, or the other way round."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from tapcore.process.stopping import STOP_SIGNALS

_SHELL: Final = "/bin/sh"


class Captive:
    """A command of the shell, begun.

    Args:
        command: for `sh -c`.
        variables: what it finds in its environment besides ours.

    Raises:
        OSError: there can be no more processes.
    """

    def __init__(self, command: str, variables: Mapping[str, str]) -> None:
        self._process = os.posix_spawn(
            _SHELL,
            [_SHELL, "-c", command],
            {**os.environ, **variables},
            setsigmask=(),  # here they are blocked, for the thread that waits for them
            setsigdef=STOP_SIGNALS,
        )
        self._descriptor = os.pidfd_open(self._process)

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._descriptor

    def end(self) -> int:
        """Wait for its end, after asking for that; returns its exit status as a shell tells it."""
        with suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGTERM)  # nobody answers it any more
        _, status = os.waitpid(self._process, 0)
        os.close(self._descriptor)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
