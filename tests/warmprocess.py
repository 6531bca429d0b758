"""The warm process: imports `tapdisk` once, and forks a child for each start (see `warmstart`).

Run as ``python warmprocess.py DESCRIPTOR``, a stream socket to the process that asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import marshal
import os
import pkgutil
import platform
import socket
import struct
import sys
import time
from importlib.metadata import entry_points
from typing import Any

LENGTH = struct.Struct("<I")
PID = struct.Struct("<i")
MOST_FDS = 200  # that come with one start, below the kernel's 253
_CLONE_PARENT = 0x8000
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
_SIGCHLD = 17
_ABOVE = 500  # descriptors go up there before they get their numbers


def supported() -> bool:
    """Whether this machine's forks can be children of the process that asks."""
    return sys.platform == "linux" and platform.machine() in _SYS_CLONE


def main() -> None:
    """Answer each start with the child's number; return in the children only."""
    asked = socket.socket(fileno=int(sys.argv[1]))
    _import_everything()
    gc.collect()
    gc.freeze()  # else each child's first collection would write to, and so copy, all of it
    while True:
        header, fds, _, _ = socket.recv_fds(asked, LENGTH.size, MOST_FDS)
        if not header:
            os._exit(0)
        start = marshal.loads(_exactly(asked, *LENGTH.unpack(header)))
        pid = _forked_for_the_parent()
        if pid == 0:
            asked.close()
            _become(start, fds)
            return
        asked.sendall(PID.pack(pid))
        for fd in fds:
            os.close(fd)


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(size - len(parts))
        if not part:
            os._exit(0)
        parts += part
    return bytes(parts)


def _import_everything() -> None:
    import tapcore
    import tapcore.cli.main

    for module in pkgutil.walk_packages(tapcore.__path__, "tapcore."):
        if "testkit" not in module.name and not module.name.endswith("__main__"):
            with contextlib.suppress(Exception):  # what is optional says so in its own way
                importlib.import_module(module.name)
    for entry in entry_points(group="tapcore"):
        with contextlib.suppress(Exception):
            entry.load()


def _forked_for_the_parent() -> int:
    """A fork whose parent is this process's parent, which waits for it. Returns as `os.fork`."""
    api, libc = ctypes.pythonapi, ctypes.PyDLL(None, use_errno=True)
    api.PyOS_BeforeFork()
    pid = int(libc.syscall(_SYS_CLONE[platform.machine()], _CLONE_PARENT | _SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        api.PyOS_AfterFork_Child()
        return 0
    api.PyOS_AfterFork_Parent()
    return pid


def _become(start: dict[str, Any], fds: list[int]) -> None:
    """Turn this child into what a start of the script would have made."""
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, _ABOVE) for fd in fds]
    for fd in fds:
        os.close(fd)
    os.fchdir(above[0])
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.close(number)
    for fd, number in zip(above[1:], start["fds"], strict=True):
        os.dup2(fd, number)
    for fd in above:
        os.close(fd)
    os.umask(start["umask"])
    if start["new_session"]:
        os.setsid()
    if start["process_group"] >= 0:
        os.setpgid(0, start["process_group"])
    os.environb.clear()
    os.environb.update(start["environment"])
    time.tzset()
    sys.argv = [os.fsdecode(argument) for argument in start["arguments"]]
    sys.path[0] = os.path.dirname(sys.argv[0])
    sys.stdin = sys.__stdin__ = _stream(0, sys.stdin)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, sys.stderr)  # type: ignore[misc]


def _stream(number: int, like: Any) -> Any:
    """A standard stream as the interpreter makes it at its start; None for one that is closed."""
    try:
        os.fstat(number)
    except OSError:
        return None
    writes = number > 0
    raw = io.FileIO(number, "w" if writes else "r", closefd=False)
    raw.name = f"<{('stdin', 'stdout', 'stderr')[number]}>"
    lines = raw.isatty() or number == 2
    buffered: Any = io.BufferedWriter(raw) if writes else io.BufferedReader(raw)
    return io.TextIOWrapper(buffered, like.encoding, like.errors, line_buffering=lines)


if __name__ == "__main__":
    main()
    from tapcore.cli.entry import run

    sys.exit(run())
