"""A disk process's side of the broker, which opens and makes files for it."""

from __future__ import annotations

import errno
import socket
import threading
from itertools import count
from typing import Any, Final

from tapcore.daemon.jsonrpc import Call, call_line, parse_answer
from tapcore.daemon.raised import raised_there
from tapcore.errors import IOFailedError
from tapcore.files.lent import borrow_from, borrow_no_more
from tapcore.interface.identity import Identity
from tapcore.interface.options import DiskId

_MAX_ANSWER: Final = 256 << 10


class Borrowing:
    """Files are borrowed from now on, until this is closed.

    Args:
        descriptor: of the socket to the broker; belongs to this.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._ids = count(1)
        self._one = threading.Lock()
        borrow_from(self)

    def close(self) -> None:
        """Nothing more is needed. A second call does nothing."""
        borrow_no_more(self)
        self._socket.close()

    def open(self, file: Identity, flags: int) -> int:
        """See `tapcore.files.lent.Lender`."""
        _, found = self._ask("open", file=_text(file), flags=flags)
        if found is None:
            raise IOFailedError("the broker sent no file", errno=errno.EPROTO)
        self._ask("closed")  # else it could hold our locks for a moment longer than we do
        return found

    def parent_of(self, file: Identity) -> DiskId | None:
        """See `tapcore.files.lent.Lender`."""
        try:
            told, _ = self._ask("parent", file=_text(file))
        except OSError:
            return None
        return DiskId(told["name"], told["handle"]) if told else None

    def make(self) -> DiskId:
        """See `tapcore.live.snapshot.Maker`."""
        told, _ = self._ask("make")
        return DiskId(told["name"], told["handle"])

    def unmake(self) -> None:
        """See `tapcore.live.snapshot.Maker`."""
        self._ask("unmake")

    def _ask(self, method: str, **params: Any) -> tuple[Any, int | None]:
        """The answer, and a descriptor that came with it.

        Raises:
            TapError: as it was raised there, or the broker is gone.
        """
        with self._one:
            try:
                self._socket.send(call_line(Call(method, params, next(self._ids))))
                data, descriptors, _, _ = socket.recv_fds(
                    self._socket, _MAX_ANSWER, 1, socket.MSG_CMSG_CLOEXEC
                )
            except OSError as exc:
                raise _gone(exc.errno) from None
        if not data:
            raise _gone(errno.ECONNRESET)
        answer = parse_answer(data)
        if answer.error is not None:
            raise raised_there(answer.error)
        return answer.result, descriptors[0] if descriptors else None


def _gone(number: int | None) -> IOFailedError:
    return IOFailedError("the process that opens files for this one is gone", errno=number)


def _text(file: Identity) -> str:
    return f"{file[0]}:{file[1]}"
