"""The other side of a control socket, asked from within a loop: nothing waits for it."""

from __future__ import annotations

import array
import errno
import logging
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Final

from tapcore.daemon.jsonrpc import (
    INVALID_REQUEST,
    MAX_ANSWER,
    Call,
    CallId,
    Lines,
    RpcError,
    call_line,
    parse_answer,
)
from tapcore.daemon.verbs import Later
from tapcore.engine.loop import IN, OUT, Loop
from tapcore.errors import IOFailedError, describe
from tapcore.process.timer import Timer

log = logging.getLogger(__name__)

_RECEIVE: Final = 64 << 10
_DESCRIPTORS: Final = 8
_CREDENTIALS: Final = struct.Struct("3i")
_ROOM: Final = socket.CMSG_SPACE(4 * _DESCRIPTORS) + socket.CMSG_SPACE(_CREDENTIALS.size)


class Remote:
    """Calls somebody who listens on a Unix socket; connects when there is something to ask.

    Args:
        loop: in which answers come.
        timer: of the same loop.
        path: of the control socket.
        takes_descriptors: answers may bring some.

    Attributes:
        path: as given.
        sender: number of the process that has sent what came last, as the kernel says; 0: nothing
            came, or descriptors are not taken.
        descriptors: that came, and nobody took.
    """

    def __init__(
        self, loop: Loop, timer: Timer, path: str, *, takes_descriptors: bool = False
    ) -> None:
        self.path = path
        self._loop = loop
        self._timer = timer
        self._socket: socket.socket | None = None
        self._lines = Lines(MAX_ANSWER)
        self._unsent = bytearray()
        self._waiting: dict[CallId, Later] = {}
        self._given_up: set[CallId] = set()
        self._ids = count(1)
        self._takes_descriptors = takes_descriptors
        self.sender = 0
        self.descriptors: list[int] = []

    def call(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        descriptors: Sequence[int] = (),
        seconds: float | None = None,
    ) -> Later:
        """Ask for something.

        Args:
            method: name of a verb.
            params: of it.
            descriptors: that go with it; they stay open here.
            seconds: after which nobody waits for the answer any more; None: for ever.
        """
        later, known = Later(), next(self._ids)
        try:
            self._send(call_line(Call(method, params, known)), descriptors)
        except OSError as exc:
            self._lose(exc)
            later.fail(exc)
            return later
        self._waiting[known] = later
        if seconds is not None:
            self._timer.put(seconds, lambda: self._give_up(known))
        return later

    def _give_up(self, known: CallId) -> None:
        later = self._waiting.pop(known, None)
        if later is not None:
            self._given_up.add(known)
            text = "the disk's process does not answer"
            later.fail(IOFailedError(text, errno=errno.ETIMEDOUT))

    def _connected(self) -> socket.socket:
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                if self._takes_descriptors:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                sock.connect(self.path)
            except OSError:
                sock.close()
                raise
            self._socket = sock
            self._loop.add(sock.fileno(), self._ready)
        return self._socket

    def _send(self, line: bytes, descriptors: Sequence[int]) -> None:
        sock = self._connected()
        if descriptors:
            if self._unsent:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            sent = socket.send_fds(sock, [line], list(descriptors))
            line = line[sent:]
        self._unsent += line
        self._flush()

    def _flush(self) -> None:
        assert self._socket is not None
        with suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        self._loop.modify(self._socket.fileno(), IN | OUT if self._unsent else IN)

    def _ready(self, events: int) -> None:
        try:
            if events & OUT:
                self._flush()
            if events & ~OUT:
                self._receive()
        except BlockingIOError:
            pass
        except OSError as exc:
            self._lose(exc)
        except Exception as exc:  # what came was not what it should have been
            log.exception("%s: its answer is not understood", self.path)
            self._lose(IOFailedError(f"its answer is not understood: {describe(exc)}"))

    def _receive(self) -> None:
        data = self._recv()
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._lines.receive(data)
        while self._socket is not None and (line := self._lines.next_line()) is not None:
            self._take(line)

    def _take(self, line: bytes) -> None:
        answer = parse_answer(line)
        later = self._waiting.pop(answer.id, None)
        if later is None:
            if answer.id not in self._given_up:
                raise RpcError(INVALID_REQUEST, "an answer came that nobody waits for")
            self._given_up.discard(answer.id)
        elif answer.error is not None:
            later.fail(answer.error)
        else:
            later.answer(answer.result)

    def _recv(self) -> bytes:
        assert self._socket is not None
        if not self._takes_descriptors:
            return self._socket.recv(_RECEIVE)
        data, ancillary, _, _ = self._socket.recvmsg(_RECEIVE, _ROOM, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                self.descriptors += found
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                self.sender = _CREDENTIALS.unpack(content)[0]
        while len(self.descriptors) > _DESCRIPTORS:
            os.close(self.descriptors.pop())
        return data

    def _lose(self, exc: OSError) -> None:
        """What was asked for may have been done or not."""
        if self._socket is not None:
            self._loop.remove(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._lines, self._unsent = Lines(MAX_ANSWER), bytearray()
        self._given_up.clear()
        waiting, self._waiting = self._waiting, {}
        for later in waiting.values():
            later.fail(exc)

    def close(self) -> None:
        """Forget it all; whoever waits hears that it is over."""
        self._lose(ConnectionResetError(errno.ECONNRESET, "the connection was closed"))
        while self.descriptors:
            os.close(self.descriptors.pop())
