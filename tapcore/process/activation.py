"""Sockets that whoever started this process has opened for it: systemd's socket activation.

Source: sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import os
import socket
from typing import Final

from tapcore.errors import UsageError

FIRST: Final = 3


def activated(wanted: str = "") -> tuple[int, ...]:
    """Descriptors of the sockets; none where there are none for this process.

    What says so is taken out of the environment, so that no child believes it.

    Args:
        wanted: only those of this name (LISTEN_FDNAMES); empty: all.

    Raises:
        UsageError: the environment makes no sense.
    """
    count, process = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "")
    if not count or process != str(os.getpid()):
        return ()
    if not count.isdecimal() or not 0 < int(count) < 1024:
        raise UsageError(f"LISTEN_FDS is {count!r}, and has to be a number of sockets")
    sockets = range(FIRST, FIRST + int(count))
    chosen = [fd for fd, name in zip(sockets, names.split(":"), strict=False) if name == wanted]
    if wanted and not chosen:
        raise UsageError(f"none of the sockets is named '{wanted}' (LISTEN_FDNAMES is '{names}')")
    return tuple(chosen if wanted else sockets)


def tell_ready() -> None:
    """Tell systemd, where it has asked for that, that clients are served now."""
    where = os.environ.pop("NOTIFY_SOCKET", "")
    if not where:
        return
    address = "\0" + where[1:] if where.startswith("@") else where
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"READY=1", address)
        except OSError as exc:
            raise UsageError(f"cannot be told: {exc.strerror}", image=where) from None
