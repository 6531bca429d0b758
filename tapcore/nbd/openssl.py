"""What OpenSSL can and Python's `ssl` has no word for: asked of the library itself, by ctypes.

It has to be the very one that `ssl` has loaded, as there can be two in a process. A context of
`ssl` begins with the address of OpenSSL's (`PySSLContext` in CPython's Modules/_ssl.c), in each
version that is listed here; of others nothing is believed.
"""

from __future__ import annotations

import _ssl
import ctypes
import ssl
import sys
from collections.abc import Callable
from typing import Any, Final

READ_BUFFER: Final = 64 << 10
"""Bytes that are received at once: 4 records, which else are two system calls each. A connection
has them as long as a part of a record has come."""

_NEWEST: Final = 3, 14
_SET_READ_AHEAD: Final = 41  # SSL_CTRL_SET_READ_AHEAD

_Found = Callable[[bytes], bytes]

_PSK_CALLBACK: Final = ctypes.CFUNCTYPE(
    ctypes.c_uint,
    ctypes.c_void_p,  # the connection
    ctypes.c_char_p,  # who the client says that it is
    ctypes.c_void_p,  # where its key is wanted
    ctypes.c_uint,  # how many bytes there are
)
"""`SSL_psk_server_cb_func`: returns the bytes of the key, or 0."""


class OpenSslContext:
    """OpenSSL's side of a context.

    Args:
        context: of `ssl`; it has to outlive this.

    Raises:
        LookupError: it cannot be reached from this Python.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._library = _library()
        # the first field behind those of any object
        self._address = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
        if self._library.SSL_CTX_get_options(self._address) != context.options:
            raise LookupError("the OpenSSL of this Python is not the one that was found")

    def read_ahead(self) -> None:
        """Receive as much as there is, and not a record's head and then its rest.

        What is pending in a connection is then not known: reading tells.
        """
        self._library.SSL_CTX_set_default_read_buffer_len(self._address, READ_BUFFER)
        self._library.SSL_CTX_ctrl(self._address, _SET_READ_AHEAD, 1, None)

    def take_keys(self, key_of: _Found) -> object:
        """Ask for a client's key by its name, as `SSL_CTX_set_psk_server_callback(3)` does.

        Args:
            key_of: the key, or nothing; may not raise.

        Returns:
            What has to live as long as the context.
        """

        def tell(_: int | None, name: bytes | None, place: int, most: int) -> int:
            key = key_of(name or b"")
            if len(key) > most:
                return 0
            ctypes.memmove(place, key, len(key))
            return len(key)

        callback = _PSK_CALLBACK(tell)
        self._library.SSL_CTX_set_psk_server_callback(self._address, callback)
        return callback


def _library() -> Any:
    if sys.implementation.name != "cpython" or sys.version_info[:2] > _NEWEST:
        raise LookupError("how this Python keeps OpenSSL's contexts is not known")
    try:
        library = ctypes.CDLL(_ssl.__file__)
        options, ahead = library.SSL_CTX_get_options, library.SSL_CTX_set_default_read_buffer_len
        control, keys = library.SSL_CTX_ctrl, library.SSL_CTX_set_psk_server_callback
    except (AttributeError, OSError):
        raise LookupError("this Python has no OpenSSL in a file of its own") from None
    options.argtypes, options.restype = [ctypes.c_void_p], ctypes.c_uint64
    ahead.argtypes, ahead.restype = [ctypes.c_void_p, ctypes.c_size_t], None
    control.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]
    control.restype = ctypes.c_long
    keys.argtypes, keys.restype = [ctypes.c_void_p, _PSK_CALLBACK], None
    return library
