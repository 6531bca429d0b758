"""What OpenSSL can and Python's `ssl` has no word for: asked of the library itself, by ctypes.

It has to be the very one that `ssl` has loaded, as there can be two in a process. A context of
`ssl` begins with the address of OpenSSL's (`PySSLContext` in CPython's Modules/_ssl.c), and a
connection has it behind a reference to its socket, and before its context (`PySSLSocket`), in each
version that is listed here; of others nothing is believed.
"""

from __future__ import annotations

import _ssl
import ctypes
import ssl
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final

_NEWEST: Final = 3, 14
_WORD: Final = ctypes.sizeof(ctypes.c_void_p)

_Found = Callable[[bytes], bytes]

_PSK_CALLBACK: Final = ctypes.CFUNCTYPE(
    ctypes.c_uint,
    ctypes.c_void_p,  # the connection
    ctypes.c_char_p,  # who the client says that it is
    ctypes.c_void_p,  # where its key is wanted
    ctypes.c_uint,  # how many bytes there are
)
"""`SSL_psk_server_cb_func`: returns the bytes of the key, or 0."""

_PLACE: Final = ctypes.c_void_p
_INT: Final = ctypes.c_int
_LONG: Final = ctypes.c_long
_FUNCTIONS: Final[dict[str, tuple[Any, list[Any]]]] = {
    "SSL_CTX_get_options": (ctypes.c_uint64, [_PLACE]),
    "SSL_CTX_set_psk_server_callback": (None, [_PLACE, _PSK_CALLBACK]),
    "SSL_get_rbio": (_PLACE, [_PLACE]),
    "SSL_set0_rbio": (None, [_PLACE, _PLACE]),
    "SSL_get_wbio": (_PLACE, [_PLACE]),
    "SSL_set0_wbio": (None, [_PLACE, _PLACE]),
    "SSL_get_shutdown": (_INT, [_PLACE]),
    "SSL_set_quiet_shutdown": (None, [_PLACE, _INT]),
    "SSL_ctrl": (_LONG, [_PLACE, _INT, _LONG, _PLACE]),
    "BIO_new": (_PLACE, [_PLACE]),
    "BIO_f_buffer": (_PLACE, []),
    "BIO_f_ssl": (_PLACE, []),
    "BIO_ctrl": (_LONG, [_PLACE, _INT, _LONG, _PLACE]),
    "BIO_push": (_PLACE, [_PLACE, _PLACE]),
    "BIO_up_ref": (_INT, [_PLACE]),
    "BIO_free_all": (None, [_PLACE]),
    "BIO_read": (_INT, [_PLACE, _PLACE, _INT]),
    "BIO_test_flags": (_INT, [_PLACE, _INT]),
    "ERR_peek_error": (ctypes.c_ulong, []),
    "ERR_reason_error_string": (ctypes.c_char_p, [ctypes.c_ulong]),
    "ERR_clear_error": (None, []),
}
"""What each returns, and takes."""


class OpenSslContext:
    """OpenSSL's side of a context.

    Args:
        context: of `ssl`; it has to outlive this.

    Raises:
        LookupError: it cannot be reached from this Python.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._library = library()
        # the first field behind those of any object
        self._address = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
        if self._library.SSL_CTX_get_options(self._address) != context.options:
            raise LookupError("the OpenSSL of this Python is not the one that was found")

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


def connection_of(peer: ssl.SSLSocket) -> tuple[object, int]:
    """A connection of `ssl`: the object that has to outlive its address, and that, OpenSSL's.

    Raises:
        LookupError: it cannot be reached from this Python.
    """
    OpenSslContext(peer.context)  # this Python's objects are known, and the library is its own
    held: Any = getattr(peer, "_sslobj", None)
    if type(held).__name__ != "_SSLSocket":
        raise LookupError("the connection is kept in a way that is not known")
    fields = id(held) + object.__basicsize__
    context = ctypes.c_void_p.from_address(fields + 2 * _WORD).value
    address = ctypes.c_void_p.from_address(fields + _WORD).value
    if context != id(peer.context) or not address:
        raise LookupError("how this Python keeps OpenSSL's connections is not known")
    return held, address


@cache
def library() -> Any:
    """OpenSSL, its functions by their names, of which each call gives up the interpreter's lock.

    Raises:
        LookupError: it cannot be reached from this Python.
    """
    if sys.implementation.name != "cpython" or sys.version_info[:2] > _NEWEST:
        raise LookupError("how this Python keeps OpenSSL's contexts is not known")
    try:
        found = ctypes.CDLL(_ssl.__file__, use_errno=True)
        for name, (returned, taken) in _FUNCTIONS.items():
            function = getattr(found, name)
            function.restype, function.argtypes = returned, taken
    except (AttributeError, OSError):
        raise LookupError("this Python has no OpenSSL in a file of its own") from None
    return found
