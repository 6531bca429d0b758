"""A socket whose bytes are encrypted: as much of a socket as a connection uses.

OpenSSL works in memory, and the socket is read and written here: what it has encrypted is taken
from the replies for good, whatever the socket takes, and never has to be handed over once more,
as it was, after the replies have changed.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, cast

from tapcore.files.mapping import content_of, is_mapped
from tapcore.nbd.filespan import FileSpan

AT_ONCE: Final = (64 << 10) + 512
"""Bytes that are encrypted, or received, before the socket is looked at again: memory that stays
warm, and with room for what stands before a piece of 64 KiB. With 256 KiB it costs twice the CPU.
"""


class TlsSocket:
    """The server's side.

    Args:
        sock: a client's, which does not block; nothing was read of what it sent for TLS.
        context: what the server proves itself with.

    Attributes:
        peer: what OpenSSL knows of the connection.
        ready: the TLS handshake is over.
        starved: all that has been received is taken; else `recv` has more, without an event.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.peer = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._encrypted = memoryview(b"")
        self._received = memoryview(bytearray(AT_ONCE))
        self.ready = False
        self.starved = True

    def fileno(self) -> int:
        """Of the socket."""
        return self._socket.fileno()

    # ---- the handshake of TLS ---------------------------------------------------------------

    def shake_hands(self) -> bool:
        """Go on with it; returns whether it is over.

        Raises:
            OSError: it has failed, or the client has gone.
        """
        try:
            while not self.ready:
                try:
                    self.peer.do_handshake()
                    self.ready = True
                except ssl.SSLWantReadError:
                    self.flush()
                    if not self._fill():
                        raise ConnectionError(errno.ECONNRESET, "it has gone") from None
        except BlockingIOError:
            return False
        finally:
            with suppress(OSError):
                self.flush()  # an alert, where it has failed
        self.starved = False
        return True

    # ---- receiving --------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """As a socket's."""
        data = memoryview(bytearray(size))
        return bytes(data[: self.recv_into(data)])

    def recv_into(self, buffer: memoryview) -> int:
        """As a socket's that does not block: 0 at the end, BlockingIOError where nothing is there.

        The memory is written by OpenSSL: it may not be a part of a host file.
        """
        count = 0
        while count < len(buffer):
            try:
                got = cast(int, self.peer.read(len(buffer) - count, buffer[count:]))
            except ssl.SSLWantReadError:
                self.starved = True
                if count:
                    return count
                if not self._fill():
                    return 0
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self.starved = True
                return count
            if not got:
                self.starved = True
                return count
            count += got
        self.starved = False
        return count

    def _fill(self) -> bool:
        """Receive; False at the end."""
        count = self._socket.recv_into(self._received)
        self._incoming.write(self._received[:count])
        return bool(count)

    # ---- sending ----------------------------------------------------------------------------

    @property
    def unsent(self) -> bool:
        """Whether something encrypted waits for the client."""
        return bool(self._encrypted) or bool(self._outgoing.pending)

    def flush(self) -> None:
        """Send what is encrypted, as far as the socket takes it."""
        try:
            while self.unsent:
                if not self._encrypted:
                    self._encrypted = memoryview(self._outgoing.read())
                sent = self._socket.send(self._encrypted)
                self._encrypted = self._encrypted[sent:]
        except (BlockingIOError, InterruptedError):
            pass

    def send(self, data: bytes | memoryview) -> int:
        """As a socket's that does not block."""
        self.flush()
        if self.unsent:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        left = taken = memoryview(data)[:AT_ONCE]
        while left:
            left = left[self.peer.write(left) :]
        self.flush()
        return len(taken)

    def sendmsg(
        self, buffers: Sequence[bytes | memoryview], ancillary: Iterable[object], flags: int
    ) -> int:
        """As a socket's; there is no ancillary data, and the flags are advice."""
        return self.send_items(buffers)

    def send_items(self, items: Iterable[bytes | memoryview | FileSpan]) -> int:
        """The front of what is to be sent, read out of host files where it lies there.

        Raises:
            OSError: EFAULT, a host file has become shorter; nothing is sent.
        """
        content = bytearray()
        for item in items:
            room = AT_ONCE - len(content)
            if room <= 0:
                break
            piece, wanted = _content(item, room)
            if len(piece) < wanted:
                if content:
                    break
                raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
            content += piece
        return self.send(content)  # type: ignore[arg-type]

    # ---- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Say goodbye, as far as that can be done at once, and close."""
        if self.ready:
            with suppress(OSError, ValueError):
                self.peer.unwrap()
        with suppress(OSError):
            self.flush()
        self._socket.close()


def _content(item: bytes | memoryview | FileSpan, room: int) -> tuple[bytes | memoryview, int]:
    """At most `room` bytes of an item's front, and how many there should be."""
    if isinstance(item, FileSpan):
        wanted = min(item.length, room)
        return os.pread(item.fd, wanted, item.offset), wanted
    piece = item[:room]
    if is_mapped(piece):
        return content_of(piece), len(piece)
    return piece, len(piece)
