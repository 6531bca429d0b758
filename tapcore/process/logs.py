"""Where a server's log goes: standard error, syslog as blktap's does, or journald with its fields.

Both of the latter are datagrams to a socket, which is connected before a process gives up its
rights, and shared with those that it forks.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections.abc import Callable, Mapping
from typing import Final, TextIO

from tapcore.errors import UsageError, describe

PLACES: Final = ("stderr", "syslog", "journald")
LOG: Final = "TAPCORE_LOG"
"""Environment variable: one of them, for processes that are started."""

IDENT: Final = "TAPDISK"
"""blktap's own."""

_DAEMON: Final = 3  # the facility (RFC 3164, 4.1.1)
_MOST: Final = 8192
_SEVERITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_SOCKETS: Final[Mapping[str, str]] = {
    "syslog": "/dev/log",
    "journald": "/run/systemd/journal/socket",
}


_AT_ONCE: Final = select.PIPE_BUF
"""Bytes that a pipe takes without waiting, if it takes any."""

_PATIENCE: Final = 100
"""Milliseconds for a reader who is only slow."""


class StderrLog(logging.StreamHandler[TextIO]):
    """Writes each record to standard error; nobody is kept waiting by who does not read it there.

    A pipe that nobody empties would hold a server for ever: lines that it does not take are counted
    instead, and their number is told when it takes some again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        try:
            lost, text = self._lost, self.format(record) + self.terminator
            if lost:
                text = f"{lost} lines of the log are lost: nobody read it{self.terminator}{text}"
            if self._write(text):
                self._lost -= lost
            else:
                self._lost += 1
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def _write(self, text: str) -> bool:
        """Returns whether all of it was taken."""
        left = text.encode(self.stream.encoding or "utf-8", "backslashreplace")
        while left:
            if not self._takes_some():
                return False
            piece, left = left[:_AT_ONCE], left[_AT_ONCE:]
            self.stream.write(piece.decode(self.stream.encoding or "utf-8", "replace"))
            self.flush()
        return True

    def _takes_some(self) -> bool:
        try:
            poll = select.poll()
            poll.register(self.stream, select.POLLOUT)
        except (OSError, ValueError, AttributeError):
            return True  # a stream without a file
        return bool(poll.poll(0 if self._lost else _PATIENCE))


class DatagramLog(logging.Handler):
    """Sends each record as a datagram.

    Args:
        path: of the socket.
        encode: a record and its text as a datagram.

    Raises:
        UsageError: nobody listens there.
    """

    def __init__(self, path: str, encode: Callable[[logging.LogRecord, str], bytes]) -> None:
        super().__init__()
        self._path = path
        self._encode = encode
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.connect(path)
        except OSError as exc:
            self._socket.close()
            text = f"nobody takes the log there: {describe(exc)}"
            raise UsageError(text, image=path, errno=exc.errno) from None

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; one that is lost costs nobody anything."""
        try:
            data = self._encode(record, self.format(record)[:_MOST])
            try:
                self._socket.send(data, socket.MSG_DONTWAIT)
            except OSError as exc:
                if exc.errno not in (errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET):
                    raise
                self._socket.connect(self._path)  # whoever listened has been started again
                self._socket.send(data, socket.MSG_DONTWAIT)
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Nothing: there is nowhere to tell it."""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def severity_of(level: int) -> int:
    """Syslog's severity of a level of logging."""
    return next((severity for least, severity in _SEVERITIES if level >= least), 7)


def syslog_datagram(record: logging.LogRecord, text: str) -> bytes:
    """As the C library's `syslog` sends it: one line, whose time is told by whoever takes it."""
    head = f"<{_DAEMON << 3 | severity_of(record.levelno)}>{IDENT}[{os.getpid()}]: "
    return (head + " ".join(text.splitlines())).encode(errors="backslashreplace")


def journal_datagram(record: logging.LogRecord, text: str) -> bytes:
    """journald's native protocol: fields, those of several lines with their length."""
    fields = {
        "MESSAGE": text,
        "PRIORITY": str(severity_of(record.levelno)),
        "SYSLOG_IDENTIFIER": IDENT,
        "SYSLOG_FACILITY": str(_DAEMON),
        "SYSLOG_PID": str(os.getpid()),
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": str(record.lineno),
        "CODE_FUNC": record.funcName or "",
    }
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


def log_handler(place: str) -> logging.Handler:
    """What writes a log to one of `PLACES`.

    Raises:
        UsageError: there is no such place, or nobody listens there.
    """
    if place == "stderr":
        return StderrLog()
    encoders = {"syslog": syslog_datagram, "journald": journal_datagram}
    if place not in encoders:
        raise UsageError(f"a log goes to {', '.join(PLACES)}, not to '{place}'")
    return DatagramLog(_SOCKETS[place], encoders[place])
