"""A socket whose bytes are encrypted: as much of a socket as a connection uses.

OpenSSL reads and writes the socket itself, so that little is copied on the way. What it could not
send has to be handed to it once more as it was: so it is kept here, apart from the replies, which
may change; what has been taken from them is taken for good.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from tapcore.buffers import POOL
from tapcore.files.mapping import content_of, is_mapped
from tapcore.nbd.budget import Budget
from tapcore.nbd.filespan import FileSpan
from tapcore.nbd.tlsrecords import (
    MANY,
    ManyRecords,
    Records,
    SingleRecords,
    Stop,
    go_back_often,
)
from tapcore.nbd.tlssteps import Step

AT_ONCE: Final = 1 << 20
"""Bytes that go through OpenSSL at once: all that there is room for where several long writes are
received together."""

TOGETHER: Final = 1 << 20
"""Bytes of replies that are brought together to be encrypted; one of the usual size (256 KiB) is
then seldom cut."""

RECORD: Final = 16 << 10
"""Bytes that a record has at most."""

HELD: Final = 64 << 10
"""Bytes of memory that OpenSSL has of a connection from its first byte on, at most: 14 KiB when the
handshake is over, 17 for a record that comes and 17 for one that goes, and what `ManyRecords` has
besides its buffers."""

_UNREAD: Final = 64 << 10


class TlsSocket:
    """The server's side.

    Args:
        sock: a client's; nothing was read of what it sent for TLS. This object owns it from now on.
        context: what the server proves itself with.
        budget: knows of the memory that is taken.

    Attributes:
        peer: what OpenSSL knows of the connection.
        ready: the TLS handshake is over.
        wide: many records are received and sent at once, or that cannot be.
        starved: all that has been received is taken; else `recv` has more, without an event.
        most: bytes that are received at once.
        step: of the handshake, that a thread has in hand: until it is done nobody else touches it.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, budget: Budget) -> None:
        sock.setblocking(False)
        self._budget = budget
        self.peer = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        budget.room -= HELD  # less than anybody may have
        self._held = HELD
        self.wide = False
        self._buffer: memoryview | None = None
        self._left = memoryview(b"")
        self._records: Records = SingleRecords(self.peer)
        self._pushed = True  # all that was encrypted has gone to the socket
        self.step: Step | None = None
        self._wants_out = False  # to go on with the handshake, or with receiving
        self.ready = False
        self.starved = True
        self.most = AT_ONCE

    def fileno(self) -> int:
        """Of the socket."""
        return self.peer.fileno()

    # ---- the handshake of TLS ---------------------------------------------------------------

    def shake_hands(self) -> bool:
        """Go on with it; returns whether it is over.

        Raises:
            OSError: it has failed, or the client has gone.
        """
        self._wants_out = False
        try:
            self.peer.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            self._wants_out = True
            return False
        go_back_often(self.peer)
        self.ready = True
        self.starved = False
        return True

    def widen(self) -> None:
        """Receive and send many records at once from now on, where there is memory for that.

        Requests will come: who only shakes hands has no need of it.
        """
        if not self._budget.take_to_keep(MANY):
            return
        self.wide = True
        try:
            self._records = ManyRecords(self.peer)
        except LookupError:
            self._budget.give_back(MANY)
        else:
            self._held += MANY

    # ---- receiving --------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """As a socket's."""
        data = memoryview(bytearray(size))
        return bytes(data[: self.recv_into(data)])

    def recv_into(self, buffer: memoryview) -> int:
        """As a socket's that does not block: 0 at the end, BlockingIOError where nothing is there.

        The memory is written by OpenSSL: it may not be a part of a host file.
        """
        records = self._records
        count = records.read(buffer[: self.most])
        stop = records.stop
        if stop in (Stop.FULL, Stop.NO_CONTENT) or (count and stop is Stop.END):
            self.starved = False  # for all that is known
            if not count:
                raise self._blocked()
            return count
        self.starved = True
        if stop is Stop.WANTS_OUT:
            self._wants_out = True
        if not count and stop is not Stop.END:
            raise self._blocked()
        return count

    @staticmethod
    def _blocked() -> BlockingIOError:
        return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    # ---- sending ----------------------------------------------------------------------------

    @property
    def unsent(self) -> bool:
        """Whether something waits until the client takes what was sent."""
        return self._buffer is not None or self._wants_out or not self._pushed

    @property
    def left(self) -> int:
        """Bytes of it, of what was handed over."""
        return len(self._left)

    def flush(self) -> None:
        """Send what was handed over, as far as the socket takes it."""
        if self._wants_out:
            self._wants_out = False
            self.starved = False  # what wanted that is to be tried again
        if self._buffer is not None:
            with suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                while self._left:
                    self._left = self._left[self.peer.send(self._left[:AT_ONCE]) :]
                self._give_back()
        elif self._pushed:
            return
        self._push()

    def _push(self) -> None:
        self._pushed = self._records.push()

    def send(self, data: bytes | memoryview) -> int:
        """As a socket's that does not block."""
        return self.send_items((data,), len(data))

    def sendmsg(
        self, buffers: Sequence[bytes | memoryview], ancillary: Iterable[object], flags: int
    ) -> int:
        """As a socket's; there is no ancillary data, and the flags are advice."""
        return self.send_items(buffers, sum(map(len, buffers)))

    def send_items(self, items: Iterable[bytes | memoryview | FileSpan], size: int) -> int:
        """The front of what is to be sent, read out of host files where it lies there.

        Args:
            items: in their order.
            size: bytes that they have together, at least 1.

        Raises:
            OSError: EFAULT, a host file has become shorter; nothing is sent.
        """
        self.flush()
        if self._buffer is not None:
            raise self._blocked()
        size = min(size, TOGETHER)
        self._buffer = buffer = POOL.take(size)
        self._budget.room -= len(buffer)
        try:
            taken = _collect(items, buffer[:size])
        except BaseException:
            self._give_back()
            raise
        self._left = buffer[:taken]
        self.flush()
        return taken

    def _give_back(self) -> None:
        buffer, self._buffer, self._left = self._buffer, None, memoryview(b"")
        if buffer is not None:
            POOL.give(buffer)
            self._budget.give_back(len(buffer))

    # ---- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Say goodbye, as far as that can be done at once, and close.

        In the middle of a step not yet: who is told that it is done calls this again.
        """
        if self.step is not None and not self.step.give_up():
            return
        if self.ready and not self.unsent:
            with suppress(OSError, ValueError):
                self.peer.unwrap()
            with suppress(OSError):
                self._push()
        self._give_back()
        self._records.close()
        held, self._held = self._held, 0
        self._budget.give_back(held)
        if not self.ready:  # an alert is on its way, which what is unread would overtake
            with suppress(OSError):
                os.read(self.fileno(), _UNREAD)
        self.peer.close()


def _collect(items: Iterable[bytes | memoryview | FileSpan], buffer: memoryview) -> int:
    """Copy as much of the items' front as there is room; returns how much that is."""
    taken = 0
    for item in items:
        room = len(buffer) - taken
        if not room:
            break
        wanted = min(item.length if isinstance(item, FileSpan) else len(item), room)
        got = _copy(item, buffer[taken : taken + wanted])
        if got < wanted:
            if not taken:
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
            break
        taken += wanted
    return taken


def _copy(item: bytes | memoryview | FileSpan, target: memoryview) -> int:
    """The front of an item; returns how much of `target` is filled."""
    if isinstance(item, FileSpan):
        return os.preadv(item.fd, (target,), item.offset)
    piece = item[: len(target)]
    if is_mapped(piece):
        piece = content_of(piece)
    target[: len(piece)] = piece
    return len(piece)
