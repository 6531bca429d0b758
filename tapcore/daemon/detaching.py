"""The end of a disk: answered, flushed, closed and forgotten, or given up."""

from __future__ import annotations

import errno
import signal
from typing import Any, Final

from tapcore.daemon.daemon import Daemon
from tapcore.daemon.disks import CLOSING, SERVING, STARTING, Disk
from tapcore.daemon.jsonrpc import RpcError
from tapcore.daemon.processes import Process
from tapcore.daemon.verbs import Later
from tapcore.errors import IOFailedError, UsageError

CLOSE_SECONDS: Final = 45.0
"""For a process to close a disk; it gives up by itself before that, if it can."""


def detach(daemon: Daemon, disk: Disk, *, force: bool) -> Later:
    """Answer what is in flight, flush, close, and forget a disk.

    Args:
        daemon: that has it.
        disk: to be detached.
        force: also where clients are connected, or where it is just being opened.

    Raises:
        UsageError: it is just being started or closed.
    """
    if disk.state == STARTING and force:
        return _break_off(daemon, disk)
    if disk.state in (STARTING, CLOSING):
        raise UsageError(f"is {disk.state}", image=disk.name, errno=errno.EBUSY)
    later = Later()
    process = disk.process
    if process is None or disk.state != SERVING:
        daemon.forget(disk)
        daemon.remember()
        later.answer(None)
        return later
    disk.state = CLOSING

    def closed(result: Any, error: BaseException | None) -> None:
        late = isinstance(error, IOFailedError) and error.errno == errno.ETIMEDOUT
        if late and force and not process.shared:
            process.signal(signal.SIGKILL)
        elif late or (isinstance(error, RpcError) and error.errno == errno.EBUSY):
            disk.state = SERVING
            later.fail(error or IOFailedError("is not closed"))
            return
        _detached(daemon, disk, process, later, error)

    params = {"name": disk.name, "force": force}
    process.remote.call("close", params, seconds=CLOSE_SECONDS).then(closed)
    return later


def _break_off(daemon: Daemon, disk: Disk) -> Later:
    """Its image is being opened, and that does not end."""
    process, later = disk.process, Later()
    daemon.forget(disk)
    if process is not None and not process.disks:
        process.signal(signal.SIGKILL)  # the driver may be in a call that nothing else ends
    later.answer(None)
    return later


def _detached(
    daemon: Daemon, disk: Disk, process: Process, later: Later, error: BaseException | None
) -> None:
    daemon.forget(disk)
    try:
        daemon.remember()
    except OSError as exc:
        error = error or exc

    def tell(result: Any = None, ignored: BaseException | None = None) -> None:
        if error is None:
            later.answer(None)
        else:
            later.fail(_why_not_closed(error))

    if process.ending and process.name in daemon.processes.all:
        process.gone.then(tell)  # only then is its name free again
    else:
        tell()


def _why_not_closed(error: BaseException) -> BaseException:
    if isinstance(error, RpcError | IOFailedError):
        return error
    return IOFailedError("its process died before it had closed the image")
