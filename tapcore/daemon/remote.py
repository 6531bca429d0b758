"""The other side of a control socket, asked from within a loop: nothing waits for it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Final

from tapcore.daemon.jsonrpc import (
    MAX_ANSWER,
    Call,
    CallId,
    Lines,
    call_line,
    parse_answer,
)
from tapcore.daemon.verbs import Later
from tapcore.engine.loop import IN, OUT, Loop
from tapcore.errors import IOFailedError
from tapcore.process.timer import Timer

_RECEIVE: Final = 64 << 10
_DESCRIPTORS: Final = 8


class Remote:
    """Calls somebody who listens on a Unix socket; connects when there is something to ask.

    Args:
        loop: in which answers come.
        timer: of the same loop.
        path: of the control socket.
    """

    def __init__(self, loop: Loop, timer: Timer, path: str) -> None:
        self.path = path
        self._loop = loop
        self._timer = timer
        self._socket: socket.socket | None = None
        self._lines = Lines(MAX_ANSWER)
        self._unsent = bytearray()
        self._waiting: dict[CallId, Later] = {}
        self._ids = count(1)
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
            text = "the disk's process does not answer"
            later.fail(IOFailedError(text, errno=errno.ETIMEDOUT))

    def _connected(self) -> socket.socket:
        if self._socket is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
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

    def _receive(self) -> None:
        assert self._socket is not None
        data, found, _, _ = socket.recv_fds(self._socket, _RECEIVE, _DESCRIPTORS)
        for descriptor in found:
            os.set_inheritable(descriptor, False)
        self.descriptors += found
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._lines.receive(data)
        while (line := self._lines.next_line()) is not None:
            answer = parse_answer(line)
            later = self._waiting.pop(answer.id, None)
            if later is None:
                continue  # nobody waits for it any more
            if answer.error is not None:
                later.fail(answer.error)
            else:
                later.answer(answer.result)

    def _lose(self, exc: OSError) -> None:
        """What was asked for may have been done or not."""
        if self._socket is not None:
            self._loop.remove(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._lines, self._unsent = Lines(MAX_ANSWER), bytearray()
        waiting, self._waiting = self._waiting, {}
        for later in waiting.values():
            later.fail(exc)

    def close(self) -> None:
        """Forget it all; whoever waits hears that it is over."""
        self._lose(ConnectionResetError(errno.ECONNRESET, "the connection was closed"))
        while self.descriptors:
            os.close(self.descriptors.pop())
