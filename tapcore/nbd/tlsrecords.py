"""The records of TLS, of at most 16 KiB: many of them come and go in one call.

Python's `ssl` takes one record in a call, and OpenSSL by itself asks the socket twice for each that
comes, and once for each that goes. So buffers of OpenSSL are put around a connection
(`BIO_f_buffer(3)`): two below, which receive as much as there is in one system call, and send
several records together; and one above, which goes on until the memory it was given is full. Where
OpenSSL cannot be reached, or memory is short, records are taken one by one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import ssl
from contextlib import suppress
from enum import Enum, auto
from typing import Final, Protocol

from tapcore.nbd.openssl import connection_of, library

RECEIVED_AT_ONCE: Final = 256 << 10
"""Bytes, encrypted, that are received at once; memory is touched for what comes."""

SENT_AT_ONCE: Final = 272 << 10
"""Bytes, encrypted, that are sent together: a reply of the usual size (256 KiB)."""

MANY: Final = RECEIVED_AT_ONCE + SENT_AT_ONCE
"""Bytes of memory that `ManyRecords` has."""

_CLEAR_MODE: Final = 78  # SSL_CTRL_CLEAR_MODE
_AUTO_RETRY: Final = 4  # SSL_MODE_AUTO_RETRY
_PENDING: Final = 10  # BIO_CTRL_PENDING
_FLUSH: Final = 11  # BIO_CTRL_FLUSH
_SET_BUFFER_SIZE: Final = 117  # BIO_C_SET_BUFF_SIZE
_SET_CONNECTION: Final = 109  # BIO_C_SET_SSL
_KEEP: Final = 0  # BIO_NOCLOSE
_WANTS_IN: Final = 1  # BIO_FLAGS_READ
_WANTS_OUT: Final = 2  # BIO_FLAGS_WRITE
_GOODBYE: Final = 2  # SSL_RECEIVED_SHUTDOWN
_REASON: Final = 0x7FFFFF  # the lower bits of an error
_UNEXPECTED_END: Final = 294  # SSL_R_UNEXPECTED_EOF_WHILE_READING


class Stop(Enum):
    """Why no more was read."""

    FULL = auto()
    """The memory is full; there may be more."""
    NO_CONTENT = auto()
    """What came is for TLS itself; there is more."""
    WANTS_IN = auto()
    """All is taken that the client has sent."""
    WANTS_OUT = auto()
    """TLS has to send something first."""
    END = auto()
    """The client sends no more."""


class Records(Protocol):
    """A connection whose handshake is over: what comes, and the last of what goes.

    Attributes:
        stop: why the last `read` went no further.
    """

    stop: Stop

    def read(self, buffer: memoryview) -> int:
        """Bytes that were read into `buffer`, which is not a part of a host file.

        Raises:
            OSError: the connection is lost.
        """

    def push(self) -> bool:
        """Send what was encrypted and not sent; returns whether the socket has taken all of it.

        Raises:
            OSError: the connection is lost.
        """

    def close(self) -> None:
        """Nothing is read any more; the connection is closed next."""


def go_back_often(peer: ssl.SSLSocket) -> None:
    """Let OpenSSL come back from each record that has no content.

    By itself it goes on until there is some: a client that sends one new key after another
    (RFC 8446, 4.6.3) would keep everybody else waiting in the middle of one call.
    """
    with suppress(LookupError):
        _, address = connection_of(peer)
        library().SSL_ctrl(address, _CLEAR_MODE, _AUTO_RETRY, None)


class SingleRecords:
    """Asks Python's `ssl` for each record.

    Args:
        peer: the connection.
    """

    __slots__ = ("_peer", "stop")

    def __init__(self, peer: ssl.SSLSocket) -> None:
        self._peer = peer
        self.stop = Stop.FULL

    def read(self, buffer: memoryview) -> int:
        """See `Records`."""
        count, size = 0, len(buffer)
        read = self._peer.read  # what `recv_into` calls, for each record
        self.stop = Stop.FULL
        try:
            while count < size:
                got = read(size - count, buffer[count:])
                if not got:
                    self.stop = Stop.END
                    break
                count += got  # type: ignore[operator]  # bytes only where no buffer is given
        except ssl.SSLWantWriteError:
            self.stop = Stop.WANTS_OUT
        except ssl.SSLWantReadError:
            self.stop = Stop.WANTS_IN
        return count

    def push(self) -> bool:
        """See `Records`."""
        return True

    def close(self) -> None:
        """See `Records`."""


class ManyRecords:
    """Lets OpenSSL fill the memory.

    From now on nobody else may read the connection, some of what has come is in these buffers; and
    who writes has to `push`.

    Args:
        peer: the connection.

    Raises:
        LookupError: OpenSSL cannot be reached from this Python.
    """

    __slots__ = ("_address", "_failure", "_held", "_in", "_library", "_out", "_top", "stop")

    def __init__(self, peer: ssl.SSLSocket) -> None:
        self._library = known = library()
        self._held, self._address = connection_of(peer)
        self._failure: OSError | None = None
        self.stop = Stop.FULL
        address = self._address
        self._in = self._buffered(known.SSL_get_rbio(address), RECEIVED_AT_ONCE, 0)
        self._out = self._buffered(known.SSL_get_wbio(address), SENT_AT_ONCE, 1)
        known.SSL_set0_rbio(address, self._in)
        known.SSL_set0_wbio(address, self._out)
        records = known.BIO_new(known.BIO_f_ssl())
        known.BIO_ctrl(records, _SET_CONNECTION, _KEEP, address)
        self._top = known.BIO_push(known.BIO_new(known.BIO_f_buffer()), records)

    def _buffered(self, sock: int, size: int, way: int) -> int:
        """A buffer of OpenSSL before a socket, which the other direction uses as well."""
        known, direction = self._library, ctypes.c_int(way)
        known.BIO_up_ref(sock)
        buffer = known.BIO_new(known.BIO_f_buffer())
        known.BIO_ctrl(buffer, _SET_BUFFER_SIZE, size, ctypes.addressof(direction))
        together: int = known.BIO_push(buffer, sock)
        return together

    def read(self, buffer: memoryview) -> int:
        """See `Records`."""
        if self.stop is Stop.END:  # OpenSSL knows why only once
            return self._ended()
        known, size = self._library, len(buffer)
        place = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        count: int = known.BIO_read(self._top, place, size)
        if count == size:
            self.stop = Stop.FULL
            return count
        wants = known.BIO_test_flags(self._top, _WANTS_IN | _WANTS_OUT)
        if wants:
            self.stop = Stop.WANTS_IN if wants == _WANTS_IN else Stop.WANTS_OUT
            if wants == _WANTS_IN and known.BIO_ctrl(self._in, _PENDING, 0, None):
                self.stop = Stop.NO_CONTENT  # no event tells of what is there already
            return max(count, 0)
        self.stop = Stop.END
        self._failure = self._why()
        return count if count > 0 else self._ended()

    def _ended(self) -> int:
        if self._failure is not None:
            raise self._failure
        return 0

    def _why(self) -> OSError | None:
        """Why there is no more; None: the client has ended it, or closed its socket."""
        known, number = self._library, ctypes.get_errno()
        if known.SSL_get_shutdown(self._address) & _GOODBYE:
            return None
        code = known.ERR_peek_error()
        text: bytes | None = known.ERR_reason_error_string(code)
        known.ERR_clear_error()
        if code & _REASON == _UNEXPECTED_END:
            return None
        if code:
            return ssl.SSLError(ssl.SSL_ERROR_SSL, (text or b"of an unknown kind").decode())
        number = number or errno.ECONNRESET
        return OSError(number, os.strerror(number))

    def push(self) -> bool:
        """See `Records`."""
        if self._top is None or self._library.BIO_ctrl(self._out, _FLUSH, 0, None) > 0:
            return True
        if self._library.BIO_test_flags(self._out, _WANTS_OUT):
            return False
        number = ctypes.get_errno() or errno.EPIPE
        raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """See `Records`."""
        top, self._top = self._top, None
        self.stop = Stop.END
        if top is not None:
            # to free it says goodbye once more in OpenSSL 3.0
            self._library.SSL_set_quiet_shutdown(self._address, 1)
            self._library.BIO_free_all(top)
            self._library.ERR_clear_error()
        self._held = None
